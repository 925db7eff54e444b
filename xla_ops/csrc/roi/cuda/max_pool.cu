// Kernels of roi_pool: the maximum over the pixels of a bin. A warp has a bin,
// its lanes the channels. The backward pass first finds the places of the
// maxima anew; then blocks that own pixels go through the RoIs (tiles.h).
#include "roi/bin.h"
#include "roi/cuda/map.h"
#include "roi/cuda/max_pool_kernels.h"
#include "roi/cuda/tiles.h"

namespace xla_ops {
namespace cuda {
namespace {

// Pixels of bin `index` of a RoI along axis 0 (rows) or 1 (columns) of `size`
// pixels.
template <typename A>
__device__ __forceinline__ PixelRange axis_pixels(const MaxRoiPoolOperands& op, int64_t roi,
                                                  int axis, int64_t index, int64_t size) {
  const A* box = static_cast<const A*>(op.boxes) + roi * 4;
  return bin_pixels(box[axis], box[2 + axis], index, axis ? op.w : op.h, size);
}

// Writes the maxima to y, or, where that is nullptr, their pixels to `places`:
// -1 for a bin without pixels.
template <typename T, int V>
__global__ void __launch_bounds__(kRoiThreads, kRoiBlocks)
    maximum_kernel(const __grid_constant__ MaxRoiPoolOperands op,
                   const __grid_constant__ RoiLevels levels, int64_t bins, T* __restrict__ y,
                   int32_t* __restrict__ places) {
  using A = Arithmetic<T>;
  const int64_t bin = int64_t{blockIdx.x} * kRoiWarps + threadIdx.x / simt::kWarp;
  if (bin >= bins) return;
  const int64_t j = bin % op.w, i = bin / op.w % op.h, roi = bin / op.w / op.h;
  const int64_t image = roi / op.B;
  const RoiWindow window = roi_window(levels, op.map_sizes, image, op.levels[roi], op.L);
  const RoiMap& map = levels.map[window.level];
  const T* pixels = static_cast<const T*>(map.pixels) + image * map.H * map.W * op.C;
  const bool defined = is_finite_box(static_cast<const A*>(op.boxes) + roi * 4);
  PixelRange rows{0, 0}, columns{0, 0};
  if (defined) {
    rows = axis_pixels<A>(op, roi, 0, i, window.height);
    columns = axis_pixels<A>(op, roi, 1, j, window.width);
  }
  const bool empty = rows.end <= rows.begin || columns.end <= columns.begin;
  for (int64_t c = threadIdx.x % simt::kWarp * V; c < op.C; c += simt::kWarp * V) {
    A most[V];
    Run<int32_t, V> place;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      most[v] = defined ? A(0) : A(__builtin_nan(""));
      place.element[v] = -1;
    }
    if (!empty) {
      const int32_t corner = static_cast<int32_t>(rows.begin * map.W + columns.begin);
      load<V>(pixels + corner * op.C + c, most);
#pragma unroll
      for (int v = 0; v < V; ++v) place.element[v] = corner;
      for (int64_t row = rows.begin; row < rows.end; ++row) {
        for (int64_t column = columns.begin; column < columns.end; ++column) {
          const int32_t here = static_cast<int32_t>(row * map.W + column);
          A value[V];
          load<V>(pixels + here * op.C + c, value);
#pragma unroll
          for (int v = 0; v < V; ++v) {
            // The first of equal ones, and the first NaN, which counts as the
            // greatest.
            const bool greater =
                value[v] > most[v] || (value[v] != value[v] && most[v] == most[v]);
            most[v] = greater ? value[v] : most[v];
            place.element[v] = greater ? here : place.element[v];
          }
        }
      }
    }
    if (y) {
      store<V>(most, y + bin * op.C + c);
    } else {
      *reinterpret_cast<Run<int32_t, V>*>(places + bin * op.C + c) = place;
    }
  }
}

template <typename A>
__global__ void __launch_bounds__(kRoiThreads, kRoiBlocks)
    reach_kernel(const __grid_constant__ MaxRoiPoolOperands op,
                 const __grid_constant__ RoiLevels levels, RoiReach* __restrict__ reach) {
  const int64_t roi = int64_t{blockIdx.x} * kRoiThreads + threadIdx.x;
  if (roi >= op.N * op.B) return;
  const RoiWindow window = roi_window(levels, op.map_sizes, roi / op.B, op.levels[roi], op.L);
  RoiReach mine{};
  if (is_finite_box(static_cast<const A*>(op.boxes) + roi * 4)) {
#pragma unroll
    for (int axis = 0; axis < 2; ++axis) {
      const int64_t size = axis ? window.width : window.height, bins = axis ? op.w : op.h;
      mine.pixel[2 * axis] = static_cast<int32_t>(axis_pixels<A>(op, roi, axis, 0, size).begin);
      mine.pixel[2 * axis + 1] =
          static_cast<int32_t>(axis_pixels<A>(op, roi, axis, bins - 1, size).end);
    }
  }
  reach[roi] = mine;
}

struct BitLine {
  unsigned present;
};

template <typename T, int V>
__global__ void __launch_bounds__(kRoiThreads, kRoiBlocks)
    max_map_gradient_kernel(const __grid_constant__ MaxRoiPoolOperands op,
                            const __grid_constant__ RoiLevels levels,
                            const __grid_constant__ RoiTiling tiling, const T* __restrict__ g,
                            const RoiReach* __restrict__ reach,
                            const int32_t* __restrict__ places) {
  using A = Arithmetic<T>;
  const RoiTile tile(tiling, op.L, V);
  const RoiMap& map = levels.map[tile.level];
  const RoiWindow window = map_window(levels, op.map_sizes, tile.plane, tile.level, op.L);
  const unsigned bins = static_cast<unsigned>(op.h * op.w), width = static_cast<unsigned>(op.w);
  const int32_t first = static_cast<int32_t>(tile.my_row() * map.W + tile.column);
  A sum[kTileSide][V] = {};
  for_each_tile_cell<BitLine>(
      tile, tile.plane, op.B, op.levels, reach, bins,
      [&](unsigned bin, int64_t roi, int axis, BitLine& line) {
        const PixelRange range = axis_pixels<A>(op, roi, axis, axis ? bin % width : bin / width,
                                                axis ? window.width : window.height);
        line.present = tile_bits(range.begin, range.end, axis ? tile.column : tile.row);
      },
      [&](unsigned bin, int64_t roi, const BitLine&, const BitLine& columns) {
        if (tile.channel >= op.C) return;
        const int64_t at = (roi * bins + bin) * op.C + tile.channel;
        A share[V];
        load<V>(g + at, share);
        const Run<int32_t, V> place = *reinterpret_cast<const Run<int32_t, V>*>(places + at);
#pragma unroll
        for (int k = 0; k < kTileSide; ++k) {
          if ((columns.present >> k & 1) == 0) continue;
#pragma unroll
          for (int v = 0; v < V; ++v) {
            if (place.element[v] == first + k) sum[k][v] += share[v];
          }
        }
      });
  store_tile<T, V>(tile, map, op.C, sum);
}

template <typename T, int V>
simt::Failure launch_maximum(const MaxRoiPoolOperands& op, void* y, int32_t* places,
                             cudaStream_t stream) {
  const int64_t bins = op.N * op.B * op.h * op.w;
  return simt::launch(maximum_kernel<T, V>, blocks_of_warps(bins), kRoiThreads, 0, stream, op,
                      roi_levels(op.maps, op.L), bins, static_cast<T*>(y), places);
}

template <typename T, int V>
simt::Failure launch_map_gradient(const MaxRoiPoolOperands& op, const void* g, int32_t* scratch,
                                  int32_t* places, cudaStream_t stream) {
  const RoiLevels levels = roi_levels(op.maps, op.L);
  RoiReach* reach = reinterpret_cast<RoiReach*>(scratch);
  const int64_t rois = op.N * op.B;
  simt::Failure failure =
      simt::launch(reach_kernel<Arithmetic<T>>, (rois + kRoiThreads - 1) / kRoiThreads,
                   kRoiThreads, 0, stream, op, levels, reach);
  if (!failure) failure = launch_maximum<T, V>(op, nullptr, places, stream);
  if (failure) return failure;
  const RoiTiling tiling = roi_tiling(op.maps, op.L, op.N, op.C, V);
  return simt::launch(max_map_gradient_kernel<T, V>, tiling.blocks, kRoiThreads,
                      sizeof(RoiTileMemory<BitLine>), stream, op, levels, tiling,
                      static_cast<const T*>(g), reach, places);
}

}  // namespace

simt::Failure max_pool_rois(const MaxRoiPoolOperands& op, void* y, cudaStream_t stream) {
  XLA_OPS_RETURN_FOR_ROI_RUNS(op.type, op.C, launch_maximum, op, y, nullptr, stream);
}

simt::Failure max_roi_map_gradient(const MaxRoiPoolOperands& op, const void* g, int32_t* reach,
                                   int32_t* places, cudaStream_t stream) {
  XLA_OPS_RETURN_FOR_ROI_RUNS(op.type, op.C, launch_map_gradient, op, g, reach, places, stream);
}

}  // namespace cuda
}  // namespace xla_ops
