// Behind dense.cuh: the walk back. Message n are the gradients by products of step T - 1 - n.

namespace recurrence {

// What step t saved, from the ring: streams, the state before, products, what flows to the outputs.
__device__ __forceinline__ void inputs(const char* stage, int i, float (&x)[NX + 1][V]);
__device__ __forceinline__ void states(const char* stage, int i, float (&h)[S][V]);
__device__ __forceinline__ void products(const char* stage, int i, float (&p)[G][V]);
__device__ __forceinline__ void cotangents(const char* stage, int i, float (&dy)[NY][V]);
__device__ __forceinline__ void last_state(const Args& a, const Place& p, const Item& o, float (&s)[S][V]);
struct Known {
    const Values *h, *s, *p, *x, *w, *dy;
};
struct Found {
    Values *dh, *dp, *dx, *dw;
};
// Of unit v, where d flows to the state after the step and q to what was sent of it.
__device__ __forceinline__ void adjoint(int v, const Known& known, const Values* d, const Values& q, const Found& found);
// What flows to the first state where q flows to what was sent of it.
__device__ __forceinline__ void adjoint_of_first(int v, const Values* h, const Values& q, Values* dh);
__device__ __forceinline__ void write(const Args& a, const Place& p, const Item& o, i64 t, const Values* dx);
__device__ __forceinline__ void save(const Args& a, const Place& p, const Item& o, i64 t, const Values* dp);

// Places among what a thread keeps: the adjoint of the state after a step, that state, gradients by weights.
constexpr int ADJOINT = 0, STATE = S, SUMS = 2 * S;

extern "C" __global__ void __launch_bounds__(THREADS, 1) backward(const __grid_constant__ Args a) {
    char* const shared = dynamic_shared();
    const Place p(a);
    const Matrix matrix(a, p, shared);
    load_weights(a, p, shared);
    begin_exchanges(shared, p.rank);
#pragma unroll 1
    for (int f = 0; f < F; ++f)
#pragma unroll
        for (int i = 0; i < OWN; ++i) {
            const Item o(a, p, f, i);
            if (!o.exists) continue;
            float d[S][V], s[S][V], sums[NW + 1][V] = {};
#pragma unroll
            for (int j = 0; j < S; ++j)
#pragma unroll
                for (int v = 0; v < V; ++v) d[j][v] = o.inside ? a.start[state_place(a, p, o, j) + v] : 0.0f;
            last_state(a, p, o, s);
            keep<S>(shared, f, i, ADJOINT, d);
            keep<S>(shared, f, i, STATE, s);
            keep<NW>(shared, f, i, SUMS, sums);
        }
    for (i64 n = 0; n < AHEAD; ++n)
        for (int f = 0; f < F; ++f) fetch_step(a, p, shared, f, n, a.T - 1 - n);
    for (i64 n = 0; n < a.T; ++n) {
        const i64 t = a.T - 1 - n;
#pragma unroll
        for (int f = 0; f < F; ++f) {
            const Exchange exchange{shared, p.rank, f};
            float* const partial = partial_of(shared, f, n);
            if (STAGES > 1) fetch_step(a, p, shared, f, n + AHEAD, t - AHEAD);
            bool fresh[OWN], later[OWN];  // whether a document begins at this step, and at the one after
#pragma unroll
            for (int i = 0; i < OWN; ++i) {
                const Item o(a, p, f, i);
                fresh[i] = begins(a, o, t);
                later[i] = begins(a, o, t + 1);
            }
            if (n) matrix.multiply(p, exchange.receive(n - 1), partial);
            __syncthreads();
            arrived_step();
            const char* stage = stage_of(shared, f, n);
#pragma unroll
            for (int i = 0; i < OWN; ++i) {
                const Item o(a, p, f, i);
                if (!o.exists) continue;
                float x[NX + 1][V], w[NW + 1][V], h[S][V], before[S][V], sent[G][V], dy[NY][V], q[V] = {};
                float d[S][V], s[S][V], dx[NX + 1][V], dw[NW + 1][V], dp[G][V], dh[S][V], sums[NW + 1][V];
                read_kept<S>(shared, f, i, ADJOINT, d);
                read_kept<S>(shared, f, i, STATE, s);
                inputs(stage, i, x);
                states(stage, i, h);
                products(stage, i, sent);
                cotangents(stage, i, dy);
                weights_of(shared, o, w);
                if (n) total(partial, o.local, o.row, q);
#pragma unroll
                for (int v = 0; v < V; ++v) {
#pragma unroll
                    for (int j = 0; j < S; ++j) {
                        before[j][v] = fresh[i] ? 0.0f : h[j][v];
                        if (later[i]) d[j][v] = 0.0f;
                    }
                    if (later[i]) q[v] = 0.0f;
                    adjoint(v, Known{before, s, sent, x, w, dy}, d, q, Found{dh, dp, dx, dw});
#pragma unroll
                    for (int g = 0; g < G; ++g)
                        if (!o.has(v)) dp[g][v] = 0.0f;
                }
#pragma unroll
                for (int g = 0; g < G; ++g) exchange.send(n, g * D + o.unit, o.row, dp[g]);
                if (o.inside) write(a, p, o, t, dx);
                if (o.inside) save(a, p, o, t, dp);
                keep<S>(shared, f, i, ADJOINT, dh);
                keep<S>(shared, f, i, STATE, h);
                read_kept<NW>(shared, f, i, SUMS, sums);
#pragma unroll
                for (int j = 0; j < NW; ++j)
#pragma unroll
                    for (int v = 0; v < V; ++v) sums[j][v] += dw[j][v];
                keep<NW>(shared, f, i, SUMS, sums);
            }
            if (STAGES == 1) fetch_step(a, p, shared, f, n + AHEAD, t - AHEAD);
        }
    }
#pragma unroll 1
    for (int f = 0; f < F; ++f) {
        const Exchange exchange{shared, p.rank, f};
        float* const partial = partial_of(shared, f, a.T);
        matrix.multiply(p, exchange.receive(a.T - 1), partial);
        __syncthreads();
#pragma unroll
        for (int i = 0; i < OWN; ++i) {
            const Item o(a, p, f, i);
            if (!o.inside) continue;
            const bool fresh = begins(a, o, 0);
            float q[V], d[S][V], s[S][V], dh[S][V], sums[NW + 1][V];
            read_kept<S>(shared, f, i, ADJOINT, d);
            read_kept<S>(shared, f, i, STATE, s);
            read_kept<NW>(shared, f, i, SUMS, sums);
            total(partial, o.local, o.row, q);
#pragma unroll
            for (int v = 0; v < V; ++v) {
                adjoint_of_first(v, s, q, dh);
#pragma unroll
                for (int j = 0; j < S; ++j) a.stop[state_place(a, p, o, j) + v] = fresh ? 0.0f : d[j][v] + dh[j][v];
            }
#pragma unroll
            for (int j = 0; j < NW; ++j)
                store(a.dw + ((j * a.B + o.sequence()) * a.H + p.head) * WIDTH + o.unit, sums[j]);
        }
    }
    cluster_meet();  // no block leaves while its shared memory may be written
}

}  // namespace recurrence
