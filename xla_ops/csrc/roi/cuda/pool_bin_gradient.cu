// Gradients of shift and mask of RoI pooling. A warp has a bin: its lanes
// multiply their channels of the gradient with the pixels, then add up.
#include "roi/cuda/taps.h"

namespace xla_ops {
namespace cuda {
namespace {

template <typename A>
__device__ __forceinline__ A sum_of_warp(A value) {
#pragma unroll
  for (int step = simt::kWarp / 2; step > 0; step /= 2) {
    value += __shfl_xor_sync(simt::kFullMask, value, step);
  }
  return value;
}

template <typename T, int V>
__global__ void __launch_bounds__(kRoiThreads, kRoiBlocks)
    bin_gradient_kernel(const __grid_constant__ RoiPoolOperands op,
                        const __grid_constant__ RoiLevels levels, int64_t bins, int capacity,
                        const T* __restrict__ g, Arithmetic<T>* __restrict__ dshift,
                        Arithmetic<T>* __restrict__ dmask) {
  using A = Arithmetic<T>;
  const int warp = threadIdx.x / simt::kWarp, lane = threadIdx.x % simt::kWarp;
  const int64_t bin = int64_t{blockIdx.x} * kRoiWarps + warp;
  if (bin >= bins) return;
  const int j = static_cast<int>(bin % op.w), i = static_cast<int>(bin / op.w % op.h);
  const int64_t roi = bin / op.w / op.h;

  const int64_t image = roi / op.B;
  const RoiWindow window = roi_window(levels, op.map_sizes, image, op.levels[roi], op.L);
  const RoiMap& map = levels.map[window.level];
  const int64_t group = i * op.group_h / op.h * op.group_w + j * op.group_w / op.w;
  const int64_t plane = image * op.group_h * op.group_w + group;
  const T* pixels = static_cast<const T*>(map.pixels) + plane * map.H * map.W * op.C;
  const T* gradient = g + bin * op.C;
  WarpTaps<A> taps(op, capacity, simt::dynamic_shared<AxisTap<A>>() + warp * 2 * capacity);
  const A factor = op.mask ? static_cast<const A*>(op.mask)[bin] : A(1);
  const int64_t classes = shift_classes(op);
  A whole = 0;
  for (int64_t k = 0; k < classes; ++k) {
    const RoiCell cell = roi_cell<A>(op, roi, i, j, k);
    taps.find(cell, window);
    // Products of the gradient with the pooled value and with its derivatives.
    A value = 0, dy = 0, dx = 0;
    taps.for_each_piece(
        [&](const AxisTap<A>* rows, int row_count, const AxisTap<A>* columns, int column_count) {
          for (int64_t c = cell.first_channel + lane * V; c < cell.last_channel;
               c += simt::kWarp * V) {
            A weight[V];
            load<V>(gradient + c, weight);
            for (int r = 0; r < row_count; ++r) {
              const T* line = pixels + rows[r].pixel * map.W * op.C + c;
              A row = 0, row_slope = 0;
#pragma unroll 4
              for (int s = 0; s < column_count; ++s) {
                A pixel[V], product = 0;
                load<V>(line + columns[s].pixel * op.C, pixel);
#pragma unroll
                for (int v = 0; v < V; ++v) product += weight[v] * pixel[v];
                row += columns[s].weight * product;
                row_slope += columns[s].slope * product;
              }
              value += rows[r].weight * row;
              dy += rows[r].slope * row;
              dx += rows[r].weight * row_slope;
            }
          }
        });
    whole += sum_of_warp(value);
    dy = sum_of_warp(dy);
    dx = sum_of_warp(dx);
    if (dshift && lane == 0) {
      const A shift[2] = {cell.defined ? factor * dy : A(0), cell.defined ? factor * dx : A(0)};
      store<2>(shift, dshift + 2 * cell.shift);
    }
  }
  if (dmask && lane == 0) dmask[bin] = whole;
}

template <typename T, int V>
simt::Failure launch_bin_gradient(const RoiPoolOperands& op, const void* g, void* dshift,
                                  void* dmask, cudaStream_t stream) {
  using A = Arithmetic<T>;
  const int64_t bins = op.N * op.B * op.h * op.w;
  const int capacity = tap_capacity(op);
  return simt::launch(bin_gradient_kernel<T, V>, blocks_of_warps(bins), kRoiThreads,
                      kRoiWarps * 2 * capacity * sizeof(AxisTap<A>), stream, op,
                      roi_levels(op.maps, op.L), bins, capacity, static_cast<const T*>(g),
                      static_cast<A*>(dshift), static_cast<A*>(dmask));
}

}  // namespace

simt::Failure roi_bin_gradient(const RoiPoolOperands& op, const void* g, void* dshift, void* dmask,
                               cudaStream_t stream) {
  XLA_OPS_RETURN_FOR_ROI_RUNS(op.type, op.C / (op.shift ? op.classes : 1), launch_bin_gradient, op,
                              g, dshift, dmask, stream);
}

}  // namespace cuda
}  // namespace xla_ops
