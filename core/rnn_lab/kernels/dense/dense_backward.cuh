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
    for (int f = p.team; f < F; f += TEAMS)
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
    Ring ring(a, p, shared);
    Turn now, ahead;
    for (i64 turn = -LAG; now.n < a.T; ++turn) {
        const bool own = TEAMS == 1 || (turn >= 0 && turn % TEAMS == p.team);
        const i64 n = now.n, t = a.T - 1 - n;
        bool fresh[OWN], later[OWN];  // whether a document begins at this step, and at the one after
        if (own) {
            ring.next(a, p, shared);
#pragma unroll
            for (int i = 0; i < OWN; ++i) {
                const Item o(a, p, now.f, i);
                fresh[i] = begins(a, o, t);
                later[i] = begins(a, o, t + 1);
            }
        }
        if (ahead.n < a.T) {
            const Exchange exchange{shared, p.rank, ahead.f};
            if (ahead.n) matrix.multiply(p, exchange.receive(ahead.n - 1), partial_of(shared, ahead.f));
            multiplied(p, ahead, (turn + LAG) % TEAMS);
            ahead.advance(1);
        }
        if (own) {
            const Exchange exchange{shared, p.rank, now.f};
            const float* const partial = partial_of(shared, now.f);
            await_product(now);
            const char* stage = ring.take(p, shared);
#pragma unroll
            for (int i = 0; i < OWN; ++i) {
                const Item o(a, p, now.f, i);
                if (!o.exists) continue;
                float x[NX + 1][V], w[NW + 1][V], h[S][V], before[S][V], sent[G][V], dy[NY][V], q[V] = {};
                float d[S][V], s[S][V], dx[NX + 1][V], dw[NW + 1][V], dp[G][V], dh[S][V], sums[NW + 1][V];
                read_kept<S>(shared, now.f, i, ADJOINT, d);
                read_kept<S>(shared, now.f, i, STATE, s);
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
                keep<S>(shared, now.f, i, ADJOINT, dh);
                keep<S>(shared, now.f, i, STATE, h);
                read_kept<NW>(shared, now.f, i, SUMS, sums);
#pragma unroll
                for (int j = 0; j < NW; ++j)
#pragma unroll
                    for (int v = 0; v < V; ++v) sums[j][v] += dw[j][v];
                keep<NW>(shared, now.f, i, SUMS, sums);
            }
        }
        if (turn >= 0) now.advance(1);
    }
#pragma unroll 1
    for (int f = 0; f < F; ++f) {
        const Exchange exchange{shared, p.rank, f};
        float* const partial = partial_of(shared, f);
        matrix.multiply(p, exchange.receive(a.T - 1), partial);
        __syncthreads();
#pragma unroll
        for (int i = 0; i < OWN; ++i) {
            const Item o(a, p, f, i);
            if (!o.inside || f % TEAMS != p.team) continue;
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
