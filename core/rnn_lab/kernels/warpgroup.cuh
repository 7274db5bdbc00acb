// Products of four warps together, which only Hopper has (sm_90a), and barriers that count arrivals. Behind cluster.cuh.

namespace recurrence {

using Described = unsigned long long;

#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)

// Registers that each thread of these four warps has from here on, fewer or more.
template <int COUNT> __device__ __forceinline__ void give_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
}
template <int COUNT> __device__ __forceinline__ void take_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
}

// A barrier whose phases end with so many arrivals. Others see it behind __syncthreads.
__device__ __forceinline__ void begin(Barrier* barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}

__device__ __forceinline__ void arrive(Barrier* barrier) {
    asm volatile("mbarrier.arrive.release.cta.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}

// One arrival, as soon as every copy that this thread has begun is there.
__device__ __forceinline__ void arrive_copied(Barrier* barrier) {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(shared_address(barrier)) : "memory");
}

// Eight rows of eight 16-bit numbers, two of a row in each lane, with rows and columns exchanged.
__device__ __forceinline__ unsigned transposed(unsigned two) {
    unsigned r;
    asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(r) : "r"(two));
    return r;
}

// A matrix in shared memory for `product`, in lines of 128 bytes, eight of them in 1,024 bytes that are aligned, whose eight
// words of 16 bytes lie where their number and the line's last three bits differ (the swizzle of 128 bytes). `apart` is how
// many bytes its next 64 columns are behind the first.
__device__ __forceinline__ Described described(const char* at, int apart) {
    return (shared_address(at) >> 4 & 0x3fff) | Described(apart >> 4) << 16 | Described(1024 >> 4) << 32 | 1ull << 62;
}

// What is written elsewhere, to sums' registers and to shared memory, comes before the products behind this.
__device__ __forceinline__ void products_begin() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void products_end() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// All but the newest `AHEAD` groups of products are done.
template <int AHEAD> __device__ __forceinline__ void products_done() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(AHEAD) : "memory");
}

#define EIGHT(c, i) "+f"(c[i]), "+f"(c[i + 1]), "+f"(c[i + 2]), "+f"(c[i + 3]), "+f"(c[i + 4]), "+f"(c[i + 5]), "+f"(c[i + 6]), "+f"(c[i + 7])
#define FORTY(c, i) EIGHT(c, i), EIGHT(c, i + 8), EIGHT(c, i + 16), EIGHT(c, i + 24), EIGHT(c, i + 32)

// c += a b for a of 64 x 16 and b of 16 x 192, c spread over four warps as PTX has it. A line has 64 places of the sum, for
// one row of a or column of b; where these lie ACROSS it has 64 rows or columns, for one place of the sum.
template <bool A_ACROSS, bool B_ACROSS> __device__ __forceinline__ void product(float (&c)[96], Described a, Described b) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.eq.u32 p, 0, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n192k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, "
        "%23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, "
        "%44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, %64, "
        "%65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, %84, %85, "
        "%86, %87, %88, %89, %90, %91, %92, %93, %94, %95}, "
        "%96, %97, p, 1, 1, %98, %99;\n}"
        : FORTY(c, 0), FORTY(c, 40), EIGHT(c, 80), EIGHT(c, 88)
        : "l"(a), "l"(b), "n"(A_ACROSS), "n"(B_ACROSS));
}

#undef EIGHT
#undef FORTY

#else

template <int COUNT> __device__ __forceinline__ void give_registers() {}
template <int COUNT> __device__ __forceinline__ void take_registers() {}
__device__ __forceinline__ void begin(Barrier*, int) { asm volatile("trap;"); }
__device__ __forceinline__ void arrive(Barrier*) {}
__device__ __forceinline__ void arrive_copied(Barrier*) {}
__device__ __forceinline__ Described described(const char*, int) { return 0; }
__device__ __forceinline__ void products_begin() {}
__device__ __forceinline__ void products_end() {}
template <int AHEAD> __device__ __forceinline__ void products_done() {}
__device__ __forceinline__ unsigned transposed(unsigned two) { return two; }
template <bool, bool> __device__ __forceinline__ void product(float (&)[96], Described, Described) {}

#endif

}  // namespace recurrence
