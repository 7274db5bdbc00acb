// Behind dense.cuh: the walk from the first step to the last. Message n is the wire of the state before step n.

namespace recurrence {

__device__ __forceinline__ void inputs(const char* stage, int i, float (&x)[NX + 1][V]);
// Of unit v: the next state, what is sent of a state, what is seen of it.
__device__ __forceinline__ void update(int v, const Values* h, const Values* p, const Values* x, const Values* w, Values* s);
__device__ __forceinline__ float wire(int v, const Values* h);
__device__ __forceinline__ void output(int v, const Values* s, const Values* x, const Values* w, Values* y);
// Outputs of step t, what is saved of the state after it, and of the wire after it.
__device__ __forceinline__ void write(const Args& a, const Place& p, const Item& o, i64 t, const Values* y);
__device__ __forceinline__ void save(const Args& a, const Place& p, const Item& o, i64 t, const Values* s);
__device__ __forceinline__ void save_wire(const Args& a, const Place& p, const Item& o, i64 t, const Values& m);

// Sends message n, what step n begins with, and forgets the state where a document begins there.
__device__ __forceinline__ void hand_on(
    const Args& a, const Place& p, const Item& o, const Exchange& exchange, i64 n, bool fresh, Values* h
) {
    float m[V];
#pragma unroll
    for (int v = 0; v < V; ++v) {
#pragma unroll
        for (int s = 0; s < S; ++s)
            if (fresh || !o.has(v)) h[s][v] = 0.0f;
        m[v] = o.has(v) ? wire(v, h) : 0.0f;
    }
    exchange.send(n, o.unit, o.row, m);
    if (o.inside) save_wire(a, p, o, n, m);
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) forward(const __grid_constant__ Args a) {
    char* const shared = dynamic_shared();
    const Place p(a);
    const Matrix matrix(a, p, shared);
    load_weights(a, p, shared);
    begin_exchanges(shared, p.rank);
#pragma unroll 1
    for (int f = 0; f < F; ++f) {
        const Exchange exchange{shared, p.rank, f};
#pragma unroll
        for (int i = 0; i < OWN; ++i) {
            const Item o(a, p, f, i);
            if (!o.exists) continue;
            float h[S][V];
#pragma unroll
            for (int s = 0; s < S; ++s)
#pragma unroll
                for (int v = 0; v < V; ++v) h[s][v] = o.inside ? a.start[state_place(a, p, o, s) + v] : 0.0f;
            if (o.inside) save(a, p, o, -1, h);
            hand_on(a, p, o, exchange, 0, begins(a, o, 0), h);
            keep<S>(shared, f, i, 0, h);
        }
    }
    for (i64 t = 0; t < AHEAD; ++t)
        for (int f = 0; f < F; ++f) fetch_step(a, p, shared, f, t, t);
    for (i64 t = 0; t < a.T; ++t) {
#pragma unroll
        for (int f = 0; f < F; ++f) {
            const Exchange exchange{shared, p.rank, f};
            float* const partial = partial_of(shared, f, t);
            if (STAGES > 1) fetch_step(a, p, shared, f, t + AHEAD, t + AHEAD);
            bool fresh[OWN];
#pragma unroll
            for (int i = 0; i < OWN; ++i) fresh[i] = begins(a, Item(a, p, f, i), t + 1);
            matrix.multiply(p, exchange.receive(t), partial);
            __syncthreads();
            arrived_step();
            const char* stage = stage_of(shared, f, t);
#pragma unroll
            for (int i = 0; i < OWN; ++i) {
                const Item o(a, p, f, i);
                if (!o.exists) continue;
                float h[S][V], x[NX + 1][V], w[NW + 1][V], products[G][V], s[S][V], y[NY][V];
                read_kept<S>(shared, f, i, 0, h);
                inputs(stage, i, x);
                weights_of(shared, o, w);
#pragma unroll
                for (int g = 0; g < G; ++g) total(partial, g * U + o.local, o.row, products[g]);
#pragma unroll
                for (int v = 0; v < V; ++v) update(v, h, products, x, w, s);
#pragma unroll
                for (int j = 0; j < S; ++j)
#pragma unroll
                    for (int v = 0; v < V; ++v) {
                        if (!o.has(v)) s[j][v] = 0.0f;
                        h[j][v] = s[j][v];
                    }
                if (t + 1 < a.T) hand_on(a, p, o, exchange, t + 1, fresh[i], h);
                keep<S>(shared, f, i, 0, h);
#pragma unroll
                for (int v = 0; v < V; ++v) output(v, s, x, w, y);
                if (o.inside) write(a, p, o, t, y);
                if (o.inside) save(a, p, o, t, s);
            }
            if (STAGES == 1) fetch_step(a, p, shared, f, t + AHEAD, t + AHEAD);
        }
    }
#pragma unroll 1
    for (int f = 0; f < F; ++f)
#pragma unroll
        for (int i = 0; i < OWN; ++i) {
            const Item o(a, p, f, i);
            if (!o.inside) continue;
            float h[S][V];
            read_kept<S>(shared, f, i, 0, h);
#pragma unroll
            for (int s = 0; s < S; ++s) store(a.stop + state_place(a, p, o, s), h[s]);
        }
    cluster_meet();  // no block leaves while its shared memory may be written
}

}  // namespace recurrence
