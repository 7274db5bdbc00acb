// Element-wise recurrence: one warp walks 32 * V channels of one sequence through time.
//
// What is printed before this text (kernels.diagonal.cuda): the constants NX and NW (streams, weights), V (channels of a
// lane), UNIT (bytes of an asynchronous copy; 0: none fits), TILE (steps), STAGES (tiles in shared memory), EVEN (whole
// tiles only), RESET and MARKS; FORWARD, which kernel is meant; and STREAMS, the types of the streams and of y or dy.
// After it: `update`, `output` and `gradients`. Inputs of the STAGES - 1 tiles ahead are on their way to shared memory while one is computed; a block is
// one warp, so that nothing waits for a block and any number of channels spreads evenly over the GPU.

namespace recurrence {

template <int I, class First, class... Rest> struct Nth : Nth<I - 1, Rest...> {};
template <class First, class... Rest> struct Nth<0, First, Rest...> { using type = First; };
template <int I> using Stream = Nth<I, STREAMS>;

constexpr int ROW = 32 * V;  // channels of a warp
constexpr int NWP = NW ? NW : 1;

struct Args {
    const void* x[NX + 1];  // streams, then dy
    i64 xb[NX + 1];         // elements from one sequence to the next
    i64 xt[NX + 1];         // elements from one step to the next
    const float* w[NWP];
    void* dx[NX];
    float* dw[NWP];
    const float* start;  // state before the first step; backward: adjoint of the state after the last
    float* stop;         // state after the last step; backward: adjoint of the state before the first
    void* y;
    float* marks;
    const unsigned char* reset;
    i64 T, C;
};

// Calls f with Index<0>, Index<1>, ..., Index<N - 1>.
template <int I> struct Index { static constexpr int value = I; };

template <int N, int I = 0, class F> __device__ __forceinline__ void each(F f) {
    if constexpr (I < N) {
        f(Index<I>{});
        each<N, I + 1>(f);
    }
}

// Tiles in shared memory: for every stream, TILE rows of ROW channels.

template <int I> __device__ constexpr int offset() {
    if constexpr (I == 0) {
        return 0;
    } else {
        return offset<I - 1>() + TILE * ROW * int(sizeof(typename Stream<I - 1>::type));
    }
}

// TILE rows into shared memory; rows from `rows` on and channels from `channels` on are zero.
template <class E>
__device__ __forceinline__ void copy_rows(char* to, const E* from, i64 step, int rows, int channels) {
    constexpr int PER = (UNIT ? UNIT : int(sizeof(E))) / int(sizeof(E));
    constexpr int ACROSS = ROW / PER;
    static_assert(TILE * ACROSS % 32 == 0, "whole warps copy");
#pragma unroll 4
    for (int unit = threadIdx.x; unit < TILE * ACROSS; unit += 32) {
        const int row = unit / ACROSS, column = unit % ACROSS * PER;
        const bool valid = row < rows && column < channels;
        const E* source = from + row * step + column;
        E* target = reinterpret_cast<E*>(to) + row * ROW + column;
        if constexpr (UNIT) {
            copy_async<UNIT>(target, valid ? source : from, valid);
        } else {
            *target = valid ? *source : narrow<E>(0.0f);
        }
    }
}

// Where a warp works.
struct Place {
    i64 b, first, c, tiles;  // sequence; channel of lane 0 and of this lane; tiles in time
    int channels;            // of the warp
    bool inside;

