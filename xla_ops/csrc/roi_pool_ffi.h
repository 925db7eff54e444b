// Operands and attributes of the handlers of RoI pooling, decoded and checked in one place
// for the CPU and CUDA.
//
// Operands: L maps, boxes [N,B,4], levels [N,B], map_sizes [N,L,2], then shift and mask
// [N,B,h,w] where there are such, then (backward) the gradient g [N,B,h,w,C]. Results: y
// [N,B,h,w,C]; or the gradients of the maps, shift and mask. Maps are [N,H_l,W_l,C] and
// shift [N,B,h,w,2]; for ps_roi_pool maps are [N,G,H_l,W_l,C] and shift
// [N,B,h,w,classes,2].
#ifndef XLA_OPS_ROI_POOL_FFI_H_
#define XLA_OPS_ROI_POOL_FFI_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "buffers.h"
#include "geometry.h"
#include "roi_pool_operands.h"
#include "xla/ffi/api/ffi.h"

namespace xla_ops {

// Far beyond any use; keeps products of sizes inside int64.
constexpr int64_t kMaxRoiSamples = 1 << 16, kMaxRoiGroups = 1 << 16;

// The attributes of a call.
struct RoiPoolAttributes {
  int64_t num_levels;
  bool has_shift, has_mask;
  RoiSampling sampling;
  int64_t samples;
  int64_t group_h, group_w;
  bool grouped;  // ps_roi_pool: maps have an axis of groups, and shift one of classes

