// Recurrence over matrices whose rows never meet: a block walks some or all rows of one matrix through time.
//
// What is printed before this text (kernels.matrix.cuda): ROWS and COLUMNS of the matrix, SR and SC (elements from one
// row, or column, of a state to the next); the tile of a lane, RE rows by CE columns, CE a multiple of 4; CL lanes side
// by side across the columns; W warps; SPLIT blocks per matrix; RESIDENT blocks for which a multiprocessor has registers;
// TILE (steps that are staged) and SEGMENT (steps between two marks, whose states backward keeps in registers); P (lanes
// that prepare one step); NU streams and weights; EVEN (whole tiles only), RESET, MARKS, UNROLL; offsets into shared
// memory in bytes; FORWARD, which kernel is meant; YTYPE and MARK, the types of outputs and marks. After it: the
// functions that are declared in the middle. Steps of one sequence are less than 2 ** 27 numbers apart.
//
// Lanes of a warp: CL neighbours share rows, so that a sum over columns takes log2(CL) shuffles. What depends on inputs
// alone is computed once per tile, all steps at once, and waits in shared memory.

namespace recurrence {

constexpr int RL = 32 / CL;         // lanes across the rows
constexpr int NR = W * RL * RE;     // rows of a block
constexpr int CP = CL * CE;         // columns with padding
constexpr int CS = CP + 4;          // elements from one step to the next of a value per column
constexpr int E = RE * CE;          // entries of a lane
constexpr int THREADS = 32 * W;
constexpr int CJ = (COLUMNS + P - 1) / P;  // columns of a lane that prepares
constexpr bool RAGGED_R = NR * SPLIT != ROWS, RAGGED_C = CP != COLUMNS;
constexpr int TURNS = CE == 16 && RL >= 4 ? 2 : CE >= 8 && CE != 12 && RL >= 2 ? 1 : 0;
constexpr int ACC = RE == 1 ? 4 : RE == 2 ? 2 : 1;  // partial sums of a row, so that they do not wait for each other

struct Args {
    const void* x[NU];
    i64 xb[NU], xt[NU], xh[NU];  // elements from one sequence, step, head to the next
    void* dx[NU];
    const float* start;  // state before the first step; backward: adjoint of the state after the last
    float* stop;         // state after the last step; backward: adjoint of the state before the first
    void* y;             // backward: dy
    MARK* marks;
    const unsigned char* reset;
    i64 B, T, H;
};

struct Place {
    i64 b, h, g, tiles;
    int warp, lane, rl, cl;
    int row, rows;  // first row of this lane in the block; rows of the block that exist
    int turn;       // by which this lane's columns are out of order, see `fold`

