// Recurrence with products of the state and resident matrices: one cluster of C blocks walks F groups of N sequences
// through time, in turn: while messages of one group travel the other is multiplied.
//
// What is printed before this text (kernels.dense.cuda): sizes and places in shared memory. After it: the functions
// that are declared here without a body. A block owns U units of the state and the M rows of the matrices that these
// need: as A operands of the tensor cores, KR steps of K in registers, KS in shared memory, the rest read each step.
// Sequences are the columns of B, so that few of them waste little.
//
// What the product is taken of (forward: the wire, a function of the state; backward: gradients by products) goes in
// bf16 to every block of the cluster, into one of two buffers. A reader waits on its own mbarrier for the buffer's
// bytes and nothing else. Message n + 1 overwrites message n - 1, and no reader of that is left: a thread sends its
// part of n + 1 after message n was whole, so that every peer had sent its part of n; a peer sends that behind the
// __syncthreads after which none of its threads reads message n - 1. For the same reason partial sums of one group are
// not overwritten before all have read them: its next product needs what their readers send. Several groups take turns
// with two buffers of sums: none writes what was read before the last __syncthreads.

namespace recurrence {

constexpr int WARPS = WM * WK, THREADS = 32 * WARPS;
constexpr int ITEMS = U / V * N;                        // of a block and group: V units of one sequence
constexpr int OWN = (ITEMS + THREADS - 1) / THREADS;    // of a thread
constexpr int M = FORWARD ? G * U : U, K = FORWARD ? D : G * D;
constexpr int MT = M / 16 / WM, KW = K / 16 / WK, NT = N / 8;  // tiles of a warp
constexpr int CHAINS = MT * NT < 3 ? 2 : 1;             // sums that do not wait for each other
constexpr int PAIR = (M + 23) / 32 * 32 + 8, ODD = 4 * PAIR + 16;  // between columns of partial sums: see column_of
constexpr int WIRE_BYTES = K * N * 2, PARTIAL = WK * NT * 2 * ODD, PARTIALS = F > 1 ? 2 : 1;
static_assert(M % (16 * WM) == 0 && K % (16 * WK) == 0 && U % 16 == 0 && N % 8 == 0, "whole tiles");

struct Args {
    const void* in[NI];                // read at every step
    i64 in_first[NI], in_b[NI], in_t[NI], in_h[NI];  // elements before the first, and from one to the next
    void* out[NO];                     // written at every step
    i64 out_first[NO], out_b[NO], out_t[NO], out_h[NO];
    const float* w[NW ? NW : 1];       // pieces of weights that are no matrices
    i64 w_first[NW ? NW : 1], w_h[NW ? NW : 1];
    const uint4* matrix;               // fragments [H, C, WM, WK, KW, MT, 32]
    i64 matrix_h;
    const float* start;                // [B, H, S, WIDTH]: first state; backward: adjoint of the last
    float* stop;                       // last state; backward: adjoint of the first
    float* dw;                         // [NW, B, H, WIDTH]
    const unsigned char* reset;        // [B, T]
    i64 B, T, H, parts;                // parts: clusters of a head
};

// Where a thread works.
struct Place {
    int rank, warp, lane;
    i64 head, first;  // first sequence

    __device__ __forceinline__ explicit Place(const Args& a)
        : rank(cluster_rank()), warp(threadIdx.x / 32), lane(threadIdx.x % 32) {
        const i64 cluster = blockIdx.x / C;
        head = cluster / a.parts;
        first = cluster % a.parts * F * N;
    }
};

// V units of one sequence.
struct Item {
    int row, local, unit;  // sequence within the group; unit within the block and of all
    int group;
    i64 b;  // sequence of all, where it is one of the first group's
    bool exists, valid, inside;  // is one of the block's; is a sequence's; is no padding either

    __device__ __forceinline__ Item(const Args& a, const Place& p, int group, int i) : group(group) {
        // A warp has 16 units of 8 sequences: 256 bytes side by side on the wire.
        const int at = threadIdx.x + i * THREADS, tile = at / 32;
        row = tile % NT * 8 + at / 4 % 8;
        local = tile / NT * 16 + at % 4 * V;
        unit = p.rank * U + local;
        b = p.first + row;
        exists = ITEMS % THREADS == 0 || at < ITEMS;
        valid = exists && sequence() < a.B;
        inside = valid && (WIDTH == D || unit < WIDTH);
    }

