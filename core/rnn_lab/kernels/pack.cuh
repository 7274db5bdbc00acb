// V numbers side by side in memory, moved as one word. Behind functions.cuh.

namespace recurrence {

template <class E> struct alignas(sizeof(E) * V) Pack { E e[V]; };

template <class E> __device__ __forceinline__ void load(const void* at, float (&x)[V]) {
    const Pack<E> p = *static_cast<const Pack<E>*>(at);
#pragma unroll
    for (int v = 0; v < V; ++v) x[v] = wide(p.e[v]);
}

template <class E> __device__ __forceinline__ void store(E* at, const float (&x)[V]) {
    Pack<E> p;
#pragma unroll
    for (int v = 0; v < V; ++v) p.e[v] = narrow<E>(x[v]);
    *reinterpret_cast<Pack<E>*>(at) = p;
}

}  // namespace recurrence
