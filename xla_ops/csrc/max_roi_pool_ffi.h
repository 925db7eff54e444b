// Operands of the handlers of roi_pool (max pooling), decoded and checked in one place for
// the CPU and CUDA.
//
// Operands: L maps [N,H_l,W_l,C], boxes [N,B,4], levels [N,B], map_sizes [N,L,2], then
// (backward) the gradient g [N,B,h,w,C]. Results: y [N,B,h,w,C]; or the gradients of the
// maps.
#ifndef XLA_OPS_MAX_ROI_POOL_FFI_H_
#define XLA_OPS_MAX_ROI_POOL_FFI_H_

#include <cstdint>
#include <string>

#include "max_roi_pool_operands.h"
#include "roi_ffi.h"
#include "xla/ffi/api/ffi.h"

namespace xla_ops {

// Keeps a pixel's number inside int32.
constexpr int64_t kMaxRoiMapPixels = int64_t{1} << 31;

struct MaxRoiPoolCall : RoiBuffers {
  MaxRoiPoolOperands op{};
};

// Fills `call` from the operands and, in the forward pass, the result `y`, else nullptr.
// Returns what is wrong, or "".
inline std::string decode_max_roi_pool(const xla::ffi::RemainingArgs& args, int64_t num_levels,
                                       const xla::ffi::AnyBuffer* y, MaxRoiPoolCall* call) {
  const std::string error = decode_roi_operands(args, num_levels, 0, 0, y, call, &call->op);
  if (!error.empty()) return error;
  for (const RoiMap& map : call->maps) {
    if (map.H * map.W >= kMaxRoiMapPixels) {
      return "a map has " + std::to_string(map.H * map.W) + " pixels; expected less than " +
             std::to_string(kMaxRoiMapPixels);
    }
  }
  return "";
}

// The same for the backward pass. The gradients are followed by `more` results.
inline std::string decode_max_roi_pool_gradients(const xla::ffi::RemainingArgs& args,
                                                 const xla::ffi::RemainingRets& results,
                                                 size_t more, int64_t num_levels,
                                                 MaxRoiPoolCall* call) {
  const std::string error = decode_max_roi_pool(args, num_levels, nullptr, call);
  return error.empty() ? decode_roi_gradients(results, more, call) : error;
}

}  // namespace xla_ops

#endif  // XLA_OPS_MAX_ROI_POOL_FFI_H_
