// Attributes and operands of the handlers of RoI pooling, decoded and checked in one place
// for the CPU and CUDA.
//
// Operands: L maps, boxes [N,B,4], levels [N,B], map_sizes [N,L,2], then shift and mask
// [N,B,h,w] where there are such, then (backward) the gradient g [N,B,h,w,C]. Results: y
// [N,B,h,w,C]; or the gradients of the maps, shift and mask. Maps are [N,H_l,W_l,C] and
// shift [N,B,h,w,2]; for ps_roi_pool maps are [N,G,H_l,W_l,C] and shift
// [N,B,h,w,classes,2].
#ifndef XLA_OPS_ROI_POOL_DECODE_H_
#define XLA_OPS_ROI_POOL_DECODE_H_

#include <cstdint>
#include <string>
#include <string_view>

#include "roi/decode.h"
#include "roi/operands.h"
#include "xla/ffi/api/ffi.h"

namespace xla_ops {

// Far beyond any use; keeps products of sizes inside int64.
constexpr int64_t kMaxRoiSamples = 1 << 16, kMaxRoiGroups = 1 << 16;

// The attributes of "roi_pool".
struct RoiPoolAttributes {
  int64_t num_levels;
  int64_t has_shift, has_mask;
  int64_t sampling_ratio;
};

// The attributes of "ps_roi_pool".
struct PsRoiPoolAttributes {
  int64_t num_levels;
  int64_t has_shift, has_mask;
  std::string_view sampling;
  int64_t samples;
  int64_t group_h, group_w;
};

}  // namespace xla_ops

XLA_FFI_REGISTER_STRUCT_ATTR_DECODING(::xla_ops::RoiPoolAttributes,
                                      StructMember<int64_t>("num_levels"),
                                      StructMember<int64_t>("has_shift"),
                                      StructMember<int64_t>("has_mask"),
                                      StructMember<int64_t>("sampling_ratio"));
XLA_FFI_REGISTER_STRUCT_ATTR_DECODING(
    ::xla_ops::PsRoiPoolAttributes, StructMember<int64_t>("num_levels"),
    StructMember<int64_t>("has_shift"), StructMember<int64_t>("has_mask"),
    StructMember<std::string_view>("sampling"), StructMember<int64_t>("samples"),
    StructMember<int64_t>("group_h"), StructMember<int64_t>("group_w"));

namespace xla_ops {

// What the attributes of either say.
struct RoiPoolSettings {
  int64_t num_levels;
  bool has_shift, has_mask;
  RoiSampling sampling;
  int64_t samples;
  int64_t group_h, group_w;
  bool grouped;  // ps_roi_pool: maps have an axis of groups, and shift one of classes
};

inline bool decode_settings(Checks&, const RoiPoolAttributes& a, RoiPoolSettings* settings) {
  *settings = {
      a.num_levels, a.has_shift != 0, a.has_mask != 0, RoiSampling::kGrid, a.sampling_ratio, 1, 1,
      false};
  return true;
}

inline bool decode_settings(Checks& checks, const PsRoiPoolAttributes& a,
                            RoiPoolSettings* settings) {
  const bool parts = a.sampling == "parts", pixels = a.sampling == "pixels";
  const RoiSampling sampling = parts    ? RoiSampling::kParts
                               : pixels ? RoiSampling::kPixels
                                        : RoiSampling::kGrid;
  *settings = {a.num_levels, a.has_shift != 0, a.has_mask != 0, sampling,
               a.samples,    a.group_h,        a.group_w,       true};
  return checks.require(parts || pixels || a.sampling == "grid", "`sampling` is ",
                        std::string(a.sampling), "; expected grid, parts or pixels") &&
         checks.require(!parts || a.samples != 0, "a bin has no samples");
}

inline bool check_settings(Checks& checks, const RoiPoolSettings& s) {
  const auto is_group_count = [](int64_t count) { return count >= 1 && count <= kMaxRoiGroups; };
  return checks.require(s.samples >= 0 && s.samples <= kMaxRoiSamples,
                        "samples of a bin along an axis are ", s.samples, "; expected 0 to ",
                        kMaxRoiSamples) &&
         checks.require(is_group_count(s.group_h) && is_group_count(s.group_w), "there are ",
                        s.group_h, " x ", s.group_w, " groups; expected 1 to ", kMaxRoiGroups,
                        " along an axis");
}

struct RoiPoolCall : RoiBuffers {
  RoiPoolOperands op{};
  void *dshift = nullptr, *dmask = nullptr;
};

inline bool decode_shift(Checks& checks, const xla::ffi::AnyBuffer& shift, bool grouped,
                         RoiPoolOperands* op) {
  const Shape shape = shape_of(shift);
  Shape expected{op->N, op->B, op->h, op->w, 2};
  if (grouped) {
    if (shape.size() == 6) op->classes = shape[4];
    if (!checks.require(op->classes >= 1 && op->C % op->classes == 0, "`shift` has ", op->classes,
                        " classes for ", op->C, " channels")) {
      return false;
    }
    expected.insert(expected.end() - 1, op->classes);
  }
  op->shift = shift.untyped_data();
  return checks.buffer("shift", shift, expected, real_type(op->type));
}

inline bool decode_mask(Checks& checks, const xla::ffi::AnyBuffer& mask, RoiPoolOperands* op) {
  op->mask = mask.untyped_data();
  return checks.buffer("mask", mask, {op->N, op->B, op->h, op->w}, real_type(op->type));
}

// Fills `call` from the operands and, in the forward pass, the result `y`, else nullptr.
inline bool decode_roi_pool(Checks& checks, const xla::ffi::RemainingArgs& args,
                            const RoiPoolSettings& settings, const xla::ffi::AnyBuffer* y,
                            RoiPoolCall* call) {
  RoiPoolOperands& op = call->op;
  op.group_h = settings.group_h, op.group_w = settings.group_w;
  op.sampling = settings.sampling, op.samples = settings.samples;
  op.classes = 1;
  const int64_t more = settings.has_shift + settings.has_mask;
  const int64_t next = settings.num_levels + 3;
  return check_settings(checks, settings) &&
         decode_roi_operands(checks, args, settings.num_levels, more,
                             settings.grouped ? op.group_h * op.group_w : 0, y, call, &op) &&
         (!settings.has_shift || decode_shift(checks, call->all[next], settings.grouped, &op)) &&
         (!settings.has_mask || decode_mask(checks, call->all[next + settings.has_shift], &op));
}

// The same for the backward pass. The gradients are followed by `more` results.
inline bool decode_roi_pool_gradients(Checks& checks, const xla::ffi::RemainingArgs& args,
                                      const xla::ffi::RemainingRets& results, size_t more,
                                      const RoiPoolSettings& settings, RoiPoolCall* call) {
  if (!(decode_roi_pool(checks, args, settings, nullptr, call) &&
        decode_roi_gradients(checks, results, more, call))) {
    return false;
  }
  const auto data = [&](size_t i) {
    return (*results.get<xla::ffi::AnyBuffer>(i))->untyped_data();
  };
  size_t next = settings.num_levels;
  if (settings.has_shift) call->dshift = data(next++);
  if (settings.has_mask) call->dmask = data(next);
  return true;
}

}  // namespace xla_ops

#endif  // XLA_OPS_ROI_POOL_DECODE_H_
