// RoI pooling of whole pixels along one axis: those that a bin covers. Shared by the CPU and the
// CUDA kernels.

#ifndef XLA_OPS_ROI_BIN_H_
#define XLA_OPS_ROI_BIN_H_

#include <cstdint>

#include "inline.h"

namespace xla_ops {

// Pixels [begin, end); none where end <= begin.
struct PixelRange {
  int64_t begin, end;
};

// From `begin` to `end`, cut to an axis of `size` pixels. Any numbers will do but NaN, as the cut
// comes before the conversion.
template <typename A>
XLA_OPS_INLINE PixelRange cut_pixels(A begin, A end, int64_t size) {
  const A last = static_cast<A>(size);
  return {begin > A(0) ? static_cast<int64_t>(begin < last ? begin : last) : 0,
          end > A(0) ? static_cast<int64_t>(end < last ? end : last) : 0};
}

// Bin `bin` of `bins` of a RoI that covers `extent` whole pixels from pixel `start` on, cut
// to an axis of `size` pixels. Rounded as torchvision does: bins may share pixels.
template <typename A>
XLA_OPS_INLINE PixelRange bin_pixels(A start, A extent, int64_t bin, int64_t bins, int64_t size) {
  const A step = extent / static_cast<A>(bins);
  return cut_pixels(start + static_cast<A>(__builtin_floor(static_cast<A>(bin) * step)),
                    start + static_cast<A>(__builtin_ceil(static_cast<A>(bin + 1) * step)), size);
}

// Pixels that bin `bin` of `bins` of a RoI touches, which reaches from `start` over `extent`, cut
// to an axis of `size` pixels. Divided last: what rounding then leaves of an edge between pixels
// is that edge, and no compiler can fuse the sum with a product.
template <typename A>
XLA_OPS_INLINE PixelRange touched_pixels(A start, A extent, int64_t bin, int64_t bins,
                                         int64_t size) {
  const auto edge = [&](int64_t index) {
    return start + static_cast<A>(index) * extent / static_cast<A>(bins);
  };
  return cut_pixels(static_cast<A>(__builtin_floor(edge(bin))),
                    static_cast<A>(__builtin_ceil(edge(bin + 1))), size);
}

}  // namespace xla_ops

#endif  // XLA_OPS_ROI_BIN_H_