    __device__ __forceinline__ i64 sequence() const { return b + group * N; }

    // Whether unit v of the item is one of the state: a last item may have others beside it, whose inputs are zeros and
    // whose results may be anything. Nothing of them may reach the matrices.
    __device__ __forceinline__ bool has(int v) const { return inside && (REAL == WIDTH || unit + v < REAL); }
};

// Where an item is in a stream: what is a thread's own, and what all of them add to it at this step of this group.
__device__ __forceinline__ i64 in_place(const Args& a, const Place& p, const Item& o, int j, i64 t) {
    const i64 own = a.in_first[j] + o.b * a.in_b[j] + p.head * a.in_h[j] + o.unit;
    return own + (o.group * N * a.in_b[j] + t * a.in_t[j]);
}
__device__ __forceinline__ i64 out_place(const Args& a, const Place& p, const Item& o, int j, i64 t) {
    const i64 own = a.out_first[j] + o.b * a.out_b[j] + p.head * a.out_h[j] + o.unit;
    return own + (o.group * N * a.out_b[j] + t * a.out_t[j]);
}
__device__ __forceinline__ i64 state_place(const Args& a, const Place& p, const Item& o, int slot) {
    return ((o.sequence() * a.H + p.head) * S + slot) * WIDTH + o.unit;
}

// What a thread has of its items from one step to the next, in shared memory: KEPT arrays of V numbers each, and behind
// them what it sums by weight. In registers it would take their room from the matrices, more with every group.
constexpr int KEPT = FORWARD ? S : 2 * S + NW;
static_assert(WIRE_AT + F * 2 * WIRE_BYTES <= PARTIAL_AT && PARTIAL_AT + PARTIALS * PARTIAL * 4 <= RING_AT, "room for messages");
static_assert(RING_AT + STAGES * F * RING_BYTES <= WEIGHTS_AT && WEIGHTS_AT + NW * U * 4 <= KEPT_AT, "room for inputs");
static_assert(KEPT_AT + F * KEPT * ITEMS * V * 4 <= BARRIER_AT && BARRIER_AT + F * 16 <= MATRIX_AT, "room for states");
__device__ __forceinline__ char* kept_place(char* shared, int group, int i, int j) {
    return shared + KEPT_AT + ((group * KEPT + j) * ITEMS + i * THREADS + int(threadIdx.x)) * V * 4;
}
using Values = float[V];
template <int COUNT> __device__ __forceinline__ void read_kept(char* shared, int group, int i, int first, Values* x) {
#pragma unroll
    for (int j = 0; j < COUNT; ++j) load<float>(kept_place(shared, group, i, first + j), x[j]);
}
template <int COUNT>
__device__ __forceinline__ void keep(char* shared, int group, int i, int first, const Values* x) {
#pragma unroll
    for (int j = 0; j < COUNT; ++j) store(reinterpret_cast<float*>(kept_place(shared, group, i, first + j)), x[j]);
}

// Streams come through a ring in shared memory of which every thread has its own part: STAGES - 1 steps ahead. A single
// stage is filled again as soon as it is read, and has the turns of the other groups to arrive.
constexpr int AHEAD = STAGES > 1 ? STAGES - 1 : 1;
__device__ __forceinline__ char* stage_of(char* shared, int group, i64 n) {
    return shared + RING_AT + (int(n % STAGES) * F + group) * RING_BYTES;
}
template <class E, int J, int OFFSET>
__device__ __forceinline__ void fetch_one(const Args& a, const Place& p, const Item& o, char* stage, int i, i64 t) {
    const E* from = static_cast<const E*>(a.in[J]);
    char* to = stage + OFFSET + (i * THREADS + threadIdx.x) * V * int(sizeof(E));
    copy_async<V * sizeof(E)>(to, o.inside ? from + in_place(a, p, o, J, t) : from, o.inside);
}
template <class E, int OFFSET>
__device__ __forceinline__ void read_one(const char* stage, int i, float (&x)[V]) {
    load<E>(stage + OFFSET + (i * THREADS + threadIdx.x) * V * int(sizeof(E)), x);
}
template <class E, int J>
__device__ __forceinline__ void write_one(const Args& a, const Place& p, const Item& o, i64 t, const float (&x)[V]) {
    store(static_cast<E*>(a.out[J]) + out_place(a, p, o, J, t), x);
}

__device__ __forceinline__ void fetch(const Args& a, const Place& p, const Item& o, char* stage, int i, i64 t);

// What step t of a group reads, into stage n; a commit also where there is no such step.
__device__ __forceinline__ void fetch_step(const Args& a, const Place& p, char* shared, int f, i64 n, i64 t) {
#pragma unroll
    for (int i = 0; i < OWN; ++i) {
        const Item o(a, p, f, i);
        if (o.exists && t >= 0 && t < a.T) fetch(a, p, o, stage_of(shared, f, n), i, t);
    }
    commit();
}

// Until what a group is about to read is there: since it was asked for, so many others were.
__device__ __forceinline__ void arrived_step() { arrived<(STAGES > 1 ? AHEAD * F : F - 1)>(); }

// Where part k of a column's sums begins among those of its group. Neither the stores of a warp, to four even or four odd
// columns at once, nor its loads, of 64 bytes from each of two neighbours at once, meet a bank twice.
__device__ __forceinline__ int column_of(int k, int column) {
    return (k * NT + column / 8) * 2 * ODD + column % 8 / 2 * PAIR + column % 2 * ODD;
}

// Fragments of the matrices: of a warp, KW steps of K by MT tiles of 16 rows.
struct Matrix {
    uint4 held[KR ? KR : 1][MT];
    const uint4 *kept, *far;
    int first;  // step of K

