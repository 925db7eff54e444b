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

#include "roi_ffi.h"
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
};

struct RoiPoolCall : RoiBuffers {
  RoiPoolOperands op{};
  void *dshift = nullptr, *dmask = nullptr;
};

inline std::string check_roi_pool_attributes(const RoiPoolAttributes& a) {
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

// Fills `call` from the operands and, in the forward pass, the result `y`, else nullptr.
// Returns what is wrong, or "".
inline std::string decode_roi_pool(const xla::ffi::RemainingArgs& args, const RoiPoolAttributes& a,
                                   const xla::ffi::AnyBuffer* y, RoiPoolCall* call) {
  std::string error = check_roi_pool_attributes(a);
  if (!error.empty()) return error;
  RoiPoolOperands& op = call->op;
  op.group_h = a.group_h, op.group_w = a.group_w;
  op.sampling = a.sampling, op.samples = a.samples;
  op.classes = 1;
  error = decode_roi_operands(args, a.num_levels, a.has_shift + a.has_mask,
                              a.grouped ? a.group_h * a.group_w : 0, y, call, &op);
  if (!error.empty()) return error;

  const xla::ffi::DataType real = real_type(op.type);
  size_t next = a.num_levels + 3;
  if (a.has_shift) {
    const xla::ffi::AnyBuffer& shift = call->all[next++];
    const Shape shape = shape_of(shift);
    Shape wanted{op.N, op.B, op.h, op.w, 2};
    if (a.grouped) {
      if (shape.size() == 6) op.classes = shape[4];
      if (op.classes < 1 || op.C % op.classes != 0) {
        return "`shift` has " + std::to_string(op.classes) + " classes for " +
               std::to_string(op.C) + " channels";
      }
      wanted.insert(wanted.end() - 1, op.classes);
    }
    error = check_buffer("shift", shift, wanted, real);
    op.shift = shift.untyped_data();
  }
  if (error.empty() && a.has_mask) {
    const xla::ffi::AnyBuffer& mask = call->all[next];
    error = check_buffer("mask", mask, {op.N, op.B, op.h, op.w}, real);
    op.mask = mask.untyped_data();
  }
  return error;
}

// The same for the backward pass. The gradients are followed by `more` results.
inline std::string decode_roi_pool_gradients(const xla::ffi::RemainingArgs& args,
                                             const xla::ffi::RemainingRets& results, size_t more,
                                             const RoiPoolAttributes& attributes,
                                             RoiPoolCall* call) {
  std::string error = decode_roi_pool(args, attributes, nullptr, call);
  if (error.empty()) error = decode_roi_gradients(results, more, call);
  if (!error.empty()) return error;
  const auto data = [&](size_t i) {
    return (*results.get<xla::ffi::AnyBuffer>(i))->untyped_data();
  };
  size_t next = attributes.num_levels;
  if (attributes.has_shift) call->dshift = data(next++);
  if (attributes.has_mask) call->dmask = data(next);
  return "";
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
