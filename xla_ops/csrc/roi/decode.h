// Operands that the handlers of all RoI pooling share, decoded and checked in one place for
// the CPU and CUDA.
#ifndef XLA_OPS_ROI_DECODE_H_
#define XLA_OPS_ROI_DECODE_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "ffi/buffers.h"
#include "ffi/checks.h"
#include "roi/operands.h"
#include "xla/ffi/api/ffi.h"

namespace xla_ops {

// The buffers of a call: L maps, boxes, levels, map_sizes, some more, then (backward) the
// gradient of the result.
struct RoiBuffers {
  std::vector<xla::ffi::AnyBuffer> all;
  std::vector<RoiMap> maps;
  const void* g = nullptr;
};

// Takes the operands: L maps, boxes, levels, map_sizes and `more`.
inline bool take_roi_buffers(Checks& checks, const xla::ffi::RemainingArgs& args,
                             int64_t num_levels, int64_t more, RoiBuffers* buffers) {
  if (!checks.require(num_levels >= 1 && static_cast<size_t>(num_levels) <= args.size(),
                      "num_levels is ", num_levels)) {
    return false;
  }
  const size_t expected = num_levels + 3 + more;
  if (!checks.require(args.size() == expected, args.size(), " operands; expected ", expected)) {
    return false;
  }
  for (size_t i = 0; i < args.size(); ++i) {
    std::optional<xla::ffi::AnyBuffer> buffer;
    if (!checks.take(args, i, &buffer)) return false;
    buffers->all.push_back(*buffer);
  }
  return true;
}

// Sizes and type, from the result or its gradient.
inline bool decode_roi_result(Checks& checks, const char* name, const xla::ffi::AnyBuffer& result,
                              const RoiBuffers& buffers, RoiOperands* op) {
  const xla::ffi::DataType dtype = buffers.all[0].element_type();
  const auto type = element_type(dtype);
  const Shape pooled = shape_of(result);
  if (!(checks.require(type.has_value(), "`features` has an element type that no kernel knows") &&
        checks.require(pooled.size() == 5, "the result has shape ", pooled) &&
        checks.buffer(name, result, pooled, dtype))) {
    return false;
  }
  op->type = *type;
  op->N = pooled[0], op->B = pooled[1], op->h = pooled[2], op->w = pooled[3], op->C = pooled[4];
  return true;
}

inline bool decode_roi_maps(Checks& checks, int64_t num_levels, int64_t groups,
                            RoiBuffers* buffers, RoiOperands* op) {
  const size_t rank = groups > 0 ? 5 : 4;
  for (int64_t l = 0; l < num_levels; ++l) {
    const xla::ffi::AnyBuffer& map = buffers->all[l];
    const Shape shape = shape_of(map);
    if (!checks.require(shape.size() == rank && shape[rank - 3] >= 1 && shape[rank - 2] >= 1,
                        "a map has shape ", shape)) {
      return false;
    }
    const int64_t H = shape[rank - 3], W = shape[rank - 2];
    Shape expected{op->N, H, W, op->C};
    if (groups > 0) expected.insert(expected.begin() + 1, groups);
    if (!(checks.require(H <= kMaxRoiMapSide && W <= kMaxRoiMapSide, "a map of shape ", shape,
                         " is too large") &&
          checks.buffer("features", map, expected, buffers->all[0].element_type()))) {
      return false;
    }
    buffers->maps.push_back({H, W, map.untyped_data(), nullptr});
  }
  op->L = num_levels;
  op->maps = buffers->maps.data();
  return true;
}

// Boxes, levels and map_sizes, which follow the maps.
inline bool decode_rois(Checks& checks, const RoiBuffers& buffers, RoiOperands* op) {
  const xla::ffi::AnyBuffer* const operand = &buffers.all[op->L];
  const xla::ffi::DataType s32 = xla::ffi::DataType::S32;
  op->boxes = operand[0].untyped_data();
  op->levels = static_cast<const int32_t*>(operand[1].untyped_data());
  op->map_sizes = static_cast<const int32_t*>(operand[2].untyped_data());
  return checks.buffer("boxes", operand[0], {op->N, op->B, 4}, real_type(op->type)) &&
         checks.buffer("levels", operand[1], {op->N, op->B}, s32) &&
         checks.buffer("map_sizes", operand[2], {op->N, op->L, 2}, s32);
}

// Fills `op`, which points into `buffers`, from the operands, of which `more` stand before
// the gradient. Maps are [N,groups,H,W,C], or [N,H,W,C] where `groups` is 0. `y` is the
// result of the forward pass, else nullptr.
inline bool decode_roi_operands(Checks& checks, const xla::ffi::RemainingArgs& args,
                                int64_t num_levels, int64_t more, int64_t groups,
                                const xla::ffi::AnyBuffer* y, RoiBuffers* buffers,
                                RoiOperands* op) {
  return take_roi_buffers(checks, args, num_levels, more + (y ? 0 : 1), buffers) &&
         decode_roi_result(checks, y ? "y" : "g", y ? *y : buffers->all.back(), *buffers, op) &&
         decode_roi_maps(checks, num_levels, groups, buffers, op) &&
         decode_rois(checks, *buffers, op);
}

// Checks the gradients of all operands but boxes, levels, map_sizes and g, which are
// followed by `more` results, and takes those of the maps.
inline bool decode_roi_gradients(Checks& checks, const xla::ffi::RemainingRets& results,
                                 size_t more, RoiBuffers* buffers) {
  const size_t gradients = buffers->all.size() - 4, num_levels = buffers->maps.size();
  if (!checks.require(results.size() == gradients + more, results.size(), " results; expected ",
                      gradients + more)) {
    return false;
  }
  buffers->g = buffers->all.back().untyped_data();
  for (size_t i = 0; i < gradients; ++i) {
    const xla::ffi::AnyBuffer& operand = buffers->all[i < num_levels ? i : i + 3];
    std::optional<xla::ffi::AnyBuffer> gradient;
    if (!(checks.take(results, i, &gradient) &&
          checks.buffer("gradient", *gradient, shape_of(operand), operand.element_type()))) {
      return false;
    }
    if (i < num_levels) buffers->maps[i].gradient = gradient->untyped_data();
  }
  return true;
}

}  // namespace xla_ops

#endif  // XLA_OPS_ROI_DECODE_H_