    __device__ __forceinline__ Matrix(const Args& a, const Place& p, char* shared) {
        const uint4* from = a.matrix + p.head * a.matrix_h + (i64(p.rank) * WARPS + p.warp) * KW * MT * 32 + p.lane;
#pragma unroll
        for (int k = 0; k < KR; ++k)
#pragma unroll
            for (int m = 0; m < MT; ++m) held[k][m] = from[(k * MT + m) * 32];
        // A lane reads back what it wrote itself.
        uint4* own = reinterpret_cast<uint4*>(shared + MATRIX_AT) + p.warp * KS * MT * 32 + p.lane;
        for (int i = 0; i < KS * MT; ++i) own[i * 32] = from[(KR * MT + i) * 32];
        kept = own;
        far = from + (KR + KS) * MT * 32;
        first = p.warp % WK * KW;
    }

    // Partial sums of the matrices' rows by the message.
    __device__ __forceinline__ void multiply(const Place& p, const char* message, float* partial) const {
        float c[CHAINS][MT][NT][4] = {};
        const char* b = message + (first * NT * 32 + p.lane) * 8;
#pragma unroll
        for (int k = 0; k < KR; ++k) step(c[k % CHAINS], b + k * NT * 256, held[k]);
        rest<KS>(c, b + KR * NT * 256, kept);
        rest<KW - KR - KS>(c, b + (KR + KS) * NT * 256, far);
        float* to = partial + column_of(p.warp % WK, p.lane % 4 * 2) + p.warp / WK * MT * 16 + p.lane / 4;
#pragma unroll
        for (int m = 0; m < MT; ++m)
#pragma unroll
            for (int n = 0; n < NT; ++n)
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    float sum = c[0][m][n][i];
                    if constexpr (CHAINS == 2) sum += c[1][m][n][i];
                    to[n * 2 * ODD + i % 2 * ODD + m * 16 + i / 2 * 8] = sum;
                }
    }

    template <int STEPS>
    static __device__ __forceinline__ void rest(float (&c)[CHAINS][MT][NT][4], const char* b, const uint4* from) {
#pragma unroll UNROLL
        for (int k = 0; k < STEPS; k += CHAINS)
#pragma unroll
            for (int j = 0; j < CHAINS; ++j) {
                if (k + j == STEPS) break;
                uint4 loaded[MT];
#pragma unroll
                for (int m = 0; m < MT; ++m) loaded[m] = from[((k + j) * MT + m) * 32];
                step(c[j], b + (k + j) * NT * 256, loaded);
            }
    }

