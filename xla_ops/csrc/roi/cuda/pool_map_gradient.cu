// Gradients of the maps of RoI pooling. First a warp for each RoI finds the
// pixels that the RoI reads; then blocks that own pixels go through the RoIs
// (tiles.h).
#include "roi/cuda/taps.h"
#include "roi/cuda/tiles.h"

namespace xla_ops {
namespace cuda {
namespace {

__device__ __forceinline__ int least_of_warp(int value) {
#pragma unroll
  for (int step = simt::kWarp / 2; step > 0; step /= 2) {
    const int other = __shfl_xor_sync(simt::kFullMask, value, step);
    value = other < value ? other : value;
  }
  return value;
}

template <typename A>
__global__ void __launch_bounds__(kRoiThreads, kRoiBlocks)
    reach_kernel(const __grid_constant__ RoiPoolOperands op,
                 const __grid_constant__ RoiLevels levels, RoiReach* __restrict__ reach) {
  const int64_t roi = int64_t{blockIdx.x} * kRoiWarps + threadIdx.x / simt::kWarp;
  if (roi >= op.N * op.B) return;
  const int lane = threadIdx.x % simt::kWarp;
  const RoiWindow window = roi_window(levels, op.map_sizes, roi / op.B, op.levels[roi], op.L);
  const int64_t classes = shift_classes(op);
  int bound[4] = {INT32_MAX, 0, INT32_MAX, 0};
#pragma unroll
  for (int axis = 0; axis < 2; ++axis) {
    // Bins of a line across the axis read the same pixels of it where none is
    // shifted.
    const int64_t bins = axis ? op.w : op.h, lines = axis ? op.h : op.w;
    const int64_t cells = op.shift ? bins * lines * classes : bins;
    TapBounds<A> bounds;
    for (int64_t number = lane; number < cells; number += simt::kWarp) {
      const int64_t place = op.shift ? number / classes : number;
      const int here = static_cast<int>(place % bins), across = static_cast<int>(place / bins);
      const RoiCell cell = roi_cell<A>(op, roi, axis ? across : here, axis ? here : across,
                                       op.shift ? number % classes : 0);
      if (!cell.defined) continue;
      cell_taps<A>(op, roi, cell.shift, axis, here, axis ? window.width : window.height, bounds);
    }
    if (bounds.last > 0) {
      bound[2 * axis] = static_cast<int>(bounds.first);
      bound[2 * axis + 1] = static_cast<int>(bounds.last);
    }
    bound[2 * axis] = least_of_warp(bound[2 * axis]);
    bound[2 * axis + 1] = -least_of_warp(-bound[2 * axis + 1]);
  }
  if (lane == 0) reach[roi] = {{bound[0], bound[1], bound[2], bound[3]}};
}

// Weights of a cell at the pixels of a tile along an axis.
template <typename A>
struct TapLine {
  A weight[kTileSide];
  unsigned present;  // bits
};

template <typename A>
struct TileTaps {
  TapLine<A>& line;
  int first;  // pixel of the tile
  A slope;    // which no one needs

  struct Tap {
    A &weight, &slope;
  };
  __device__ __forceinline__ Tap operator[](int64_t i) { return {line.weight[i], slope}; }
};

template <typename A>
__device__ __forceinline__ int64_t add_tap(TileTaps<A>& taps, int64_t count, AxisTap<A> tap) {
  const int64_t i = tap.pixel - taps.first;
  if (i < 0 || i >= kTileSide) return count;
  taps.line.weight[i] += tap.weight;
  taps.line.present |= 1u << i;
  return kTileSide;
}

// Not inlined: the sums take many registers.
template <typename A>
__device__ SIMT_NOINLINE void find_line(const RoiPoolOperands& op, int64_t roi,
                                        int64_t shift_number, int axis, int index, int64_t size,
                                        int first, TapLine<A>& line) {
  TileTaps<A> taps{line, first, A(0)};
  cell_taps<A>(op, roi, shift_number, axis, index, size, taps);
}

// The cells of a RoI that a block adds up: those that read its group, and have
// its channels.
struct CellRange {
  int first_i, first_j, first_class;
  unsigned columns;  // bins of a row
  unsigned classes, cells;

  __device__ __forceinline__ CellRange(const RoiPoolOperands& op, int64_t group,
                                       int64_t first_channel, int64_t last_channel) {
    const int64_t gi = group / op.group_w, gj = group % op.group_w;
    first_i = first_of(gi, op.h, op.group_h);
    first_j = first_of(gj, op.w, op.group_w);
    columns = first_of(gj + 1, op.w, op.group_w) - first_j;
    const int64_t width = op.C / shift_classes(op);
    first_class = static_cast<int>(first_channel / width);
    classes = static_cast<int>((last_channel + width - 1) / width) - first_class;
    cells = (first_of(gi + 1, op.h, op.group_h) - first_i) * columns * classes;
  }

