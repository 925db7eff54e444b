// Forward pass of RoI pooling. A warp has a bin of a RoI, or where shifts
// differ by class one class of a bin: two lanes find the taps, then all go over
// the channels, 16 bytes at a time.
#include "roi/cuda/taps.h"

namespace xla_ops {
namespace cuda {
namespace {

template <typename T, int V>
__global__ void __launch_bounds__(kRoiThreads, kRoiBlocks)
    forward_kernel(const __grid_constant__ RoiPoolOperands op,
                   const __grid_constant__ RoiLevels levels, int64_t cells, int capacity,
                   T* __restrict__ y) {
  using A = Arithmetic<T>;
  const int warp = threadIdx.x / simt::kWarp, lane = threadIdx.x % simt::kWarp;
  int64_t rest = int64_t{blockIdx.x} * kRoiWarps + warp;
  if (rest >= cells) return;
  const int64_t classes = shift_classes(op);
  const int64_t k = rest % classes;
  rest /= classes;
  const int j = static_cast<int>(rest % op.w);
  rest /= op.w;
  const int i = static_cast<int>(rest % op.h);
  const int64_t roi = rest / op.h;

  const int64_t image = roi / op.B;
  const RoiWindow window = roi_window(levels, op.map_sizes, image, op.levels[roi], op.L);
  const RoiMap& map = levels.map[window.level];
  const int64_t group = i * op.group_h / op.h * op.group_w + j * op.group_w / op.w;
  const int64_t plane = image * op.group_h * op.group_w + group;
  const T* pixels = static_cast<const T*>(map.pixels) + plane * map.H * map.W * op.C;
  const RoiCell cell = roi_cell<A>(op, roi, i, j, k);
  WarpTaps<A> taps(op, capacity, simt::dynamic_shared<AxisTap<A>>() + warp * 2 * capacity);
  taps.find(cell, window);

  const A* mask = static_cast<const A*>(op.mask);
  const A factor = cell.defined ? (mask ? mask[cell.bin] : A(1)) : A(__builtin_nan(""));
  T* out = y + cell.bin * op.C;
  for (int64_t base = cell.first_channel; base < cell.last_channel; base += simt::kWarp * V) {
    const int64_t c = base + lane * V;
    const bool mine = c < cell.last_channel;
    A sum[V] = {};
    taps.for_each_piece(
        [&](const AxisTap<A>* rows, int row_count, const AxisTap<A>* columns, int column_count) {
          if (!mine) return;
          for (int r = 0; r < row_count; ++r) {
            const T* line = pixels + rows[r].pixel * map.W * op.C + c;
            const A row_weight = rows[r].weight;
#pragma unroll 4
            for (int s = 0; s < column_count; ++s) {
              const A weight = row_weight * columns[s].weight;
              A value[V];
              load<V>(line + columns[s].pixel * op.C, value);
#pragma unroll
              for (int v = 0; v < V; ++v) sum[v] += weight * value[v];
            }
          }
        });
    if (!mine) continue;
#pragma unroll
    for (int v = 0; v < V; ++v) sum[v] *= factor;
    store_whole<V>(sum, out + c);
  }
}

template <typename T, int V>
simt::Failure launch_forward(const RoiPoolOperands& op, void* y, cudaStream_t stream) {
  const int64_t cells = op.N * op.B * op.h * op.w * (op.shift ? op.classes : 1);
  const int capacity = tap_capacity(op);
  return simt::launch(forward_kernel<T, V>, blocks_of_warps(cells), kRoiThreads,
                      kRoiWarps * 2 * capacity * sizeof(AxisTap<Arithmetic<T>>), stream, op,
                      roi_levels(op.maps, op.L), cells, capacity, static_cast<T*>(y));
}

}  // namespace

simt::Failure pool_rois(const RoiPoolOperands& op, void* y, cudaStream_t stream) {
  XLA_OPS_RETURN_FOR_ROI_RUNS(op.type, op.C / (op.shift ? op.classes : 1), launch_forward, op, y,
                              stream);
}

}  // namespace cuda
}  // namespace xla_ops