    static __device__ __forceinline__ void step(float (&c)[MT][NT][4], const char* b, const uint4 (&a)[MT]) {
#pragma unroll
        for (int n = 0; n < NT; ++n) {
            const uint2 column = *reinterpret_cast<const uint2*>(b + n * 256);
#pragma unroll
            for (int m = 0; m < MT; ++m) mma(c[m][n], a[m], column);
        }
    }
};

// Partial sums of a group's product n; they are read while those of the next group are written.
__device__ __forceinline__ float* partial_of(char* shared, int group, i64 n) {
    return reinterpret_cast<float*>(shared + PARTIAL_AT) + int(n * F + group) % PARTIALS * PARTIAL;
}
// A column of the product: rows `row` to `row + V - 1`, for one sequence.
__device__ __forceinline__ void total(const float* partial, int row, int column, float (&sum)[V]) {
#pragma unroll
    for (int k = 0; k < WK; ++k) {
        float part[V];
        load<float>(partial + column_of(k, column) + row, part);
#pragma unroll
        for (int v = 0; v < V; ++v) sum[v] = k ? sum[v] + part[v] : part[v];
    }
}

// Of one group, messages 0, 1, 2, ...: K numbers of N sequences in bf16, as [K / 16][NT][8 sequences][16].
struct Exchange {
    char* shared;
    int rank, group;

    __device__ __forceinline__ Barrier* barrier(i64 n) const {
        return reinterpret_cast<Barrier*>(shared + BARRIER_AT) + group * 2 + (n & 1);
    }
    __device__ __forceinline__ char* buffer(i64 n) const {
        return shared + WIRE_AT + (group * 2 + int(n & 1)) * WIRE_BYTES;
    }

    // V numbers of message n, from k on, to all blocks of the cluster, each beginning with another one.
    __device__ __forceinline__ void send(i64 n, int k, int row, const float (&x)[V]) const {
        static_assert(V == 4, "a word");
        const Word word = rounded(x[0], x[1]) | Word(rounded(x[2], x[3])) << 32;
        char* to = buffer(n) + ((k / 16 * NT + row / 8) * 8 + row % 8) * 32 + k % 16 * 2;
#pragma unroll
        for (int c = 0; c < C; ++c) store_async(to, word, barrier(n), (rank + c) % C);
    }

    // Message n, when it is whole.
    __device__ __forceinline__ const char* receive(i64 n) const {
        await(barrier(n), int(n >> 1 & 1));
        if (threadIdx.x == 0) expect(barrier(n), WIRE_BYTES);  // message n + 2
        return buffer(n);
    }
};

// Before the first message of any group; all threads of the cluster.
__device__ __forceinline__ void begin_exchanges(char* shared, int rank) {
    if (threadIdx.x == 0)
        for (int n = 0; n < 2 * F; ++n) {
            const Exchange exchange{shared, rank, n / 2};
            begin(exchange.barrier(n));
            expect(exchange.barrier(n), WIRE_BYTES);
        }
    cluster_meet();
}

__device__ __forceinline__ bool begins(const Args& a, const Item& o, i64 t) {
    return RESET && o.valid && t < a.T && a.reset[o.sequence() * a.T + t];
}

// Weights without a matrix: a block's units of each in shared memory.
__device__ __forceinline__ void load_weights(const Args& a, const Place& p, char* shared) {
    float* to = reinterpret_cast<float*>(shared + WEIGHTS_AT);
#pragma unroll
    for (int j = 0; j < NW; ++j)
        for (int i = threadIdx.x; i < U; i += THREADS) {
            const int unit = p.rank * U + i;
            to[j * U + i] = unit < WIDTH ? a.w[j][a.w_first[j] + p.head * a.w_h[j] + unit] : 0.0f;
        }
}
__device__ __forceinline__ void weights_of(const char* shared, const Item& o, float (&w)[NW + 1][V]) {
#pragma unroll
    for (int j = 0; j < NW; ++j) load<float>(shared + WEIGHTS_AT + (j * U + o.local) * 4, w[j]);
}

}  // namespace recurrence
