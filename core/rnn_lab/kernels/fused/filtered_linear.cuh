// Gradients of y_p = x W_p' from kept rows: dW_p = g_p[kept]' x[kept], dx[kept] = sum over p of g_p[kept] W_p, else zero.
//
// A block to a multiprocessor takes one tile after the other: those of dW, whose sums are the longest, then those of dx.
// Rows are fetched from wherever they lie, and stored there. Of dx it is the transpose that is computed, so that 192 rows
// are a tile, which waste nothing; of a dW too, if its height is better cut that way. Behind ring.cuh.

namespace recurrence {

struct Args {
    const bf16 *g[MAPS], *weight[MAPS];
    float* dweight[MAPS];
    i64 M[MAPS], maps;
    const bf16* x;
    bf16* dx;
    const i64* kept;
    const unsigned char* mask;
    i64 N, all, K, parts, stages;  // the latter: of a part of a dW
    i64 height, blocks, split;     // of all W together; how many blocks, and how many are of the first kind
    i64 tiles[2], places[2][2];    // of dW and of dx: how many, and how many a block of each kind has room for
};

struct Tile {
    bool weight, turned;  // of a dW, or of dx; whether its rows are columns of x
    int map, part;        // which dW, and which share of its sum
    int row, column;      // where the tile begins
    int begin, end;       // of the sum: kept rows, or columns of every g together
};

__device__ __forceinline__ bool turned(const Args& a, int p) {
    const int M = int(a.M[p]), K = int(a.K);
    return over(K, ROWS) * over(M, COLUMNS) < over(M, ROWS) * over(K, COLUMNS);
}

// Tiles of a dW from left to right, and all.
__device__ __forceinline__ int across(const Args& a, int p) { return over(int(turned(a, p) ? a.M[p] : a.K), COLUMNS); }
__device__ __forceinline__ int count(const Args& a, int p) {
    return over(int(turned(a, p) ? a.K : a.M[p]), ROWS) * across(a, p);
}

__device__ __forceinline__ int bands(const Args& a) { return over(int(a.N), COLUMNS); }

// Which kind of block this is, and for how many tiles it has room.
__device__ __forceinline__ int kind(const Args& a) { return int(blockIdx.x) >= int(a.split); }
__device__ __forceinline__ int room(const Args& a) { return int(a.places[0][kind(a)] + a.places[1][kind(a)]); }

// What is in a block's place i, those for dW first; false where it is empty.
__device__ __forceinline__ bool tile_at(const Args& a, int i, Tile& t) {
    const int other = kind(a), alike = int(other ? a.blocks - a.split : a.split), weights = int(a.places[0][other]);
    const int sort = i >= weights;
    int n = other * int(a.split * a.places[sort][0] - a.split) + int(blockIdx.x) + (i - sort * weights) * alike;
    if (n >= a.tiles[sort]) return false;
    t = Tile{};
    t.weight = sort == 0;
    if (t.weight) {
        for (; n >= count(a, t.map) * a.parts; ++t.map) n -= count(a, t.map) * int(a.parts);
        t.turned = turned(a, t.map);
        t.part = n / count(a, t.map), n %= count(a, t.map);
        t.row = n / across(a, t.map) * ROWS, t.column = n % across(a, t.map) * COLUMNS;
        t.begin = t.part * int(a.stages) * INNER;
        t.end = min(int(a.N), t.begin + int(a.stages) * INNER);
    } else {
        const int down = over(int(a.K), ROWS);
        t.row = n % down * ROWS, t.column = n / down * COLUMNS;
        t.end = int(a.height);
    }
    return true;
}

// Zeros in the filtered rows among the tile's share of all positions.
__device__ __forceinline__ void clear(const Args& a, const Tile& tile) {
    const int lane = threadIdx.x % 32, share = over(int(a.all), bands(a)), column = tile.row + lane * 8;
    const int begin = tile.column / COLUMNS * share, end = min(int(a.all), begin + share);
    for (int p = begin + int(threadIdx.x) / 32 * 32; p < end; p += MULTIPLIERS) {
        unsigned gone = __ballot_sync(~0u, p + lane < end && !a.mask[p + lane]);
        for (; gone; gone &= gone - 1)
            if (column < a.K) *reinterpret_cast<uint4*>(a.dx + (p + __ffs(gone) - 1) * int(a.K) + column) = uint4{0, 0, 0, 0};
    }
}

// Operands of a tile of dW: rows of x and of g where they lie, one line each. Where the next ones lie is asked for early.
__device__ __forceinline__ void fetch_weight(const Args& a, const Tile& tile, Ring& ring) {
    const bf16 *const left = tile.turned ? a.x : a.g[tile.map], *const right = tile.turned ? a.g[tile.map] : a.x;
    const int height = int(tile.turned ? a.K : a.M[tile.map]), width = int(tile.turned ? a.M[tile.map] : a.K);
    Lines lines, next;
    const auto ask = [&](int at) {
#pragma unroll
        for (int i = 0; i < INNER / PASS; ++i) {
            const int n = at + int(threadIdx.x) % FETCHERS / 8 + PASS * i;
            next[i] = n < tile.end ? int(a.kept[n]) : -1;
        }
    };
    ask(tile.begin);
    for (int at = tile.begin; at < tile.end; at += INNER) {
#pragma unroll
        for (int i = 0; i < INNER / PASS; ++i) lines[i] = next[i];
        ask(at + INNER);
        ring.await_empty();
        copy_across<ROWS / 64>(left, lines, height, tile.row, ring.stage());
        copy_across<COLUMNS / 64>(right, lines, width, tile.column, ring.stage() + LEFT);
        ring.filled();
    }
}

// Operands of a tile of dx: rows of each W one after the other, and 64 columns of rows of g.
__device__ __forceinline__ void fetch_input(const Args& a, const Tile& tile, Ring& ring) {
    // Of a pass a warp has four rows, eight lanes each; where its rows begin its lanes remember, one or two of them each.
    constexpr int PASSES = COLUMNS / PASS, HELD = PASSES * 4 / 32 + 1;
    const int lane = threadIdx.x % 32, line = threadIdx.x % FETCHERS / 8, word = threadIdx.x % 8;
    for (int p = 0; p < a.maps; ++p) {
        int held[HELD];
#pragma unroll
        for (int i = 0; i < HELD; ++i) {
            const int n = tile.column + (8 * i + lane / 4) * PASS + line / 4 * 4 + lane % 4;
            held[i] = int(a.kept[min(int(a.N) - 1, n)]) * int(a.M[p]);
        }
        for (int at = 0; at < a.M[p]; at += INNER) {
            Lines lines;
#pragma unroll
            for (int i = 0; i < INNER / PASS; ++i) lines[i] = at + line + PASS * i;
            ring.await_empty();
            copy_across<ROWS / 64>(a.weight[p], lines, int(a.K), tile.row, ring.stage());
            const bf16* const from = a.g[p] + at + word * 8;
#pragma unroll
            for (int i = 0; i < PASSES; ++i) {
                const int begin = __shfl_sync(~0u, held[i / 8], i % 8 * 4 + lane / 8);
                copy_async<16>(ring.stage() + LEFT + place(line + PASS * i, word), from + begin, true);
            }
            ring.filled();
        }
    }
}

// Rows of dx in bf16, which are columns of the tile: eight columns of a row at a time, of twice eight rows in four lanes.
__device__ __forceinline__ void store_input(const Args& a, const Tile& tile, const Sums& sums) {
    const int lane = threadIdx.x % 32, first = tile.column + lane % 4 / 2 * 8 + lane / 4;
    int rows[COLUMNS / 16];
#pragma unroll
    for (int i = 0; i < COLUMNS / 16; ++i) rows[i] = first + 16 * i < a.N ? int(a.kept[first + 16 * i]) * int(a.K) : -1;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int column = tile.row + row_of(half, lane & 1);
#pragma unroll
        for (int i = 0; i < COLUMNS / 16; ++i) {
            unsigned words[4];
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const float* const two = sums[half] + (2 * i + j / 2) * 4 + j % 2 * 2;
                words[j] = transposed(rounded(two[0], two[1]));
            }
            exchange(words, lane);
            if (rows[i] >= 0 && column < a.K) store_words(a.dx + rows[i] + column, words);
        }
    }
}

