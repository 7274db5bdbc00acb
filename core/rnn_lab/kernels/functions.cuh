// Functions of numbers, and numbers in memory, for every recurrence. Behind ptx.cuh.

namespace recurrence {

// Element functions: relative error within a few 1e-7, and right limits at both ends.

__device__ __forceinline__ float fast_exp(float x) { return fast_exp2(x * 1.4426950408889634f); }

__device__ __forceinline__ float sigmoid(float x) { return reciprocal(1.0f + fast_exp(-x)); }

// Of x / TANH_SCALE, within 1e-7 of tanh, not relative to it.
constexpr float TANH_SCALE = 2.8853900817779268f;  // 2 / ln 2
__device__ __forceinline__ float scaled_tanh(float x) { return fmaf(reciprocal(fast_exp2(x) + 1.0f), -2.0f, 1.0f); }

__device__ __forceinline__ float close_tanh(float x) { return scaled_tanh(x * TANH_SCALE); }

// Of N numbers, N at most 4, in place: one reciprocal serves them all. Within 3e-7; a NaN makes all N one.
template <int N> __device__ __forceinline__ void scaled_tanh(float* x) {
    float d[N], product[N];
#pragma unroll
    for (int i = 0; i < N; ++i) {
        // From exp2(28) on the result is 1; products of four stay finite.
        d[i] = 1.0f + fast_exp2(lesser(x[i], 28.0f));
        product[i] = i ? product[i - 1] * d[i] : d[i];
    }
    float open = -2.0f * reciprocal(product[N - 1]);
#pragma unroll
    for (int i = N - 1; i > 0; --i) {
        x[i] = fmaf(open, product[i - 1], 1.0f);
        open *= d[i];
    }
    x[0] = 1.0f + open;
}

// A polynomial near zero, where 1 - 2 / (exp(2x) + 1) would cancel.
__device__ __forceinline__ float tanh(float x) {
    const float q = x * x;
    const float p = -0.33333334f + q * (0.13333334f + q * (-0.053968254f + q * (0.021869488f - q * 0.008863236f)));
    const float far = close_tanh(fabsf(x));
    return fabsf(x) < 0.4f ? fmaf(x * q, p, x) : copysignf(far, x);
}

__device__ __forceinline__ float softplus(float x) { return fmaxf(x, 0.0f) + log1pf(expf(-fabsf(x))); }

__device__ __forceinline__ float sign(float x) { return x > 0.0f ? 1.0f : x < 0.0f ? -1.0f : 0.0f; }

// Numbers in memory.

__device__ __forceinline__ float wide(float x) { return x; }
__device__ __forceinline__ float wide(bf16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float wide(fp16 x) { return __half2float(x); }

template <class E> __device__ __forceinline__ E narrow(float x);
template <> __device__ __forceinline__ float narrow<float>(float x) { return x; }
template <> __device__ __forceinline__ bf16 narrow<bf16>(float x) { return __float2bfloat16(x); }
template <> __device__ __forceinline__ fp16 narrow<fp16>(float x) { return __float2half(x); }

}  // namespace recurrence