  // The first bin of a group, or of one behind it, along an axis.
  static __device__ __forceinline__ int first_of(int64_t group, int64_t bins, int64_t groups) {
    return static_cast<int>((group * bins + groups - 1) / groups);
  }

  template <typename A>
  __device__ __forceinline__ RoiCell cell(const RoiPoolOperands& op, unsigned number,
                                          int64_t roi) const {
    const unsigned bin = number / classes;
    return roi_cell<A>(op, roi, first_i + bin / columns, first_j + bin % columns,
                       first_class + number % classes);
  }
};

template <typename T, int V>
__global__ void __launch_bounds__(kRoiThreads, kRoiBlocks)
    map_gradient_kernel(const __grid_constant__ RoiPoolOperands op,
                        const __grid_constant__ RoiLevels levels,
                        const __grid_constant__ RoiTiling tiling, const T* __restrict__ g,
                        const RoiReach* __restrict__ reach) {
  using A = Arithmetic<T>;
  const RoiTile tile(tiling, op.L, V);
  const int64_t groups = op.group_h * op.group_w;
  const int64_t image = tile.plane / groups, slab = tile.slab_channel(V);
  const int64_t end = slab + simt::kWarp * V;
  const CellRange range(op, tile.plane % groups, slab, end < op.C ? end : op.C);
  const A* mask = static_cast<const A*>(op.mask);
  const int warp = threadIdx.x / simt::kWarp;
  A sum[kTileSide][V] = {};
  for_each_tile_cell<TapLine<A>>(
      tile, image, op.B, op.levels, reach, range.cells,
      [&](unsigned number, int64_t roi, int axis, TapLine<A>& line) {
        for (A& weight : line.weight) weight = 0;
        line.present = 0;
        const RoiCell cell = range.template cell<A>(op, number, roi);
        if (!cell.defined) return;
        // Known before, it would take registers from the sums.
        const RoiWindow window = map_window(levels, op.map_sizes, image, tile.level, op.L);
        find_line(op, roi, cell.shift, axis, axis ? cell.j : cell.i,
                  axis ? window.width : window.height, axis ? tile.column : tile.row, line);
      },
      [&](unsigned number, int64_t roi, const TapLine<A>& rows, const TapLine<A>& columns) {
        const RoiCell cell = range.template cell<A>(op, number, roi);
        if (tile.channel < cell.first_channel || tile.channel >= cell.last_channel) return;
        const A factor = mask ? mask[cell.bin] : A(1);
        A share[V];
        load<V>(g + cell.bin * op.C + tile.channel, share);
#pragma unroll
        for (int v = 0; v < V; ++v) share[v] *= factor;
        const A row_weight = rows.weight[warp];
#pragma unroll
        for (int k = 0; k < kTileSide; ++k) {
          if ((columns.present >> k & 1) == 0) continue;
          const A weight = row_weight * columns.weight[k];
#pragma unroll
          for (int v = 0; v < V; ++v) sum[k][v] += weight * share[v];
        }
      });
  store_tile<T, V>(tile, levels.map[tile.level], op.C, sum);
}

template <typename T, int V>
simt::Failure launch_map_gradient(const RoiPoolOperands& op, const void* g, int32_t* scratch,
                                  cudaStream_t stream) {
  using A = Arithmetic<T>;
  const RoiLevels levels = roi_levels(op.maps, op.L);
  RoiReach* reach = reinterpret_cast<RoiReach*>(scratch);
  const simt::Failure failure = simt::launch(reach_kernel<A>, blocks_of_warps(op.N * op.B),
                                             kRoiThreads, 0, stream, op, levels, reach);
  if (failure) return failure;
  const RoiTiling tiling = roi_tiling(op.maps, op.L, op.N * op.group_h * op.group_w, op.C, V);
  return simt::launch(map_gradient_kernel<T, V>, tiling.blocks, kRoiThreads,
                      sizeof(RoiTileMemory<TapLine<A>>), stream, op, levels, tiling,
                      static_cast<const T*>(g), reach);
}

}  // namespace

simt::Failure roi_map_gradient(const RoiPoolOperands& op, const void* g, int32_t* reach,
                               cudaStream_t stream) {
  XLA_OPS_RETURN_FOR_ROI_RUNS(op.type, op.C / (op.shift ? op.classes : 1), launch_map_gradient, op,
                              g, reach, stream);
}

}  // namespace cuda
}  // namespace xla_ops
