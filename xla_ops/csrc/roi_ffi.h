// Operands that the handlers of all RoI pooling share, decoded and checked in one place for
// the CPU and CUDA.
#ifndef XLA_OPS_ROI_FFI_H_
#define XLA_OPS_ROI_FFI_H_

#include <cstdint>
#include <string>
#include <vector>

#include "buffers.h"
#include "geometry.h"
#include "roi_pool_operands.h"
#include "xla/ffi/api/ffi.h"

namespace xla_ops {

// The buffers of a call: L maps, boxes, levels, map_sizes, some more, then (backward) the
// gradient of the result.
struct RoiBuffers {
  std::vector<xla::ffi::AnyBuffer> all;
  std::vector<RoiMap> maps;
  const void* g = nullptr;
};

// Fills `op`, which points into `buffers`, from the operands, of which `more` stand before
// the gradient. Maps are [N,groups,H,W,C], or [N,H,W,C] where `groups` is 0. `y` is the
// result of the forward pass, else nullptr. Returns what is wrong, or "".
inline std::string decode_roi_operands(const xla::ffi::RemainingArgs& args, int64_t num_levels,
                                       int64_t more, int64_t groups, const xla::ffi::AnyBuffer* y,
                                       RoiBuffers* buffers, RoiOperands* op) {
  if (num_levels < 1 || static_cast<size_t>(num_levels) > args.size()) {
    return "num_levels is " + std::to_string(num_levels);
  }
  const size_t expected = num_levels + 3 + more + (y ? 0 : 1);
  if (args.size() != expected) {
    return std::to_string(args.size()) + " operands; expected " + std::to_string(expected);
  }
  for (size_t i = 0; i < args.size(); ++i) {
    auto buffer = args.get<xla::ffi::AnyBuffer>(i);
    if (!buffer) return "operand " + std::to_string(i) + " is not a buffer";
    buffers->all.push_back(*buffer);
  }
  const auto& all = buffers->all;
  const xla::ffi::DataType dtype = all[0].element_type(), s32 = xla::ffi::DataType::S32;
  const auto type = element_type(dtype);
  if (!type) return "`features` has an element type that no kernel knows";

  const xla::ffi::AnyBuffer& result = y ? *y : all.back();
  const Shape pooled = shape_of(result);
  if (pooled.size() != 5) return "the result has shape " + shape_text(pooled);
  op->type = *type;
  op->N = pooled[0], op->B = pooled[1], op->h = pooled[2], op->w = pooled[3], op->C = pooled[4];
  op->L = num_levels;

  std::string error = check_buffer(y ? "y" : "g", result, pooled, dtype);
  for (int64_t l = 0; l < num_levels && error.empty(); ++l) {
    const Shape shape = shape_of(all[l]);
    const size_t rank = groups > 0 ? 5 : 4;
    if (shape.size() != rank || shape[rank - 3] < 1 || shape[rank - 2] < 1) {
      return "a map has shape " + shape_text(shape);
    }
    const int64_t H = shape[rank - 3], W = shape[rank - 2];
    if (H > kMaxRoiMapSide || W > kMaxRoiMapSide) {
      return "a map of shape " + shape_text(shape) + " is too large";
    }
    Shape wanted{op->N, H, W, op->C};
    if (groups > 0) wanted.insert(wanted.begin() + 1, groups);
    error = check_buffer("features", all[l], wanted, dtype);
    buffers->maps.push_back({H, W, all[l].untyped_data(), nullptr});
  }
  const xla::ffi::AnyBuffer &boxes = all[num_levels], &levels = all[num_levels + 1],
                            &map_sizes = all[num_levels + 2];
  if (error.empty()) error = check_buffer("boxes", boxes, {op->N, op->B, 4}, real_type(*type));
  if (error.empty()) error = check_buffer("levels", levels, {op->N, op->B}, s32);
  if (error.empty()) error = check_buffer("map_sizes", map_sizes, {op->N, op->L, 2}, s32);

  op->maps = buffers->maps.data();
  op->boxes = boxes.untyped_data();
  op->levels = static_cast<const int32_t*>(levels.untyped_data());
  op->map_sizes = static_cast<const int32_t*>(map_sizes.untyped_data());
  buffers->g = y ? nullptr : all.back().untyped_data();
  return error;
}

// Checks the gradients of all operands but boxes, levels, map_sizes and g, which are
// followed by `more` results, and takes those of the maps. Returns what is wrong, or "".
inline std::string decode_roi_gradients(const xla::ffi::RemainingRets& results, size_t more,
                                        RoiBuffers* buffers) {
  const size_t gradients = buffers->all.size() - 4;
  if (results.size() != gradients + more) {
    return std::to_string(results.size()) + " results; expected " +
           std::to_string(gradients + more);
  }
  const size_t num_levels = buffers->maps.size();
  for (size_t i = 0; i < gradients; ++i) {
    auto result = results.get<xla::ffi::AnyBuffer>(i);
    if (!result) return "result " + std::to_string(i) + " is not a buffer";
    const xla::ffi::AnyBuffer& operand = buffers->all[i < num_levels ? i : i + 3];
    const std::string error =
        check_buffer("gradient", **result, shape_of(operand), operand.element_type());
    if (!error.empty()) return error;
    if (i < num_levels) buffers->maps[i].gradient = (*result)->untyped_data();
  }
  return "";
}

}  // namespace xla_ops

#endif  // XLA_OPS_ROI_FFI_H_
