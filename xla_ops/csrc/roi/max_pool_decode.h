// Operands of the handlers of roi_pool (max pooling), decoded and checked in one place for
// the CPU and CUDA.
//
// Operands: L maps [N,H_l,W_l,C], boxes [N,B,4], levels [N,B], map_sizes [N,L,2], then
// (backward) the gradient g [N,B,h,w,C]. Results: y [N,B,h,w,C]; or the gradients of the
// maps.
#ifndef XLA_OPS_ROI_MAX_POOL_DECODE_H_
#define XLA_OPS_ROI_MAX_POOL_DECODE_H_

#include <cstddef>
#include <cstdint>

#include "roi/decode.h"
#include "roi/operands.h"
#include "xla/ffi/api/ffi.h"

namespace xla_ops {

// Keeps a pixel's number inside int32.
constexpr int64_t kMaxRoiMapPixels = int64_t{1} << 31;

struct MaxRoiPoolCall : RoiBuffers {
  MaxRoiPoolOperands op{};
};

// Fills `call` from the operands and, in the forward pass, the result `y`, else nullptr.
inline bool decode_max_roi_pool(Checks& checks, const xla::ffi::RemainingArgs& args,
                                int64_t num_levels, const xla::ffi::AnyBuffer* y,
                                MaxRoiPoolCall* call) {
  if (!decode_roi_operands(checks, args, num_levels, 0, 0, y, call, &call->op)) {
    return false;
  }
  for (const RoiMap& map : call->maps) {
    if (!checks.require(map.H * map.W < kMaxRoiMapPixels, "a map has ", map.H * map.W,
                        " pixels; expected less than ", kMaxRoiMapPixels)) {
      return false;
    }
  }
  return true;
}

// The same for the backward pass. The gradients are followed by `more` results.
inline bool decode_max_roi_pool_gradients(Checks& checks, const xla::ffi::RemainingArgs& args,
                                          const xla::ffi::RemainingRets& results, size_t more,
                                          int64_t num_levels, MaxRoiPoolCall* call) {
  return decode_max_roi_pool(checks, args, num_levels, nullptr, call) &&
         decode_roi_gradients(checks, results, more, call);
}

}  // namespace xla_ops

#endif  // XLA_OPS_ROI_MAX_POOL_DECODE_H_