  int64_t moving() const { return num_levels + has_shift + has_mask; }
};

struct RoiPoolCall {
  RoiPoolOperands op{};
  std::vector<RoiMap> maps;
  const void* g = nullptr;
  void *dshift = nullptr, *dmask = nullptr;
};

inline std::string check_roi_pool_attributes(const RoiPoolAttributes& a) {
  if (a.num_levels < 1) return "num_levels is " + std::to_string(a.num_levels);
  if (a.samples < 0 || a.samples > kMaxRoiSamples) {
    return "samples of a bin along an axis are " + std::to_string(a.samples) + "; expected 0 to " +
           std::to_string(kMaxRoiSamples);
  }
  if (a.group_h < 1 || a.group_h > kMaxRoiGroups || a.group_w < 1 || a.group_w > kMaxRoiGroups) {
    return "there are " + std::to_string(a.group_h) + " x " + std::to_string(a.group_w) +
           " groups; expected 1 to " + std::to_string(kMaxRoiGroups) + " along an axis";
  }
  return "";
}

// Fills `call` from the operands, and in the forward pass the shape of the result. Returns
// what is wrong, or "".
inline std::string decode_roi_pool(const xla::ffi::RemainingArgs& args, const RoiPoolAttributes& a,
                                   bool backward, const Shape& output, RoiPoolCall* call) {
  std::string error = check_roi_pool_attributes(a);
  if (error.empty() && static_cast<size_t>(a.num_levels) > args.size()) {
    error = "num_levels is " + std::to_string(a.num_levels);
  }
  if (!error.empty()) return error;
  const size_t expected = a.moving() + 3 + (backward ? 1 : 0);
  if (args.size() != expected) {
    return std::to_string(args.size()) + " operands; expected " + std::to_string(expected);
  }
  std::vector<xla::ffi::AnyBuffer> buffers;
  for (size_t i = 0; i < args.size(); ++i) {
    auto buffer = args.get<xla::ffi::AnyBuffer>(i);
    if (!buffer) return "operand " + std::to_string(i) + " is not a buffer";
    buffers.push_back(*buffer);
  }

  RoiPoolOperands& op = call->op;
  const xla::ffi::DataType dtype = buffers[0].element_type();
  const auto type = element_type(dtype);
  if (!type) return "`features` has an element type that no kernel knows";
  op.type = *type;
  const xla::ffi::DataType real = real_type(*type);

  size_t next = a.num_levels;
  const xla::ffi::AnyBuffer* boxes = &buffers[next++];
  const xla::ffi::AnyBuffer* levels = &buffers[next++];
  const xla::ffi::AnyBuffer* map_sizes = &buffers[next++];
  const xla::ffi::AnyBuffer* shift = a.has_shift ? &buffers[next++] : nullptr;
  const xla::ffi::AnyBuffer* mask = a.has_mask ? &buffers[next++] : nullptr;
  const xla::ffi::AnyBuffer* g = backward ? &buffers[next++] : nullptr;

  const Shape pooled = g ? shape_of(*g) : output;
  if (pooled.size() != 5) return "the result has shape " + shape_text(pooled);
  op.N = pooled[0], op.B = pooled[1], op.h = pooled[2], op.w = pooled[3], op.C = pooled[4];
  op.L = a.num_levels;
  op.group_h = a.group_h, op.group_w = a.group_w;
  op.sampling = a.sampling, op.samples = a.samples;

  for (int64_t l = 0; l < op.L && error.empty(); ++l) {
    const Shape shape = shape_of(buffers[l]);
    const size_t rank = a.grouped ? 5 : 4;
    if (shape.size() != rank || shape[rank - 3] < 1 || shape[rank - 2] < 1) {
      return "a map has shape " + shape_text(shape);
    }
    const int64_t H = shape[rank - 3], W = shape[rank - 2];
    if (H > kMaxRoiMapSide || W > kMaxRoiMapSide) {
      return "a map of shape " + shape_text(shape) + " is too large";
    }
    Shape wanted{op.N, H, W, op.C};
    if (a.grouped) wanted.insert(wanted.begin() + 1, op.group_h * op.group_w);
    error = check_buffer("features", buffers[l], wanted, dtype);
    call->maps.push_back({H, W, buffers[l].untyped_data(), nullptr});
  }
  if (error.empty()) error = check_buffer("boxes", *boxes, {op.N, op.B, 4}, real);
  if (error.empty())
    error = check_buffer("levels", *levels, {op.N, op.B}, xla::ffi::DataType::S32);
  if (error.empty()) {
    error = check_buffer("map_sizes", *map_sizes, {op.N, op.L, 2}, xla::ffi::DataType::S32);
  }
  op.classes = 1;
  if (error.empty() && shift) {
    const Shape shape = shape_of(*shift);
    Shape wanted{op.N, op.B, op.h, op.w, 2};
    if (a.grouped) {
      if (shape.size() == 6) op.classes = shape[4];
      if (op.classes < 1 || op.C % op.classes != 0) {
        return "`shift` has " + std::to_string(op.classes) + " classes for " +
               std::to_string(op.C) + " channels";
      }
      wanted.insert(wanted.end() - 1, op.classes);
    }
    error = check_buffer("shift", *shift, wanted, real);
  }
  if (error.empty() && mask) error = check_buffer("mask", *mask, {op.N, op.B, op.h, op.w}, real);
  if (error.empty() && g) error = check_buffer("g", *g, pooled, dtype);

  op.maps = call->maps.data();
  op.boxes = boxes->untyped_data();
  op.levels = static_cast<const int32_t*>(levels->untyped_data());
  op.map_sizes = static_cast<const int32_t*>(map_sizes->untyped_data());
  op.shift = shift ? shift->untyped_data() : nullptr;
  op.mask = mask ? mask->untyped_data() : nullptr;
  call->g = g ? g->untyped_data() : nullptr;
  return error;
}

// The operands of the forward pass, and its result.
inline std::string decode_roi_pool_forward(const xla::ffi::RemainingArgs& args,
                                           const RoiPoolAttributes& attributes,
                                           const xla::ffi::AnyBuffer& y, RoiPoolCall* call) {
  const std::string error = decode_roi_pool(args, attributes, false, shape_of(y), call);
  if (error.empty() && y.element_type() != args.get<xla::ffi::AnyBuffer>(0)->element_type()) {
    return "the result has an element type that does not go with the features";
  }
  return error;
}

// Those of the backward pass. The gradients are followed by `more` results.
inline std::string decode_roi_pool_gradients(const xla::ffi::RemainingArgs& args,
                                             const xla::ffi::RemainingRets& results, size_t more,
                                             const RoiPoolAttributes& attributes,
                                             RoiPoolCall* call) {
  std::string error = decode_roi_pool(args, attributes, true, {}, call);
  if (!error.empty()) return error;
  const size_t gradients = attributes.moving(), num_levels = attributes.num_levels;
  if (results.size() != gradients + more) return "wrong number of results";
  for (size_t i = 0; error.empty() && i < gradients; ++i) {
    auto result = results.get<xla::ffi::AnyBuffer>(i);
    auto operand = args.get<xla::ffi::AnyBuffer>(i < num_levels ? i : i + 3);
    if (!result || !operand) return "a gradient is not a buffer";
    error = check_buffer("gradient", **result, shape_of(*operand), operand->element_type());
    void* data = (*result)->untyped_data();
    if (i < num_levels) {
      call->maps[i].gradient = data;
    } else if (attributes.has_shift && i == num_levels) {
      call->dshift = data;
    } else {
      call->dmask = data;
    }
  }
  return error;
}

// The attributes of "roi_pool".
inline RoiPoolAttributes roi_pool_attributes(int64_t num_levels, int64_t has_shift,
                                             int64_t has_mask, int64_t sampling_ratio) {
  return {num_levels, has_shift != 0, has_mask != 0, RoiSampling::kGrid, sampling_ratio, 1,
          1,          false};
}

template <typename Binding>
auto bind_roi_pool_attributes(Binding binding) {
  return std::move(binding)
      .template Attr<int64_t>("num_levels")
      .template Attr<int64_t>("has_shift")
      .template Attr<int64_t>("has_mask")
      .template Attr<int64_t>("sampling_ratio");
}

// The attributes of "ps_roi_pool". Returns what is wrong, or "".
inline std::string ps_roi_pool_attributes(int64_t num_levels, int64_t has_shift, int64_t has_mask,
                                          std::string_view sampling, int64_t samples,
                                          int64_t group_h, int64_t group_w,
                                          RoiPoolAttributes* attributes) {
  RoiSampling kind = RoiSampling::kGrid;
  if (sampling == "parts") {
    kind = RoiSampling::kParts;
  } else if (sampling == "pixels") {
    kind = RoiSampling::kPixels;
  } else if (sampling != "grid") {
    return "`sampling` is " + std::string(sampling) + "; expected grid, parts or pixels";
  }
  if (kind == RoiSampling::kParts && samples == 0) return "a bin has no samples";
  *attributes = {num_levels, has_shift != 0, has_mask != 0, kind, samples, group_h, group_w, true};
  return "";
}

template <typename Binding>
auto bind_ps_roi_pool_attributes(Binding binding) {
  return std::move(binding)
      .template Attr<int64_t>("num_levels")
      .template Attr<int64_t>("has_shift")
      .template Attr<int64_t>("has_mask")
      .template Attr<std::string_view>("sampling")
      .template Attr<int64_t>("samples")
      .template Attr<int64_t>("group_h")
      .template Attr<int64_t>("group_w");
}

}  // namespace xla_ops

#endif  // XLA_OPS_ROI_POOL_FFI_H_
