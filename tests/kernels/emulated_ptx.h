// What ptx.cuh and the compiler of CUDA give, for one block at a time on the CPU. Of the standard library only what is
// quickly compiled: every kernel of every test compiles it again.

#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __shared__
#define __align__(x)

struct Index { unsigned x; };
static Index threadIdx, blockIdx;

struct __nv_bfloat16 { uint16_t bits; };
using __half = _Float16;
inline float __bfloat162float(__nv_bfloat16 x) {
    const uint32_t bits = uint32_t(x.bits) << 16;
    float f;
    std::memcpy(&f, &bits, 4);
    return f;
}
inline __nv_bfloat16 __float2bfloat16(float f) {
    uint32_t bits;
    std::memcpy(&bits, &f, 4);
    if (f != f) return {0x7fff};
    bits += 0x7fff + (bits >> 16 & 1);
    return {uint16_t(bits >> 16)};
}
inline float __half2float(__half x) { return float(x); }
inline __half __float2half(float x) { return __half(x); }
template <class T> T min(T a, T b) { return a < b ? a : b; }
template <class T> T max(T a, T b) { return a > b ? a : b; }

namespace emulated {

// A group of threads that meet: counts who has arrived.
struct Group { int size = 0, arrived = 0; unsigned round = 0; };

inline int threads, current;
inline bool turned;
inline ucontext_t fibres[1024];
inline bool done[1024];
inline ucontext_t home;
inline Group block;
inline Group warps[32];
inline float exchanged[1024];
inline unsigned votes[32];
inline void (*work)();

// What a kernel may read: the tensors that it was given.
struct Range { uintptr_t first, last; };
inline const Range* memory;
inline int tensors;

// Asynchronous copies of a thread that have not arrived, oldest first, and the commits that it made before each.
struct Copy { void* to; const void* from; int bytes, commits; };
struct Queue { int length, commits; Copy copies[512]; };
inline Queue queues[1024];

// Ends the kernel; `go` hands the reason back. The first one counts.
inline const char* fault;
inline void fail(const char* reason) {
    fault = reason;
    setcontext(&home);
}

template <class X> const X* inside(const X* from, int bytes = sizeof(X)) {
    const auto first = uintptr_t(from);
    for (const Range* range = memory; range < memory + tensors; ++range)
        if (range->first <= first && first + bytes <= range->last) return from;
    fail("a copy from outside the tensors' memory");
    return from;
}

inline void yield() {
    const int own = current;
    for (int n = 1; n <= threads; ++n) {
        const int next = ((turned ? own - n : own + n) + threads) % threads;
        if (!done[next]) {
            if (next == own) return;
            current = next;
            threadIdx.x = next;
            swapcontext(&fibres[own], &fibres[next]);
            return;
        }
    }
}

inline void meet(Group& group) {
    const unsigned round = group.round;
    if (++group.arrived == group.size) {
        group.arrived = 0;
        ++group.round;
    }
    for (long tries = 0; group.round == round; ++tries) {
        if (tries > 100000) fail("threads wait for one that never comes");
        yield();
    }
}

inline void begin() {
    work();
    done[current] = true;
    const int own = current;
    for (int n = 0; n < threads; ++n)
        if (!done[n]) {
            current = n;
            threadIdx.x = n;
            setcontext(&fibres[n]);
        }
    current = own;
    setcontext(&home);
}

inline void run(unsigned grid, int count, bool reversed, void (*kernel)());

}  // namespace emulated

inline void __syncthreads() { emulated::meet(emulated::block); }
inline void __syncwarp() { emulated::meet(emulated::warps[threadIdx.x / 32]); }
inline float __shfl_xor_sync(unsigned, float x, int mask) {
    emulated::exchanged[threadIdx.x] = x;
    __syncwarp();
    const float other = emulated::exchanged[threadIdx.x ^ mask];
    __syncwarp();
    return other;
}
inline unsigned __ballot_sync(unsigned, bool vote) {
    const int warp = threadIdx.x / 32;
    if (threadIdx.x % 32 == 0) emulated::votes[warp] = 0;
    __syncwarp();
    if (vote) emulated::votes[warp] |= 1u << threadIdx.x % 32;
    __syncwarp();
    const unsigned all = emulated::votes[warp];
    __syncwarp();
    return all;
}

namespace recurrence {

using bf16 = __nv_bfloat16;
using fp16 = __half;
using i64 = long long;

alignas(16) inline char shared[1 << 18];

inline float reciprocal(float x) { return 1.0f / x; }
inline float fast_exp2(float x) { return exp2f(x); }
inline float fast_sqrt(float x) { return sqrtf(x); }
inline float lesser(float x, float y) { return x != x || y != y ? NAN : fminf(x, y); }
inline unsigned saturated(float x, float y) {
    const auto bound = [](float f) { return f < -65504.0f ? -65504.0f : f > 65504.0f ? 65504.0f : f; };
    const fp16 both[] = {fp16(bound(x)), fp16(bound(y))};
    unsigned r;
    std::memcpy(&r, both, sizeof(r));
    return r;
}
template <int BYTES> void copy_async(void* to, const void* from, bool valid) {
    using namespace emulated;
    if ((uintptr_t(to) | uintptr_t(from)) % BYTES) fail("a copy that is not aligned");
    if (valid) inside(static_cast<const char*>(from), BYTES);
    std::memset(to, 0xff, BYTES);  // until it has arrived, whoever reads there finds no number
    Queue& own = queues[current];
    if (own.length == 512) fail("more copies than the emulation has room for");
    own.copies[own.length++] = {to, valid ? from : nullptr, BYTES, own.commits};
}
inline void commit() { ++emulated::queues[emulated::current].commits; }
template <int AHEAD> void arrived() {
    auto& own = emulated::queues[emulated::current];
    int n = 0;
    for (; n < own.length && own.copies[n].commits < own.commits - AHEAD; ++n) {
        const emulated::Copy& c = own.copies[n];
        c.from ? std::memcpy(c.to, c.from, c.bytes) : std::memset(c.to, 0, c.bytes);
    }
    own.length -= n;
    std::memmove(own.copies, own.copies + n, own.length * sizeof(emulated::Copy));
}

}  // namespace recurrence

// What a block finds in shared memory is not a number, so that what nobody wrote shows.
inline void emulated::run(unsigned grid, int count, bool reversed, void (*kernel)()) {
    threads = count;
    turned = reversed;
    work = kernel;
    fault = nullptr;
    constexpr size_t STACK = 1 << 18;
    static char* stacks;
    stacks = static_cast<char*>(std::realloc(stacks, count * STACK));
    for (unsigned b = 0; b < grid && !fault; ++b) {
        std::memset(recurrence::shared, 0xff, sizeof recurrence::shared);
        block = {count};
        for (int w = 0; w < count / 32; ++w) warps[w] = {32};
        for (int i = 0; i < count; ++i) {
            done[i] = false;
            queues[i].length = queues[i].commits = 0;
            getcontext(&fibres[i]);
            fibres[i].uc_stack.ss_sp = stacks + i * STACK;
            fibres[i].uc_stack.ss_size = STACK;
            fibres[i].uc_link = nullptr;
            makecontext(&fibres[i], begin, 0);
        }
        current = reversed ? count - 1 : 0;
        threadIdx.x = current;
        blockIdx.x = b;
        swapcontext(&home, &fibres[current]);
    }
}
