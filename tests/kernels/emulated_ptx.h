// What ptx.cuh and the compiler of CUDA give, for one cluster of blocks at a time on the CPU. Of the standard library only what is
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
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };

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

constexpr int BLOCKS = 16, THREADS = 512 * BLOCKS;  // of a cluster

// A thread, and what it waits for: the end of a round, or of a phase of this parity.
struct Fibre {
    ucontext_t context;
    bool done;
    const unsigned* counter;
    unsigned before;
    bool parity;

    bool ready() const {
        return !done && (!counter || (parity ? (*counter & 1) != before : *counter != before));
    }
};

inline int threads, in_block, current, first_block;
inline unsigned clusters;  // that have run
inline bool turned;
inline Fibre fibres[THREADS];
inline ucontext_t home;
inline Group blocks[BLOCKS], cluster;
inline Group warps[THREADS / 32];
inline float exchanged[THREADS];
inline unsigned votes[THREADS / 32];
inline void (*work)();

// What a kernel may read: the tensors that it was given.
struct Range { uintptr_t first, last; };
inline const Range* memory;
inline int tensors;

// Asynchronous copies of a thread that have not arrived, oldest first, and the commits that it made before each.
struct Copy { void* to; const void* from; int bytes, commits; };
struct Queue { int length, commits, delivered; Copy copies[512]; };
inline Queue queues[THREADS];

// The copies of a thread's oldest commits.
inline void deliver(Queue& own, int commits) {
    int n = 0;
    for (; n < own.length && own.copies[n].commits < own.delivered + commits; ++n) {
        const Copy& c = own.copies[n];
        c.from ? std::memcpy(c.to, c.from, c.bytes) : std::memset(c.to, 0, c.bytes);
    }
    own.delivered += commits;
    own.length -= n;
    std::memmove(own.copies, own.copies + n, own.length * sizeof(Copy));
}

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

inline void enter(int thread) {
    current = thread;
    threadIdx.x = thread % in_block;
    blockIdx.x = first_block + thread / in_block;
}

// The next thread that can go on: of this warp, else of this block, so that warps and blocks run as far ahead as they can.
inline int next() {
    const int own = current % in_block, first = current - own;
    for (int n = 1; n < 32; ++n) {
        const int thread = current / 32 * 32 + ((turned ? current - n : current + n) + 32) % 32;
        if (fibres[thread].ready()) return thread;
    }
    for (int n = 1; n <= in_block; ++n) {
        const int thread = first + ((turned ? own - n : own + n) + in_block) % in_block;
        if (fibres[thread].ready()) return thread;
    }
    for (int n = in_block; n < threads; ++n) {
        const int thread = ((turned ? first + in_block - 1 - n : first + n) + threads) % threads;
        if (fibres[thread].ready()) return thread;
    }
    return -1;
}

inline void wait(const unsigned* counter, unsigned before, bool parity) {
    const int own = current;
    fibres[own].counter = counter, fibres[own].before = before, fibres[own].parity = parity;
    while (!fibres[own].ready()) {
        const int other = next();
        if (other < 0) fail("threads wait for one that never comes");
        enter(other);
        swapcontext(&fibres[own].context, &fibres[other].context);
    }
    fibres[own].counter = nullptr;
}

inline void meet(Group& group) {
    const unsigned round = group.round;
    if (++group.arrived == group.size) {
        group.arrived = 0;
        ++group.round;
    }
    wait(&group.round, round, false);
}

inline void begin() {
    work();
    fibres[current].done = true;
    const int other = next();
    if (other >= 0) {
        enter(other);
        setcontext(&fibres[other].context);
    }
    for (int n = 0; n < threads; ++n)
        if (!fibres[n].done) fail("threads wait for one that never comes");
    setcontext(&home);
}

inline Group& warp() { return warps[current / 32]; }

inline void run(unsigned grid, int count, int size, bool reversed, void (*kernel)());

}  // namespace emulated

inline void __syncthreads() { emulated::meet(emulated::blocks[emulated::current / emulated::in_block]); }
inline void __syncwarp() { emulated::meet(emulated::warp()); }
inline float __shfl_xor_sync(unsigned, float x, int mask) {
    emulated::exchanged[emulated::current] = x;
    __syncwarp();
    const float other = emulated::exchanged[emulated::current ^ mask];
    __syncwarp();
    return other;
}
inline unsigned __ballot_sync(unsigned, bool vote) {
    const int warp = emulated::current / 32;
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

alignas(128) inline char shared[(1 << 18) * emulated::BLOCKS];  // that of a block without a cluster comes first

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
inline unsigned rounded(float x, float y) { return __float2bfloat16(x).bits | unsigned(__float2bfloat16(y).bits) << 16; }
template <int BYTES> void copy_async(void* to, const void* from, bool valid) {
    using namespace emulated;
    if ((uintptr_t(to) | uintptr_t(from)) % BYTES) fail("a copy that is not aligned");
    if (valid) inside(static_cast<const char*>(from), BYTES);
    std::memset(to, 0xff, BYTES);  // until it has arrived, whoever reads there finds no number
    Queue& own = queues[current];
    for (int i = 0; i < own.length; ++i)
        if (own.copies[i].to == to) fail("a copy to where another is on its way");
    if (own.length == 512) fail("more copies than the emulation has room for");
    own.copies[own.length++] = {to, valid ? from : nullptr, BYTES, own.commits};
}
inline void commit() { ++emulated::queues[emulated::current].commits; }
template <int AHEAD> void arrived() {
    auto& own = emulated::queues[emulated::current];
    if (own.commits - AHEAD > own.delivered) emulated::deliver(own, own.commits - AHEAD - own.delivered);
}

}  // namespace recurrence

// What a block finds in shared memory is not a number, so that what nobody wrote shows.
inline void emulated::run(unsigned grid, int count, int size, bool reversed, void (*kernel)()) {
    threads = count * size;
    in_block = count;
    turned = reversed;
    work = kernel;
    fault = nullptr;
    constexpr size_t STACK = 1 << 17;
    static char* stacks;
    stacks = static_cast<char*>(std::realloc(stacks, threads * STACK));
    for (unsigned b = 0; b < grid && !fault; b += size) {
        first_block = b;
        ++clusters;
        std::memset(recurrence::shared, 0xff, sizeof recurrence::shared / BLOCKS * size);
        cluster = {threads};
        for (int i = 0; i < size; ++i) blocks[i] = {count};
        for (int w = 0; w < threads / 32; ++w) warps[w] = {32};
        for (int i = 0; i < threads; ++i) {
            ucontext_t& context = fibres[i].context;
            fibres[i].done = false;
            fibres[i].counter = nullptr;
            queues[i].length = queues[i].commits = queues[i].delivered = 0;
            getcontext(&context);
            context.uc_stack.ss_sp = stacks + i * STACK;
            context.uc_stack.ss_size = STACK;
            context.uc_link = nullptr;
            makecontext(&context, begin, 0);
        }
        enter(reversed ? threads - 1 : 0);
        swapcontext(&home, &fibres[current].context);
    }
}
