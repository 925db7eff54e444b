// How the gradients of maps are summed without atomics: a block owns the pixels
// of a tile, and a run of channels, and goes through the bins that reach it in
// their order. Used by RoI pooling and max pooling.
#ifndef XLA_OPS_ROI_CUDA_TILES_H_
#define XLA_OPS_ROI_CUDA_TILES_H_

#include "roi/cuda/map.h"

namespace xla_ops {
namespace cuda {

// Tiles of all maps. The last map goes first: on a coarse one each tile has
// many bins.
struct RoiTiling {
  int64_t first[kMaxRoiLevels];  // block of each level
  int tile_columns[kMaxRoiLevels], tile_rows[kMaxRoiLevels];
  int slabs;  // runs of channels
  int64_t blocks;
};

// For `planes` maps of each level, by image and group, of C channels; a slab is
// as many channels as a warp has in runs of V.
inline RoiTiling roi_tiling(const RoiMap* maps, int64_t num_levels, int64_t planes, int64_t C,
                            int V) {
  RoiTiling t{};
  t.slabs = static_cast<int>((C + simt::kWarp * V - 1) / (simt::kWarp * V));
  for (int64_t l = num_levels - 1; l >= 0; --l) {
    t.tile_rows[l] = static_cast<int>((maps[l].H + kTileSide - 1) / kTileSide);
    t.tile_columns[l] = static_cast<int>((maps[l].W + kTileSide - 1) / kTileSide);
    t.first[l] = t.blocks;
    t.blocks += planes * t.slabs * t.tile_rows[l] * t.tile_columns[l];
  }
  return t;
}

// The tile of a block.
struct RoiTile {
  int level;
  int64_t plane;
  int row, column;  // first pixel
  int64_t channel;  // of this lane

  __device__ __forceinline__ RoiTile(const RoiTiling& t, int64_t num_levels, int V) {
    int64_t rest = blockIdx.x;
    level = static_cast<int>(num_levels) - 1;
    while (level > 0 && rest >= t.first[level - 1]) --level;
    rest -= t.first[level];
    channel = (rest % t.slabs * simt::kWarp + threadIdx.x % simt::kWarp) * V;
    rest /= t.slabs;
    column = static_cast<int>(rest % t.tile_columns[level]) * kTileSide;
    rest /= t.tile_columns[level];
    row = static_cast<int>(rest % t.tile_rows[level]) * kTileSide;
    plane = rest / t.tile_rows[level];
  }

  __device__ __forceinline__ int my_row() const {
    return row + static_cast<int>(threadIdx.x) / simt::kWarp;
  }
  __device__ __forceinline__ int64_t slab_channel(int V) const {
    return channel - threadIdx.x % simt::kWarp * V;
  }
};

// Pixels that a RoI reads, of the map of its level: rows [0] to [1], columns
// [2] to [3].
struct alignas(16) RoiReach {
  int32_t pixel[4];
};

// The bits of the pixels [begin, end) that lie in the kTileSide pixels from
// `first` on.
__device__ __forceinline__ unsigned tile_bits(int64_t begin, int64_t end, int first) {
  const int64_t from = begin > first ? begin - first : 0;
  const int64_t to = end - first < kTileSide ? end - first : kTileSide;
  if (from >= to) return 0;
  return ((1u << to) - 1) & ~((1u << from) - 1);
}

// Shared memory of for_each_tile_cell(). `Line` is what is known of a bin along
// an axis.
template <typename Line>
struct RoiTileMemory {
  int32_t roi[kRoiThreads];
  int32_t found[kRoiWarps];
  Line line[kTileCells][2];
};

// Calls f(cell of a RoI, RoI, its line along each axis) for the bins of an
// image's RoIs that reach this warp's row of the tile, by RoI and cell.
// find(cell, RoI, axis, line) fills a line, whose `present` has bits for the
// pixels of the tile that are read. A RoI has `cells`, at most kMaxRoiCells.
// All threads of the block call it.
template <typename Line, typename Find, typename F>
__device__ __forceinline__ void for_each_tile_cell(const RoiTile& tile, int64_t image,
                                                   int64_t rois,
                                                   const int32_t* __restrict__ levels,
                                                   const RoiReach* __restrict__ reach,
                                                   unsigned cells, Find&& find, F&& f) {
  auto* memory = simt::dynamic_shared<RoiTileMemory<Line>>();
  const int thread = threadIdx.x, lane = thread % simt::kWarp, warp = thread / simt::kWarp;
  for (int64_t first = image * rois; first < (image + 1) * rois; first += kRoiThreads) {
    const int64_t mine = first + thread;
    bool hit = mine < (image + 1) * rois && levels[mine] == tile.level;
    if (hit) {
      const RoiReach r = reach[mine];
      hit = r.pixel[0] < tile.row + kTileSide && r.pixel[1] > tile.row &&
            r.pixel[2] < tile.column + kTileSide && r.pixel[3] > tile.column;
    }
    const unsigned votes = __ballot_sync(simt::kFullMask, hit);
    if (lane == 0) memory->found[warp] = __popc(votes);
    __syncthreads();
    int before = 0, found = 0;
#pragma unroll
    for (int w = 0; w < kRoiWarps; ++w) {
      if (w == warp) before = found;
      found += memory->found[w];
    }
    if (hit) memory->roi[before + __popc(votes & ((1u << lane) - 1))] = thread;
    __syncthreads();

    const unsigned all = found * cells;
    for (unsigned begin = 0; begin < all; begin += kTileCells) {
      const unsigned number = begin + thread / 2;
      const int here = static_cast<int>(all - begin < kTileCells ? all - begin : kTileCells);
      if (number < all) {
        find(number % cells, first + memory->roi[number / cells], thread % 2,
             memory->line[thread / 2][thread % 2]);
      }
      __syncthreads();
      for (int base = 0; base < here; base += simt::kWarp) {
        const int k = base + lane;
        const bool reached = k < here && (memory->line[k][0].present >> warp & 1) != 0 &&
                             memory->line[k][1].present != 0;
        unsigned left = __ballot_sync(simt::kFullMask, reached);
        while (left != 0) {
          const int next = base + __ffs(left) - 1;
          left &= left - 1;
          const unsigned cell = begin + next;
          f(cell % cells, first + memory->roi[cell / cells], memory->line[next][0],
            memory->line[next][1]);
        }
      }
      __syncthreads();
    }
  }
}

// Writes the sums of this warp's pixels.
template <typename T, int V>
__device__ __forceinline__ void store_tile(const RoiTile& tile, const RoiMap& map, int64_t C,
                                           const Arithmetic<T> (&sum)[kTileSide][V]) {
  const int row = tile.my_row();
  if (row >= map.H || tile.channel >= C) return;
  T* out = static_cast<T*>(map.gradient) + ((tile.plane * map.H + row) * map.W + tile.column) * C +
           tile.channel;
#pragma unroll
  for (int k = 0; k < kTileSide; ++k) {
    if (tile.column + k < map.W) store_whole<V>(sum[k], out + k * C);
  }
}

}  // namespace cuda
}  // namespace xla_ops

#endif  // XLA_OPS_ROI_CUDA_TILES_H_
