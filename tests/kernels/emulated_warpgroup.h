// What warpgroup.cuh gives, on the CPU. Behind emulated_cluster.h.
//
// Products are computed when a thread waits for them, from what lies there then, and copies that a barrier is told of
// arrive when its phase ends: who fills a stage again too early, or reads it too early, finds no numbers.

namespace emulated {

struct Product { bool a_across, b_across; unsigned long long a, b; float* sums; int groups; };
struct Products { int length, groups; bool begun; Product products[256]; };
inline Products products[THREADS];

// Number k of the sum for a row of a or a column of b.
inline float element(unsigned long long matrix, bool across, int of, int k) {
    const int line = across ? k : of, column = across ? of : k;
    const int apart = (matrix >> 16 & 0x3fff) << 4, eight = (matrix >> 32 & 0x3fff) << 4;
    if (matrix >> 62 != 1 || eight != 1024) fail("a matrix that is not described as this emulation knows it");
    int at = int(matrix & 0x3fff) << 4;
    at += across ? column / 64 * apart + column % 64 * 2 : column * 2;
    at += line / 8 * eight + line % 8 * 128;
    at ^= (at >> 7 & 7) << 4;
    uint16_t bits;
    std::memcpy(&bits, memory_of(own_block()) + at - 1024, 2);
    return half_of(bits, 0);
}

inline void perform(const Product& p) {
    const int thread = current % 128, row = thread / 32 * 16 + thread % 32 / 4;
    for (int k = 0; k < 16; ++k) {
        float left[2];
        for (int i = 0; i < 2; ++i) left[i] = element(p.a, p.a_across, row + 8 * i, k);
        for (int j = 0; j < 48; ++j) {
            const float right = element(p.b, p.b_across, j / 2 * 8 + thread % 4 * 2 + j % 2, k);
            for (int i = 0; i < 2; ++i) p.sums[j / 2 * 4 + i * 2 + j % 2] += left[i] * right;
        }
    }
}

}  // namespace emulated

inline unsigned __shfl_xor_sync(unsigned, unsigned x, int mask) {
    static unsigned words[emulated::THREADS];
    words[emulated::current] = x;
    __syncwarp();
    const unsigned other = words[emulated::current ^ mask];
    __syncwarp();
    return other;
}
inline int __shfl_sync(unsigned, int x, int lane) {
    static int words[emulated::THREADS];
    words[emulated::current] = x;
    __syncwarp();
    const int other = words[emulated::current / 32 * 32 + lane];
    __syncwarp();
    return other;
}
inline float __uint_as_float(unsigned x) {
    float f;
    std::memcpy(&f, &x, 4);
    return f;
}
inline int __ffs(unsigned x) { return __builtin_ffs(int(x)); }

namespace recurrence {

using Described = unsigned long long;

template <int> void give_registers() {}
template <int> void take_registers() {}
inline unsigned shared_address(const void* at) { return unsigned((const char*)at - dynamic_shared()) + 1024; }

inline void begin(Barrier* barrier, int arrivals) {
    begin(barrier);
    emulated::Phases& p = emulated::phases_of(emulated::own_block(), barrier);
    p.arrivals = p.each = arrivals;
}
inline void arrive(Barrier* barrier) {
    emulated::Phases& p = emulated::phases_of(emulated::own_block(), barrier);
    --p.arrivals;
    emulated::end_phase(p);
}
inline void arrive_copied(Barrier* barrier) {
    emulated::Phases& p = emulated::phases_of(emulated::own_block(), barrier);
    if (p.copying == 512) emulated::fail("more threads than a barrier of the emulation has room for");
    p.copiers[p.copying++] = emulated::current;
    commit();
    arrive(barrier);
}
inline Described described(const char* at, int apart) {
    return (shared_address(at) >> 4 & 0x3fff) | Described(apart >> 4) << 16 | Described(1024 >> 4) << 32 | 1ull << 62;
}
inline unsigned transposed(unsigned two) {
    static unsigned words[emulated::THREADS];
    const int lane = emulated::current % 32, first = emulated::current - lane;
    words[emulated::current] = two;
    __syncwarp();
    unsigned r = 0;
    for (int i = 0; i < 2; ++i)
        r |= (words[first + (lane % 4 * 2 + i) * 4 + lane / 4 / 2] >> lane / 4 % 2 * 16 & 0xffff) << 16 * i;
    __syncwarp();
    return r;
}
inline void products_begin() { emulated::products[emulated::current].begun = true; }
inline void products_end() {
    ++emulated::products[emulated::current].groups;
    emulated::products[emulated::current].begun = false;
}
template <bool A_ACROSS, bool B_ACROSS> void product(float (&c)[96], Described a, Described b) {
    emulated::Products& own = emulated::products[emulated::current];
    if (!own.begun) emulated::fail("products that nothing comes before");
    if (own.length == 256) emulated::fail("more products than the emulation has room for");
    own.products[own.length++] = {A_ACROSS, B_ACROSS, a, b, c, own.groups};
}
template <int AHEAD> void products_done() {
    emulated::Products& own = emulated::products[emulated::current];
    int n = 0;
    for (; n < own.length && own.products[n].groups < own.groups - AHEAD; ++n) emulated::perform(own.products[n]);
    own.length -= n;
    std::memmove(own.products, own.products + n, own.length * sizeof(emulated::Product));
}

}  // namespace recurrence
