// Instructions of tensor cores, and of thread-block clusters, which exist from sm_90 on. Behind ptx.cuh.
//
// For older GPUs the latter compile to a trap, so that one text is checked for all of them.

extern __shared__ __align__(128) char dynamic_shared_memory[];

namespace recurrence {

__device__ __forceinline__ char* dynamic_shared() { return dynamic_shared_memory; }

// c += a b for a of 16 x 16 and b of 16 x 8, spread over a warp as PTX has it.
__device__ __forceinline__ void mma(float (&c)[4], const uint4& a, const uint2& b) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b.x), "r"(b.y));
}

using Barrier = unsigned long long;  // an mbarrier
using Word = unsigned long long;

__device__ __forceinline__ unsigned shared_address(const void* at) {
    return static_cast<unsigned>(__cvta_generic_to_shared(at));
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

__device__ __forceinline__ int cluster_rank() {
    int rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

// All threads of the cluster; what they wrote before is seen by all behind it.
__device__ __forceinline__ void cluster_meet() {
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// A barrier whose phases end with one arrival and the bytes that it announces. Others see it behind cluster_meet.
__device__ __forceinline__ void begin(Barrier* barrier) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(barrier)) : "memory");
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// The one arrival of a phase, and how many bytes it waits for. Bytes may have come before.
__device__ __forceinline__ void expect(Barrier* barrier, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
                 : "memory");
}

constexpr unsigned long long LOST = 20000000000;  // nanoseconds after which what does not come will never come

__device__ __forceinline__ unsigned long long nanoseconds() {
    unsigned long long now;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
    return now;
}

// Until a phase of this parity has ended; its bytes are seen behind it. One that never ends ends the launch.
//
// An acquire of the block, not of the cluster: what came lies in the block's own shared memory, which nothing caches, and
// the wider one throws the whole L1 cache away at every step (CCTL.IVALL).
__device__ __forceinline__ void await(Barrier* barrier, int parity) {
    unsigned done;
    unsigned long long since = 0;
    for (unsigned polls = 1;; ++polls) {
        asm volatile(
            "{\n.reg .pred p;\n"
            "mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
            : "=r"(done)
            : "r"(shared_address(barrier)), "r"(parity)
            : "memory");
        if (done) return;
        if (polls % 1024) continue;
        const unsigned long long now = nanoseconds();
        if (since == 0) since = now;
        if (now - since > LOST) asm volatile("trap;");
    }
}

// A word to the same place in another block's shared memory, and its bytes to the same barrier there.
__device__ __forceinline__ void store_async(char* to, Word word, Barrier* barrier, int rank) {
    unsigned there, signal;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(shared_address(to)), "r"(rank));
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(signal) : "r"(shared_address(barrier)), "r"(rank));
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.b64 [%0], %1, [%2];" ::"r"(there), "l"(word),
                 "r"(signal)
                 : "memory");
}

#else

__device__ __forceinline__ int cluster_rank() { return 0; }
__device__ __forceinline__ void cluster_meet() { asm volatile("trap;"); }
__device__ __forceinline__ void begin(Barrier*) { asm volatile("trap;"); }
__device__ __forceinline__ void expect(Barrier*, int) {}
__device__ __forceinline__ void await(Barrier*, int) {}
__device__ __forceinline__ void store_async(char*, Word, Barrier*, int) {}

#endif

}  // namespace recurrence
