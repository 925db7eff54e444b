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
#include <vector>

#include "buffers.h"
#include "geometry.h"
#include "max_roi_pool_operands.h"
#include "xla/ffi/api/ffi.h"

namespace xla_ops {

// Keeps a pixel's number inside int32.
constexpr int64_t kMaxRoiMapPixels = int64_t{1} << 31;

struct MaxRoiPoolCall {
  MaxRoiPoolOperands op{};
  std::vector<RoiMap> maps;
  const void* g = nullptr;
};

// Fills `call` from the operands. Returns what is wrong, or "".
inline std::string decode_max_roi_pool(const xla::ffi::RemainingArgs& args, int64_t num_levels,
                                       bool backward, const Shape& output, MaxRoiPoolCall* call) {
  if (num_levels < 1 || static_cast<size_t>(num_levels) > args.size()) {
    return "num_levels is " + std::to_string(num_levels);
  }
  const size_t expected = num_levels + 3 + (backward ? 1 : 0);
  if (args.size() != expected) {
    return std::to_string(args.size()) + " operands; expected " + std::to_string(expected);
  }
  std::vector<xla::ffi::AnyBuffer> buffers;
  for (size_t i = 0; i < args.size(); ++i) {
    auto buffer = args.get<xla::ffi::AnyBuffer>(i);
    if (!buffer) return "operand " + std::to_string(i) + " is not a buffer";
    buffers.push_back(*buffer);
  }

  MaxRoiPoolOperands& op = call->op;
  const xla::ffi::DataType dtype = buffers[0].element_type();
  const auto type = element_type(dtype);
  if (!type) return "`features` has an element type that no kernel knows";
  op.type = *type;
  const xla::ffi::AnyBuffer &boxes = buffers[num_levels], &levels = buffers[num_levels + 1],
                            &map_sizes = buffers[num_levels + 2];

  const Shape pooled = backward ? shape_of(buffers.back()) : output;
  if (pooled.size() != 5) return "the result has shape " + shape_text(pooled);
  op.N = pooled[0], op.B = pooled[1], op.h = pooled[2], op.w = pooled[3], op.C = pooled[4];
  op.L = num_levels;

  std::string error;
  for (int64_t l = 0; l < num_levels && error.empty(); ++l) {
    const Shape shape = shape_of(buffers[l]);
    if (shape.size() != 4 || shape[1] > kMaxRoiMapSide || shape[2] > kMaxRoiMapSide ||
        shape[1] * shape[2] >= kMaxRoiMapPixels) {
      return "a map has shape " + shape_text(shape);
    }
    error = check_buffer("features", buffers[l], {op.N, shape[1], shape[2], op.C}, dtype);
    call->maps.push_back({shape[1], shape[2], buffers[l].untyped_data(), nullptr});
  }
  if (error.empty()) {
    error = check_buffer("boxes", boxes, {op.N, op.B, 4}, real_type(*type));
  }
  if (error.empty()) error = check_buffer("levels", levels, {op.N, op.B}, xla::ffi::DataType::S32);
  if (error.empty()) {
    error = check_buffer("map_sizes", map_sizes, {op.N, op.L, 2}, xla::ffi::DataType::S32);
  }
  if (error.empty() && backward) error = check_buffer("g", buffers.back(), pooled, dtype);

  op.maps = call->maps.data();
  op.boxes = boxes.untyped_data();
  op.levels = static_cast<const int32_t*>(levels.untyped_data());
  op.map_sizes = static_cast<const int32_t*>(map_sizes.untyped_data());
  call->g = backward ? buffers.back().untyped_data() : nullptr;
  return error;
}

// The operands of the forward pass, and its result.
inline std::string decode_max_roi_pool_forward(const xla::ffi::RemainingArgs& args,
                                               int64_t num_levels, const xla::ffi::AnyBuffer& y,
                                               MaxRoiPoolCall* call) {
  const std::string error = decode_max_roi_pool(args, num_levels, false, shape_of(y), call);
  if (error.empty() && y.element_type() != args.get<xla::ffi::AnyBuffer>(0)->element_type()) {
    return "the result has an element type that does not go with the features";
  }
  return error;
}

// Those of the backward pass. The gradients are followed by `more` results.
inline std::string decode_max_roi_pool_gradients(const xla::ffi::RemainingArgs& args,
                                                 const xla::ffi::RemainingRets& results,
                                                 size_t more, int64_t num_levels,
                                                 MaxRoiPoolCall* call) {
  std::string error = decode_max_roi_pool(args, num_levels, true, {}, call);
  const size_t expected = num_levels + more;
  if (error.empty() && results.size() != expected) {
    error = std::to_string(results.size()) + " results; expected " + std::to_string(expected);
  }
  for (int64_t l = 0; l < num_levels && error.empty(); ++l) {
    auto result = results.get<xla::ffi::AnyBuffer>(l);
    if (!result) return "result " + std::to_string(l) + " is not a buffer";
    RoiMap& map = call->maps[l];
    error = check_buffer("gradient", **result, {call->op.N, map.H, map.W, call->op.C},
                         args.get<xla::ffi::AnyBuffer>(l)->element_type());
    map.gradient = (*result)->untyped_data();
  }
  return error;
}

}  // namespace xla_ops

#endif  // XLA_OPS_MAX_ROI_POOL_FFI_H_