    __device__ __forceinline__ explicit Place(const Args& a) {
        g = blockIdx.x % SPLIT;
        const i64 matrix = blockIdx.x / SPLIT;
        b = matrix / a.H, h = matrix % a.H;
        tiles = (a.T + TILE - 1) / TILE;
        warp = threadIdx.x / 32, lane = threadIdx.x % 32;
        rl = lane / CL, cl = lane % CL;
        row = (warp * RL + rl) * RE;
        rows = RAGGED_R ? min(ROWS - int(g) * NR, NR) : NR;
        turn = (TURNS > 0 && rl & RL / 2 ? CE / 2 : 0) + (TURNS > 1 && rl & RL / 4 ? CE / 4 : 0);
    }
    __device__ __forceinline__ int column(int c) const {
        c ^= turn;
        return c / 4 * (4 * CL) + cl * 4 + c % 4;
    }
    __device__ __forceinline__ bool has_column(int c) const { return !RAGGED_C || column(c) < COLUMNS; }
    __device__ __forceinline__ bool has_row(int r) const { return !RAGGED_R || row + r < rows; }
    __device__ __forceinline__ int steps(const Args& a, i64 tile) const {
        return EVEN ? TILE : int(min(a.T - tile * TILE, i64(TILE)));
    }
    // Where row r and column c of this lane are in a state.
    __device__ __forceinline__ i64 entry(const Args& a, int r, int c) const {
        return (b * a.H + h) * (i64(ROWS) * COLUMNS) + i64(g * NR + row + r) * SR + i64(column(c)) * SC;
    }
};

// Everyone in the block is here, and sees what the others wrote to shared memory.
__device__ __forceinline__ void meet() {
    if constexpr (W == 1) {
        __syncwarp();
    } else {
        __syncthreads();
    }
}

// The sum over WIDTH neighbouring lanes, in all of them.
template <int WIDTH> __device__ __forceinline__ float across(float x) {
#pragma unroll
    for (int m = 1; m < WIDTH; m *= 2) x += __shfl_xor_sync(~0u, x, m);
    return x;
}

__device__ __forceinline__ float total(const float (&x)[ACC]) {
    return ACC == 4 ? (x[0] + x[1 % ACC]) + (x[2 % ACC] + x[3 % ACC]) : ACC == 2 ? x[0] + x[1 % ACC] : x[0];
}

// The scaled tanh of a whole tile.
__device__ __forceinline__ void tanh_of_tile(float (&x)[RE][CE]) {
#pragma unroll
    for (int r = 0; r < RE; ++r)
#pragma unroll
        for (int c = 0; c < CE; c += 4) scaled_tanh<4>(&x[r][c]);
}

// Four floats, moved as one word.
struct alignas(16) Four { float e[4]; };

__device__ __forceinline__ void load_columns(const float* from, const Place& p, float (&x)[CE]) {
#pragma unroll
    for (int c = 0; c < CE; c += 4) {
        const Four four = *reinterpret_cast<const Four*>(from + p.column(c));
#pragma unroll
        for (int i = 0; i < 4; ++i) x[c + i] = four.e[i];
    }
}

__device__ __forceinline__ void load_rows(const float* from, const Place& p, float (&x)[RE]) {
#pragma unroll
    for (int r = 0; r < RE; ++r) x[r] = from[p.row + r];
}

__device__ __forceinline__ void store_rows(float* to, const Place& p, const float (&x)[RE]) {
    if (p.cl) return;
#pragma unroll
    for (int r = 0; r < RE; ++r) to[p.row + r] = x[r];
}

// A value per column that every lane has for its own rows only: added over the lanes that share columns, and stored.
// Lanes halve what they hold at every exchange, as long as it is even. The first TURNS exchanges need not choose what
// to give away: of two lanes that meet there, one has its columns in an order in which its second half is the other's
// first.
template <int N, int BIT> __device__ __forceinline__ void fold(float* to, const Place& p, float (&x)[N], int first) {
    if constexpr (BIT == 0) {
#pragma unroll
        for (int i = 0; i < N; ++i) to[p.column(first + i)] = x[i];
    } else if constexpr (N > CE >> TURNS) {
        float half[N / 2];
#pragma unroll
        for (int i = 0; i < N / 2; ++i) half[i] = x[i] + __shfl_xor_sync(~0u, x[i + N / 2], BIT * CL);
        fold<N / 2, BIT / 2>(to, p, half, first);
    } else if constexpr (N % 2 == 0) {
        const bool upper = p.rl & BIT;
        float half[N / 2];
#pragma unroll
        for (int i = 0; i < N / 2; ++i) {
            const float other = __shfl_xor_sync(~0u, upper ? x[i] : x[i + N / 2], BIT * CL);
            half[i] = (upper ? x[i + N / 2] : x[i]) + other;
        }
        fold<N / 2, BIT / 2>(to, p, half, first + (upper ? N / 2 : 0));
    } else {
#pragma unroll
        for (int i = 0; i < N; ++i) x[i] += __shfl_xor_sync(~0u, x[i], BIT * CL);
        fold<N, BIT / 2>(to, p, x, first);
    }
}

__device__ __forceinline__ void store_columns(float* to, const Place& p, float (&x)[CE]) {
    fold<CE, RL / 2>(to + p.warp * (TILE * CS), p, x, 0);
}

__device__ __forceinline__ void store_scalar(float* to, const Place& p, float x) {
    if (p.cl == 0) to[p.warp * RL + p.rl] = x;
}

// Steps of a stream into shared memory, by all threads. UNIT: bytes of a copy, 0 where rows are not aligned.
template <class X, int UNIT, int WIDTH, int PITCH>
__device__ __forceinline__ void copy_tile(char* to, const X* from, int step, int steps, int width) {
    constexpr int PER = (UNIT ? UNIT : int(sizeof(X))) / int(sizeof(X)), ACROSS = (WIDTH + PER - 1) / PER;
    constexpr int UNITS = TILE * ACROSS, ROUNDS = (UNITS + THREADS - 1) / THREADS;
#pragma unroll(ROUNDS <= 8 ? ROUNDS : 1)
    for (int n = 0; n < ROUNDS; ++n) {
        const int unit = threadIdx.x + n * THREADS;
        if (UNITS % THREADS && unit >= UNITS) break;
        const int k = unit / ACROSS, i = unit % ACROSS * PER;
        const bool valid = k < steps && i < width;
        const X* source = from + k * step + i;
        X* target = reinterpret_cast<X*>(to + k * PITCH) + i;
        if constexpr (UNIT) {
            copy_async<UNIT>(target, valid ? source : from, valid);
        } else {
            *target = valid ? *source : narrow<X>(0.0f);
        }
    }
}

template <class X, int PITCH> __device__ __forceinline__ float staged(const char* raw, int k, int i) {
    return wide(reinterpret_cast<const X*>(raw + k * PITCH)[i]);
}

// Whether a document begins at this lane's step of a tile; a ballot of it is the tile's.
__device__ __forceinline__ bool begins(const Args& a, const Place& p, i64 tile) {
    const i64 t = tile * TILE + p.lane;
    return RESET && p.lane < TILE && tile >= 0 && t < a.T && a.reset[p.b * a.T + t];
}

__device__ __forceinline__ void load_state(const Args& a, const Place& p, float (&h)[RE][CE]) {
#pragma unroll
    for (int r = 0; r < RE; ++r)
#pragma unroll
        for (int c = 0; c < CE; ++c) h[r][c] = p.has_row(r) && p.has_column(c) ? a.start[p.entry(a, r, c)] : 0.0f;
}

__device__ __forceinline__ void store_state(const Args& a, const Place& p, const float (&h)[RE][CE]) {
#pragma unroll
    for (int r = 0; r < RE; ++r)
#pragma unroll
        for (int c = 0; c < CE; ++c)
            if (p.has_row(r) && p.has_column(c)) a.stop[p.entry(a, r, c)] = h[r][c];
}

// Marks: what a lane holds before a segment, four entries side by side, lanes next to each other.
constexpr int MARK_STEP = THREADS * E / 4;
struct alignas(4 * sizeof(MARK)) Quarter { MARK e[4]; };

__device__ __forceinline__ Quarter* mark(const Args& a, i64 segment) {
    const i64 segments = (a.T + SEGMENT - 1) / SEGMENT;
    return reinterpret_cast<Quarter*>(a.marks) + (blockIdx.x * segments + segment) * MARK_STEP + threadIdx.x;
}

template <class M> __device__ __forceinline__ void put(M (&to)[4], int i, float x, float y) {
    to[i] = narrow<M>(x);
    to[i + 1] = narrow<M>(y);
}
// Of a bounded state, which only the caller's first one can be beyond fp16.
template <> __device__ __forceinline__ void put<fp16>(fp16 (&to)[4], int i, float x, float y) {
    const unsigned both = saturated(x, y);
    memcpy(to + i, &both, sizeof(both));
}

__device__ __forceinline__ void store_mark(Quarter* to, const float (&h)[RE][CE]) {
#pragma unroll
    for (int e = 0; e < E; e += 4) {
        Quarter q;
#pragma unroll
        for (int i = 0; i < 4; i += 2) put(q.e, i, h[(e + i) / CE][(e + i) % CE], h[(e + i + 1) / CE][(e + i + 1) % CE]);
        to[e / 4 * THREADS] = q;
    }
}

__device__ __forceinline__ void load_mark(const Quarter* from, Quarter (&q)[E / 4]) {
#pragma unroll
    for (int i = 0; i < E / 4; ++i) q[i] = from[i * THREADS];
}

__device__ __forceinline__ void unpack(const Quarter (&q)[E / 4], float (&h)[RE][CE]) {
#pragma unroll
    for (int e = 0; e < E; ++e) h[e / CE][e % CE] = wide(q[e / 4].e[e % 4]);
}

__device__ __forceinline__ void set_zero(float (&h)[RE][CE]) {
#pragma unroll
    for (int r = 0; r < RE; ++r)
#pragma unroll
        for (int c = 0; c < CE; ++c) h[r][c] = 0.0f;
}

__device__ __forceinline__ void copy(const float (&from)[RE][CE], float (&to)[RE][CE]) {
#pragma unroll
    for (int r = 0; r < RE; ++r)
#pragma unroll
        for (int c = 0; c < CE; ++c) to[r][c] = from[r][c];
}

using Tile = float (&)[RE][CE];
using Row = float (&)[RE];
// Where the next tile of each stream is, and where gradients by the next tile go.
struct Walk {
    const char* from[NU];
    char* to[NU];
};
__device__ __forceinline__ void begin(const Args& a, const Place& p, Walk& w, i64 tile);
// Streams of a tile on their way to `raw`, and on to the next tile; weights into shared memory.
__device__ __forceinline__ void fetch(const Args& a, const Place& p, Walk& w, char* raw, i64 tile);
__device__ __forceinline__ void load_weights(const Args& a, const Place& p, char* shared);
// What depends on inputs alone, for all steps of a tile.
__device__ __forceinline__ void prepare(const char* raw, char* shared);
#if FORWARD
// h becomes the state after step k, y what is seen of it.
__device__ __forceinline__ void step(const Place& p, char* shared, int k, Tile h, Row y);

extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT) forward(const __grid_constant__ Args a) {
    extern __shared__ __align__(16) char shared[];
    const Place p(a);
    float h[RE][CE];
    load_state(a, p, h);
    load_weights(a, p, shared);
    Walk w;
    begin(a, p, w, 0);
    fetch(a, p, w, shared, 0);
    commit();
    bool flag = begins(a, p, 0);
    Quarter* marks = mark(a, 0);
    const int y_step = int(a.H) * ROWS;
    YTYPE* y_at = static_cast<YTYPE*>(a.y) + (p.b * a.T * a.H + p.h) * ROWS + p.g * NR + p.row;
    for (i64 i = 0; i < p.tiles; ++i) {
        arrived<0>();
        meet();
        if (i + 1 < p.tiles) fetch(a, p, w, shared + (i + 1) % 2 * RAW, i + 1);
        commit();
        prepare(shared + i % 2 * RAW, shared);
        const unsigned resets = RESET ? __ballot_sync(~0u, flag) : 0;
        flag = begins(a, p, i + 1);
        meet();
        const int steps = p.steps(a, i);
#pragma unroll UNROLL
        for (int k = 0; k < (EVEN ? TILE : steps); ++k) {
            if (MARKS && k % SEGMENT == 0) {
                store_mark(marks, h);
                marks += MARK_STEP;
            }
            if (RESET && resets >> k & 1) set_zero(h);
            float y[RE];
            step(p, shared, k, h, y);
            if (p.cl == 0) {
#pragma unroll
                for (int r = 0; r < RE; ++r)
                    if (p.has_row(r)) y_at[r] = narrow<YTYPE>(y[r]);
            }
            y_at += y_step;
        }
    }
    store_state(a, p, h);
}
#else
// `step` without its output; what `adjoint` needs of the sums in it is kept.
__device__ __forceinline__ void replay(const Place& p, char* shared, int k, Tile h);
// From the states before and after step k: dh becomes the adjoint of the former; gradients go to shared memory.
__device__ __forceinline__ void adjoint(const Place& p, char* shared, int k, Tile h, Tile s, Tile dh);
// Gradients by streams, for all steps of a tile; those by weights add up in shared memory.
__device__ __forceinline__ void pull_back(
    const Args& a, const Place& p, Walk& w, const char* raw, char* shared, i64 tile);
