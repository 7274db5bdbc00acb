// Tiles of products, 256 x 192: four warps fetch operands into a ring of stages in shared memory, and two times four multiply
// what has come, 128 rows each. Behind ptx.cuh, cluster.cuh and warpgroup.cuh; STAGES is given.
//
// A tile this large takes few bytes from L2 for its work, 56 KB for 6.3 MFLOP. Its sums are 192 registers of a thread, for
// which those that fetch give up most of theirs.

namespace recurrence {

constexpr int ROWS = 256, COLUMNS = 192, INNER = 64;  // of a tile, and how much of its sum is a stage
constexpr int LINE = 128, BAND = INNER * LINE;        // bytes of 64 numbers, and of 64 lines of these
constexpr int LEFT = ROWS / 64 * BAND, STAGE = LEFT + COLUMNS / 64 * BAND;
constexpr int MULTIPLIERS = 256, FETCHERS = 128, THREADS = MULTIPLIERS + FETCHERS;  // threads, in this order
constexpr int FEW = 56, MANY = 224;                                                 // their registers
constexpr int PASS = FETCHERS / 8;                                                  // lines that are fetched at once

using Sums = float[2][96];        // a thread's share of twice 64 rows
using Lines = int[INNER / PASS];  // one of each pass

__device__ __forceinline__ int over(int n, int by) { return (n + by - 1) / by; }

struct alignas(8) Pair { float x, y; };

// Where 16 bytes of a line go.
__device__ __forceinline__ int place(int line, int word) { return line * LINE + (word ^ line % 8) * 16; }

// Which stage comes next, for those who fill it and for those who read it.
struct Ring {
    char* memory;
    Barrier *full, *empty;
    int n;

    __device__ char* stage() const { return memory + n % STAGES * STAGE; }
    __device__ void await_empty() const { await(empty + n % STAGES, (n / STAGES & 1) ^ 1); }
    __device__ void filled() { arrive_copied(full + n++ % STAGES); }
    __device__ void await_full() const { await(full + n % STAGES, n / STAGES & 1); }
    __device__ void read(int step) const {
        __syncwarp();
        if (threadIdx.x % 32 == 0) arrive(empty + step % STAGES);
    }
};

// The ring in dynamic shared memory, for all threads of the block.
__device__ __forceinline__ Ring begin_ring() {
    char* const shared = dynamic_shared();
    char* const memory = shared + (-int(shared_address(shared)) & 1023);
    Barrier* const barriers = reinterpret_cast<Barrier*>(memory + STAGES * STAGE);
    const Ring ring{memory, barriers, barriers + STAGES, 0};
    if (threadIdx.x == 0)
        for (int i = 0; i < STAGES; ++i) begin(ring.full + i, FETCHERS), begin(ring.empty + i, MULTIPLIERS / 32);
    __syncthreads();
    return ring;
}

// The lines of a stage that lie across, 64 of so many times 64 columns: of each pass the lane's; -1 is no line.
template <int BANDS>
__device__ __forceinline__ void copy_across(const bf16* from, const Lines& lines, int width, int column, char* to) {
    const int word = threadIdx.x % 8, line = threadIdx.x % FETCHERS / 8;
#pragma unroll
    for (int i = 0; i < INNER / PASS; ++i) {
        const bf16* const row = from + lines[i] * width + column + word * 8;
#pragma unroll
        for (int band = 0; band < BANDS; ++band)
            copy_async<16>(to + band * BAND + place(line + PASS * i, word), row + band * 64,
                           lines[i] >= 0 && column + band * 64 + word * 8 < width);
    }
}

// The sums of 128 rows of a tile over so many stages. ACROSS: see product.
template <bool LEFT_ACROSS, bool RIGHT_ACROSS>
__device__ __forceinline__ void sum_up(Sums& sums, int stages, Ring& ring) {
    constexpr int LEFT_ON = LEFT_ACROSS ? 16 * LINE : 32, RIGHT_ON = RIGHT_ACROSS ? 16 * LINE : 32;  // bytes to the next 16
    const int group = threadIdx.x / 128;
    for (int half = 0; half < 2; ++half)
        for (float& sum : sums[half]) sum = 0.0f;
    for (int i = 0; i < stages; ++i, ++ring.n) {
        ring.await_full();
        const Described left = described(ring.stage() + group * 2 * BAND, 0), right = described(ring.stage() + LEFT, BAND);
        products_begin();
#pragma unroll
        for (int j = 0; j < INNER / 16; ++j)
#pragma unroll
            for (int half = 0; half < 2; ++half)
                product<LEFT_ACROSS, RIGHT_ACROSS>(sums[half], left + (half * BAND + j * LEFT_ON) / 16, right + j * RIGHT_ON / 16);
        products_end();
        if (i > 0) products_done<1>(), ring.read(ring.n - 1);
    }
    products_done<0>();
    if (stages > 0) ring.read(ring.n - 1);
}

// The first of the eight rows of its tile whose sums a thread has in `half`, and, `lower`, in the second half of every four.
__device__ __forceinline__ int row_of(int half, int lower) {
    return threadIdx.x / 128 * 128 + half * 64 + threadIdx.x / 32 % 4 * 16 + lower * 8;
}

__device__ __forceinline__ void exchange(unsigned& give, unsigned& keep, bool turned, int mask) {
    const unsigned got = __shfl_xor_sync(~0u, turned ? keep : give, mask);
    give = turned ? give : got, keep = turned ? got : keep;
}

// Four lanes have two columns each of four times eight, or the eight columns of one of these each: from one to the other.
__device__ __forceinline__ void exchange(unsigned (&words)[4], int lane) {
    exchange(words[1], words[0], lane & 1, 1), exchange(words[3], words[2], lane & 1, 1);
    exchange(words[2], words[0], lane & 2, 2), exchange(words[3], words[1], lane & 2, 2);
}

__device__ __forceinline__ void store_words(bf16* to, const unsigned (&words)[4]) {
    *reinterpret_cast<uint4*>(to) = uint4{words[0], words[1], words[2], words[3]};
}

}  // namespace recurrence