    __device__ __forceinline__ explicit Place(const Args& a) {
        const i64 groups = (a.C + ROW - 1) / ROW;
        b = blockIdx.x / groups;
        first = blockIdx.x % groups * ROW;
        c = first + threadIdx.x * V;
        channels = int(min(a.C - first, i64(ROW)));
        inside = c < a.C;
        tiles = (a.T + TILE - 1) / TILE;
    }
};

// The first N streams of tile i, on their way to `stage`.
template <int N> __device__ __forceinline__ void fetch(const Args& a, const Place& p, char* stage, i64 i) {
    each<N>([&](auto index) {
        constexpr int I = decltype(index)::value;
        using E = typename Stream<I>::type;
        const E* from = static_cast<const E*>(a.x[I]) + p.b * a.xb[I] + i * TILE * a.xt[I] + p.first;
        copy_rows<E>(stage + offset<I>(), from, a.xt[I], int(min(a.T - i * TILE, i64(TILE))), p.channels);
    });
}

// The first NX streams at step k of a tile, for the channels of this lane.
__device__ __forceinline__ void inputs(const char* stage, int k, float (&x)[V][NX]) {
    each<NX>([&](auto index) {
        constexpr int I = decltype(index)::value;
        using E = typename Stream<I>::type;
        float row[V];
        load<E>(stage + offset<I>() + (k * ROW + threadIdx.x * V) * sizeof(E), row);
#pragma unroll
        for (int v = 0; v < V; ++v) x[v][I] = row[v];
    });
}

// Whether a document begins at this lane's step of tile i; a ballot of it is the tile's.
__device__ __forceinline__ bool begins(const Args& a, const Place& p, i64 i) {
    const i64 t = i * TILE + threadIdx.x;
    return RESET && threadIdx.x < TILE && i >= 0 && t < a.T && a.reset[p.b * a.T + t];
}

// What a lane keeps from the first step on. These rows may stand anywhere, so they are read one by one.
__device__ __forceinline__ void begin(const Args& a, const Place& p, float (&w)[V][NWP], float (&state)[V]) {
#pragma unroll
    for (int v = 0; v < V; ++v) {
        state[v] = p.inside ? a.start[p.b * a.C + p.c + v] : 0.0f;
#pragma unroll
        for (int j = 0; j < NW; ++j) w[v][j] = p.inside ? a.w[j][p.c + v] : 0.0f;
    }
}

struct Gradients {
    float h, x[NX], w[NWP];
};

using X = const float (&)[NX];
using W = const float (&)[NWP];
__device__ __forceinline__ float update(float h, X x, W w);
__device__ __forceinline__ float output(float s, X x, W w);
__device__ __forceinline__ Gradients gradients(float h, float s, float dh, float dy, X x, W w);

#if FORWARD
extern "C" __global__ void __launch_bounds__(32, 1) forward(const __grid_constant__ Args a) {
    using Y = Stream<NX>::type;
    extern __shared__ __align__(16) char shared[];
    constexpr int BYTES = offset<NX>();
    const Place p(a);
    float w[V][NWP], h[V];
    begin(a, p, w, h);
    for (int i = 0; i < STAGES - 1; ++i) {
        if (i < p.tiles) fetch<NX>(a, p, shared + i * BYTES, i);
        commit();
    }
    bool flag = begins(a, p, 0);
    for (i64 i = 0; i < p.tiles; ++i) {
        arrived<STAGES - 2>();
        __syncwarp();
        const i64 next = i + STAGES - 1;
        if (next < p.tiles) fetch<NX>(a, p, shared + next % STAGES * BYTES, next);
        commit();
        const unsigned resets = RESET ? __ballot_sync(~0u, flag) : 0;
        flag = begins(a, p, i + 1);
        if (MARKS && p.inside) store(a.marks + (p.b * p.tiles + i) * a.C + p.c, h);
        const char* stage = shared + i % STAGES * BYTES;
        Y* y_tile = static_cast<Y*>(a.y) + (p.b * a.T + i * TILE) * a.C + p.c;
#pragma unroll
        for (int k = 0; k < TILE; ++k) {
            if (!EVEN && i * TILE + k >= a.T) break;
            float x[V][NX], y[V];
            inputs(stage, k, x);
#pragma unroll
            for (int v = 0; v < V; ++v) {
                h[v] = update(resets >> k & 1 ? 0.0f : h[v], x[v], w[v]);
                y[v] = output(h[v], x[v], w[v]);
            }
            if (p.inside) store(y_tile + k * a.C, y);
        }
    }
    if (p.inside) store(a.stop + p.b * a.C + p.c, h);
}
#else
extern "C" __global__ void __launch_bounds__(32, 1) backward(const __grid_constant__ Args a) {
    using Y = Stream<NX>::type;
    extern __shared__ __align__(16) char shared[];
    constexpr int MARK = offset<NX + 1>(), BYTES = MARK + ROW * int(sizeof(float));
    const Place p(a);
    float w[V][NWP], dw[V][NWP] = {}, dh[V];
    begin(a, p, w, dh);
    const auto fetch_tile = [&](int stage, i64 i) {
        fetch<NX + 1>(a, p, shared + stage * BYTES, i);
        const float* mark = a.marks + (p.b * p.tiles + i) * a.C;
        float* to = reinterpret_cast<float*>(shared + stage * BYTES + MARK) + threadIdx.x * V;
        copy_async<4 * V>(to, p.inside ? mark + p.c : mark, p.inside);
    };
    for (int n = 0; n < STAGES - 1; ++n) {
        if (n < p.tiles) fetch_tile(n, p.tiles - 1 - n);
        commit();
    }
    bool flag = begins(a, p, p.tiles - 1);
    for (i64 n = 0; n < p.tiles; ++n) {
        const i64 i = p.tiles - 1 - n, next = n + STAGES - 1;
        arrived<STAGES - 2>();
        __syncwarp();
        if (next < p.tiles) fetch_tile(next % STAGES, p.tiles - 1 - next);
        commit();
        const unsigned resets = RESET ? __ballot_sync(~0u, flag) : 0;
        flag = begins(a, p, i - 1);
        const char* stage = shared + n % STAGES * BYTES;
        const i64 tile = (p.b * a.T + i * TILE) * a.C + p.c;
        float s[TILE + 1][V];
        load<float>(stage + MARK + threadIdx.x * V * sizeof(float), s[0]);
#pragma unroll
        for (int k = 0; k < TILE; ++k) {
            if (!EVEN && i * TILE + k >= a.T) break;
            float x[V][NX];
            inputs(stage, k, x);
#pragma unroll
            for (int v = 0; v < V; ++v) s[k + 1][v] = update(resets >> k & 1 ? 0.0f : s[k][v], x[v], w[v]);
        }
#pragma unroll
        for (int k = TILE - 1; k >= 0; --k) {
            if (!EVEN && i * TILE + k >= a.T) continue;
            float x[V][NX], dy[V];
            inputs(stage, k, x);
            load<Y>(stage + offset<NX>() + (k * ROW + threadIdx.x * V) * sizeof(Y), dy);
            Gradients g[V];
#pragma unroll
            for (int v = 0; v < V; ++v) {
                const bool fresh = resets >> k & 1;
                g[v] = gradients(fresh ? 0.0f : s[k][v], s[k + 1][v], dh[v], dy[v], x[v], w[v]);
                dh[v] = fresh ? 0.0f : g[v].h;
#pragma unroll
                for (int j = 0; j < NW; ++j) dw[v][j] += g[v].w[j];
            }
            each<NX>([&](auto index) {
                constexpr int I = decltype(index)::value;
                using E = typename Stream<I>::type;
                float dx[V];
#pragma unroll
                for (int v = 0; v < V; ++v) dx[v] = g[v].x[I];
                if (p.inside) store(static_cast<E*>(a.dx[I]) + tile + k * a.C, dx);
            });
        }
    }
    if (!p.inside) return;
    store(a.stop + p.b * a.C + p.c, dh);
#pragma unroll
    for (int j = 0; j < NW; ++j) {
        float row[V];
#pragma unroll
        for (int v = 0; v < V; ++v) row[v] = dw[v][j];
        store(a.dw[j] + p.b * a.C + p.c, row);
    }
}
#endif

}  // namespace recurrence
