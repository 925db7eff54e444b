// Quantised RoI pooling along one axis: the whole pixels that a bin covers. Shared by the
// CPU and the CUDA kernels.

#ifndef XLA_OPS_ROI_BIN_H_
#define XLA_OPS_ROI_BIN_H_

#include <cstdint>

#include "inline.h"

namespace xla_ops {

// Pixels [begin, end); none where end <= begin.
struct PixelRange {
  int64_t begin, end;
};

// Bin `bin` of `bins` of a RoI that covers `extent` whole pixels from pixel `start` on, cut
// to an axis of `size` pixels. Rounded as torchvision does: bins may share pixels. Any
// finite start and extent will do, as the cut comes before the conversion.
template <typename A>
XLA_OPS_INLINE PixelRange bin_pixels(A start, A extent, int64_t bin, int64_t bins, int64_t size) {
  const A step = extent / static_cast<A>(bins), last = static_cast<A>(size);
  const A begin = start + static_cast<A>(__builtin_floor(static_cast<A>(bin) * step));
  const A end = start + static_cast<A>(__builtin_ceil(static_cast<A>(bin + 1) * step));
  return {begin > A(0) ? static_cast<int64_t>(begin < last ? begin : last) : 0,
          end > A(0) ? static_cast<int64_t>(end < last ? end : last) : 0};
}

}  // namespace xla_ops

#endif  // XLA_OPS_ROI_BIN_H_