__device__ __forceinline__ void clear_weights(char* shared);
__device__ __forceinline__ void store_weights(const Args& a, const Place& p, const char* shared);

extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT) backward(const __grid_constant__ Args a) {
    extern __shared__ __align__(16) char shared[];
    const Place p(a);
    float dh[RE][CE];
    load_state(a, p, dh);
    load_weights(a, p, shared);
    clear_weights(shared);
    Walk w;
    begin(a, p, w, p.tiles - 1);
    fetch(a, p, w, shared + (p.tiles - 1) % 2 * RAW, p.tiles - 1);
    commit();
    bool flag = begins(a, p, p.tiles - 1);
    const Quarter* marks = mark(a, (a.T - 1) / SEGMENT);
    Quarter packed[E / 4];
    load_mark(marks, packed);
    for (i64 i = p.tiles - 1; i >= 0; --i) {
        arrived<0>();
        meet();
        if (i) fetch(a, p, w, shared + (i - 1) % 2 * RAW, i - 1);
        commit();
        prepare(shared + i % 2 * RAW, shared);
        const unsigned resets = RESET ? __ballot_sync(~0u, flag) : 0;
        flag = begins(a, p, i - 1);
        meet();
        const int steps = p.steps(a, i);
#pragma unroll 1
        for (int first = (steps - 1) / SEGMENT * SEGMENT; first >= 0; first -= SEGMENT) {
            float s[RE][CE], held[SEGMENT][RE][CE];
            unpack(packed, s);
            marks -= MARK_STEP;
            if (i || first) load_mark(marks, packed);
#pragma unroll
            for (int j = 0; j < SEGMENT; ++j) {
                const int k = first + j;
                if (!EVEN && k >= steps) break;
                copy(s, held[j]);
                if (RESET && resets >> k & 1) set_zero(s);
                replay(p, shared, k, s);
            }
            __syncwarp();  // sums of the replay are stored by one lane of those that share a row
#pragma unroll
            for (int j = SEGMENT - 1; j >= 0; --j) {
                const int k = first + j;
                if (!EVEN && k >= steps) continue;
                const bool fresh = RESET && resets >> k & 1;
                float before[RE][CE];
                copy(held[j], before);
                if (fresh) set_zero(before);
                adjoint(p, shared, k, before, s, dh);
                if (fresh) set_zero(dh);
                copy(held[j], s);
            }
        }
        meet();
        pull_back(a, p, w, shared + i % 2 * RAW, shared, i);
    }
    store_state(a, p, dh);
    meet();
    store_weights(a, p, shared);
}
#endif

}  // namespace recurrence
