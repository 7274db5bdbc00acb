// What cluster.cuh gives, on the CPU. Behind emulated_ptx.h.
//
// A word that is stored in another block's shared memory makes its place there no number at once, and arrives when the
// phase of its barrier ends: who overwrites what is still read, and who reads before that, finds no numbers.

namespace recurrence {

using Barrier = unsigned long long;
using Word = unsigned long long;

}  // namespace recurrence

namespace emulated {

constexpr int SHARED = sizeof(recurrence::shared) / BLOCKS, BARRIERS = 10, ON_THEIR_WAY = 1 << 15;

struct Arriving { char* to; recurrence::Word word; };
struct Phases {
    recurrence::Barrier* at;
    int arrivals, each, bytes, length, copying;
    unsigned ended, cluster;  // the latter: which one of all it belongs to
    int copiers[512];  // threads whose oldest commit arrives when the phase ends
    Arriving words[ON_THEIR_WAY];
};
inline Phases phases[BLOCKS][BARRIERS];

inline char* memory_of(int block) { return recurrence::shared + block * SHARED; }
inline int own_block() { return current / in_block; }

inline Phases& phases_of(int block, const recurrence::Barrier* at) {
    for (Phases& p : phases[block])
        if (p.at == at && p.cluster == clusters) return p;
    fail("a barrier that was not begun");
    return phases[0][0];
}

inline void end_phase(Phases& p) {
    if (p.arrivals || p.bytes) return;
    for (int i = 0; i < p.length; ++i) std::memcpy(p.words[i].to, &p.words[i].word, 8);
    for (int i = 0; i < p.copying; ++i) deliver(queues[p.copiers[i]], 1);
    p.arrivals = p.each, p.length = p.copying = 0, ++p.ended;
}

struct Lanes { uint4 a; uint2 b; };
inline Lanes lanes[THREADS];

inline float half_of(unsigned word, int half) {
    const uint32_t bits = half ? word & 0xffff0000u : word << 16;
    float f;
    std::memcpy(&f, &bits, 4);
    return f;
}

}  // namespace emulated

namespace recurrence {

inline char* dynamic_shared() { return emulated::memory_of(emulated::own_block()); }
inline int cluster_rank() { return emulated::own_block(); }
inline void cluster_meet() { emulated::meet(emulated::cluster); }

inline void begin(Barrier* barrier) {
    for (emulated::Phases& p : emulated::phases[emulated::own_block()])
        if (p.cluster != emulated::clusters) {
            p.at = barrier, p.arrivals = p.each = 1, p.bytes = p.length = p.copying = 0, p.ended = 0;
            p.cluster = emulated::clusters;
            return;
        }
    emulated::fail("more barriers than the emulation has room for");
}
inline void expect(Barrier* barrier, int bytes) {
    emulated::Phases& p = emulated::phases_of(emulated::own_block(), barrier);
    if (!p.arrivals) emulated::fail("a second arrival in one phase");
    --p.arrivals, p.bytes += bytes;
    emulated::end_phase(p);
}
inline void await(Barrier* barrier, int parity) {
    emulated::wait(&emulated::phases_of(emulated::own_block(), barrier).ended, parity, true);
}
inline void store_async(char* to, Word word, Barrier* barrier, int rank) {
    using namespace emulated;
    const auto there = [&](auto* own) { return reinterpret_cast<decltype(own)>((char*)own - dynamic_shared() + memory_of(rank)); };
    if (uintptr_t(to) % 8) fail("a store that is not aligned");
    Phases& p = phases_of(rank, there(barrier));
    if (p.length == ON_THEIR_WAY) fail("more stores than the emulation has room for");
    std::memset(there(to), 0xff, 8);
    p.words[p.length++] = {there(to), word};
    p.bytes -= 8;
    end_phase(p);
}

inline void mma(float (&c)[4], const uint4& a, const uint2& b) {
    using namespace emulated;
    lanes[current] = {a, b};
    __syncwarp();
    const Lanes* warp = lanes + current / 32 * 32;
    const int lane = current % 32;
    for (int i = 0; i < 4; ++i) {
        const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
        for (int k = 0; k < 16; ++k) {
            const uint4& of_row = warp[row % 8 * 4 + k % 8 / 2].a;
            const uint2& of_column = warp[column * 4 + k % 8 / 2].b;
            const unsigned left = k < 8 ? (row < 8 ? of_row.x : of_row.y) : (row < 8 ? of_row.z : of_row.w);
            c[i] += half_of(left, k % 2) * half_of(k < 8 ? of_column.x : of_column.y, k % 2);
        }
    }
    __syncwarp();
}

}  // namespace recurrence
