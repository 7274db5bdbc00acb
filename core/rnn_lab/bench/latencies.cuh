// What a step of a recurrence in a thread-block cluster waits for. Behind ptx.cuh and cluster.cuh.
//
// Every kernel does `n` times the same; from two values of n follows the time of one.

using namespace recurrence;

// All blocks of a cluster wait for each other.
extern "C" __global__ void cluster_barrier(int* out, int n) {
    for (int i = 0; i < n; ++i) cluster_meet();
    if (n < 0) out[blockIdx.x] = n;
}

// One thread loads from its neighbour's shared memory an index, at which it loads the next one.
extern "C" __global__ void remote_load(int* out, int n) {
    unsigned* indices = reinterpret_cast<unsigned*>(dynamic_shared());  // [32]
    if (threadIdx.x < 32) indices[threadIdx.x] = (threadIdx.x + 7) % 32;
    cluster_meet();
    unsigned at = 0;
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
    if (cluster_rank() == 0 && threadIdx.x == 0) {
        unsigned there;
        asm("mapa.shared::cluster.u32 %0, %1, 1;" : "=r"(there) : "r"(shared_address(indices)));
        for (int i = 0; i < n; ++i) {
            asm volatile("ld.shared::cluster.u32 %0, [%1];" : "=r"(at) : "r"(there + 4 * at) : "memory");
        }
    }
#endif
    if (threadIdx.x == 0) out[blockIdx.x] = at;
    cluster_meet();  // nobody leaves whose memory is read
}

// Two neighbours send a word to and fro: n times each way.
extern "C" __global__ void ping_pong(int* out, int n) {
    Barrier* arrived = reinterpret_cast<Barrier*>(dynamic_shared());
    Word* word = arrived + 1;
    if (threadIdx.x == 0) begin(arrived);
    cluster_meet();
    const int rank = cluster_rank();
    if (rank < 2 && threadIdx.x == 0) {
        for (int i = 0; i < n; ++i) {
            expect(arrived, sizeof(Word));
            if (rank == 0) store_async(reinterpret_cast<char*>(word), i, arrived, 1);
            await(arrived, i & 1);
            if (rank == 1) store_async(reinterpret_cast<char*>(word), i, arrived, 0);
        }
        out[blockIdx.x] = static_cast<int>(*word);
    }
    cluster_meet();
}

// Every block sends 2^log words to every block, itself included, and goes on when all have come: what h does.
//
// Two buffers suffice. A block sends what overwrites a buffer after all words of the step before have come, and its
// peers sent those behind the step in which the buffer was filled last.
extern "C" __global__ void exchange(int* out, int n, int blocks, int log) {
    Barrier* arrived = reinterpret_cast<Barrier*>(dynamic_shared());  // [2]
    Word* received = arrived + 2;                                     // [2][blocks][2^log]
    const int all = blocks << log;
    if (threadIdx.x == 0) {
        begin(&arrived[0]);
        begin(&arrived[1]);
    }
    cluster_meet();
    const int rank = cluster_rank();
    for (int t = 0; t < n; ++t) {
        Barrier* own = &arrived[t & 1];
        if (threadIdx.x == 0) expect(own, all * static_cast<int>(sizeof(Word)));
        for (int i = threadIdx.x; i < all; i += blockDim.x) {
            Word* to = received + (t & 1) * all + (rank << log) + (i & ((1 << log) - 1));
            store_async(reinterpret_cast<char*>(to), t + i, own, i >> log);
        }
        await(own, t >> 1 & 1);
        __syncthreads();
    }
    if (threadIdx.x == 0) out[blockIdx.x] = static_cast<int>(received[0]);
    cluster_meet();
}

// Eight independent products of 16 x 16 by 16 x 8 per warp and turn.
extern "C" __global__ void __launch_bounds__(512, 1) products(float* out, int n) {
    const unsigned lane = threadIdx.x * 2654435761u;
    const auto pair = [](unsigned seed) { return 0x3f803f80u | (seed & 0x007f007fu); };  // of bf16 from 1 to 2
    const uint4 a = {pair(lane), pair(lane >> 3), pair(lane >> 5), pair(lane >> 7)};
    const uint2 b = {0x80008000u ^ pair(lane >> 9), pair(lane >> 11)};
    float c[8][4] = {};
    for (int i = 0; i < n; ++i) {
#pragma unroll
        for (int k = 0; k < 8; ++k) mma(c[k], a, b);
    }
    float sum = 0.0f;
#pragma unroll
    for (int k = 0; k < 8; ++k) sum += c[k][0] + c[k][1] + c[k][2] + c[k][3];
    out[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}