// Rows of dW in fp32, or its columns where the tile is turned.
template <bool TURNED> __device__ __forceinline__ void store_weight(const Args& a, const Tile& tile, const Sums& sums) {
    const int lane = threadIdx.x % 32, M = int(a.M[tile.map]), K = int(a.K), column = tile.column + lane % 4 * 2;
    float* const first = a.dweight[tile.map] + i64(tile.part) * M * K;
    const int width = TURNED ? M : K;
#pragma unroll
    for (int part = 0; part < 4; ++part) {
        const int row = tile.row + row_of(part / 2, part % 2) + lane / 4;
        if (row >= (TURNED ? K : M)) continue;
        float* to = first + (TURNED ? i64(column) * K + row : i64(row) * K + column);
#pragma unroll
        for (int j = 0; j < COLUMNS / 8; ++j) {
            const float* const two = sums[part / 2] + j * 4 + part % 2 * 2;
            if (column + 8 * j < width) {
                if (TURNED) to[0] = two[0], to[K] = two[1];
                else *reinterpret_cast<Pair*>(to) = {two[0], two[1]};
            }
            to += TURNED ? 8 * i64(K) : 8;
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) filtered(const __grid_constant__ Args a) {
    Ring ring = begin_ring();
    Tile tile;
    if (threadIdx.x >= MULTIPLIERS) {
        give_registers<FEW>();
        for (int i = 0; i < room(a); ++i) {
            if (!tile_at(a, i, tile)) continue;
            if (tile.weight) fetch_weight(a, tile, ring);
            else fetch_input(a, tile, ring);
        }
        return;
    }
    take_registers<MANY>();
    for (int i = 0; i < room(a); ++i) {
        if (!tile_at(a, i, tile)) continue;
        Sums sums;
        if (tile.weight) {
            sum_up<true, true>(sums, over(tile.end - tile.begin, INNER), ring);
            if (tile.turned) store_weight<true>(a, tile, sums);
            else store_weight<false>(a, tile, sums);
        } else {
            sum_up<true, false>(sums, tile.end / INNER, ring);
            store_input(a, tile, sums);
            clear(a, tile);
        }
    }
}

}  // namespace recurrence
