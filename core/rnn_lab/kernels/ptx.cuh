// Instructions that CUDA C++ has no name for.

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace recurrence {

using bf16 = __nv_bfloat16;
using fp16 = __half;
using i64 = long long;

__device__ __forceinline__ float reciprocal(float x) {
    float r;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
    return r;
}

__device__ __forceinline__ float fast_exp2(float x) {
    float r;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
    return r;
}

__device__ __forceinline__ float fast_sqrt(float x) {
    float r;
    asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
    return r;
}

// The lesser, or NaN if one of them is.
__device__ __forceinline__ float lesser(float x, float y) {
    float r;
    asm("min.NaN.f32 %0, %1, %2;" : "=f"(r) : "f"(x), "f"(y));
    return r;
}

// Two numbers as fp16, the first one in the lower half. Beyond its range they become its largest number, not infinity.
__device__ __forceinline__ unsigned saturated(float x, float y) {
    unsigned r;
    asm("cvt.rn.satfinite.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(y), "f"(x));
    return r;
}

// Two numbers as bf16, the first one in the lower half.
__device__ __forceinline__ unsigned rounded(float x, float y) {
    unsigned r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(y), "f"(x));
    return r;
}

// BYTES from global to shared memory, on their way until `arrived`; zeros where not valid.
template <int BYTES> __device__ __forceinline__ void copy_async(void* to, const void* from, bool valid) {
    const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(to));
    const int n = valid ? BYTES : 0;  // the rest is filled with zeros
    if constexpr (BYTES == 16) {
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(n) : "memory");
    } else {
        asm volatile("cp.async.ca.shared.global [%0], [%1], %3, %2;" ::"r"(address), "l"(from), "r"(n), "n"(BYTES)
                     : "memory");
    }
}

__device__ __forceinline__ void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// All but the newest `AHEAD` commits of this thread have arrived; others see them behind a barrier.
template <int AHEAD> __device__ __forceinline__ void arrived() {
    asm volatile("cp.async.wait_group %0;" ::"n"(AHEAD) : "memory");
}

}  // namespace recurrence
