// What the kernels of RoI pooling share: the part of a map that a RoI reads, and sums that
// become gradients.
#ifndef XLA_OPS_ROI_CPU_WINDOW_H_
#define XLA_OPS_ROI_CPU_WINDOW_H_

#include "roi/operands.h"
#include "simd/vector.h"

namespace xla_ops {
namespace XLA_OPS_ISA {

// The part of one image's map that a RoI reads.
struct RoiWindow {
  int64_t row;            // pixels from a row to the next
  int64_t height, width;  // of the part that counts
};

XLA_OPS_ALWAYS_INLINE int64_t clamp(int64_t value, int64_t low, int64_t high) {
  return value < low ? low : value > high ? high : value;
}

XLA_OPS_ALWAYS_INLINE RoiWindow window_of(const RoiOperands& op, int64_t image, int64_t level) {
  const RoiMap& map = op.maps[level];
  const int32_t* size = op.map_sizes + (image * op.L + level) * 2;
  return {map.W, clamp(size[0], 0, map.H), clamp(size[1], 0, map.W)};
}

XLA_OPS_ALWAYS_INLINE bool has_level(const RoiOperands& op, int64_t roi) {
  return op.levels[roi] >= 0 && op.levels[roi] < op.L;
}

// The map that RoI `roi` (of the N*B) reads; any where it has no level.
XLA_OPS_ALWAYS_INLINE const RoiMap& map_of_roi(const RoiOperands& op, int64_t roi) {
  return op.maps[has_level(op, roi) ? op.levels[roi] : 0];
}

// Its part that counts; nothing where it has no level.
XLA_OPS_ALWAYS_INLINE RoiWindow window_of_roi(const RoiOperands& op, int64_t roi) {
  if (!has_level(op, roi)) return {0, 0, 0};
  return window_of(op, roi / op.B, op.levels[roi]);
}

// Whether all four numbers of a box are finite.
template <typename A>
XLA_OPS_ALWAYS_INLINE bool is_finite_box(const A* box) {
  for (int k = 0; k < 4; ++k) {
    if (box[k] - box[k] != A(0)) return false;
  }
  return true;
}

// Writes the sums of a block, whose pixels are `stride` apart, to a gradient of type T
// whose pixels are `step` apart.
template <typename T>
XLA_OPS_ALWAYS_INLINE void store_sums(const Arithmetic<T>* sums, int64_t stride, int64_t pixels,
                                      int64_t channels, T* gradient, int64_t step) {
  for (int64_t k = 0; k < pixels; ++k) {
    for_each_vector<kLanes<Arithmetic<T>>>(0, channels, [&](auto lanes, int64_t c) {
      constexpr int L = decltype(lanes)::value;
      store<L>(gradient + k * step + c, load<L>(sums + k * stride + c));
    });
  }
}

}  // namespace XLA_OPS_ISA
}  // namespace xla_ops

#endif  // XLA_OPS_ROI_CPU_WINDOW_H_
