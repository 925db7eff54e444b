// Attributes and shapes of the handlers of deform_conv2d, decoded and checked in one place
// for the CPU and CUDA. Shape letters as in geometry.h.
#ifndef XLA_OPS_DEFORM_CONV_DECODE_H_
#define XLA_OPS_DEFORM_CONV_DECODE_H_

#include <cstdint>

#include "deform_conv/geometry.h"
#include "ffi/buffers.h"
#include "ffi/checks.h"
#include "xla/ffi/api/ffi.h"

namespace xla_ops {

// Of calls without the kernel's weights (CUDA), which say how large it is.
struct DeformConvSampleAttributes : DeformConvAttributes {
  int64_t kernel_h, kernel_w;
};

// Of calls that list corners (CUDA).
struct DeformConvListAttributes : DeformConvSampleAttributes {
  int64_t joint;
};

}  // namespace xla_ops

#define XLA_OPS_CONV_ATTRIBUTES                                                 \
  StructMember<int64_t>("stride_h"), StructMember<int64_t>("stride_w"),         \
      StructMember<int64_t>("pad_top"), StructMember<int64_t>("pad_left"),      \
      StructMember<int64_t>("dilation_h"), StructMember<int64_t>("dilation_w"), \
      StructMember<int64_t>("groups")
#define XLA_OPS_CONV_SAMPLE_ATTRIBUTES \
  XLA_OPS_CONV_ATTRIBUTES, StructMember<int64_t>("kernel_h"), StructMember<int64_t>("kernel_w")

XLA_FFI_REGISTER_STRUCT_ATTR_DECODING(::xla_ops::DeformConvAttributes, XLA_OPS_CONV_ATTRIBUTES);
XLA_FFI_REGISTER_STRUCT_ATTR_DECODING(::xla_ops::DeformConvSampleAttributes,
                                      XLA_OPS_CONV_SAMPLE_ATTRIBUTES);
XLA_FFI_REGISTER_STRUCT_ATTR_DECODING(::xla_ops::DeformConvListAttributes,
                                      XLA_OPS_CONV_SAMPLE_ATTRIBUTES,
                                      StructMember<int64_t>("joint"));

#undef XLA_OPS_CONV_SAMPLE_ATTRIBUTES
#undef XLA_OPS_CONV_ATTRIBUTES

namespace xla_ops {

inline bool decode_type(Checks& checks, const xla::ffi::AnyBuffer& x, ElementType* type) {
  const auto known = element_type(x.element_type());
  if (known) *type = *known;
  return checks.require(known.has_value(), "`x` must be float32, float64, bfloat16 or float16");
}

// Whether the sizes leave coordinates far from the ends of int64, and fit a pixel's number in
// int32.
inline bool check_limits(Checks& checks, const DeformConvGeometry& g) {
  constexpr int64_t kLimit = int64_t{1} << 31;
  for (int64_t size : {g.H, g.W, g.P, g.Q, g.R, g.S}) {
    if (!checks.require(size < kLimit, "a map or kernel side of ", size, " is too large")) {
      return false;
    }
  }
  if (!checks.require((g.H + 1) * (g.W + 1) < kLimit, "a map of ", g.H, " x ", g.W,
                      " is too large")) {
    return false;
  }
  for (int64_t value : {g.stride_h, g.stride_w, g.dilation_h, g.dilation_w}) {
    if (!checks.require(value >= 1 && value < kLimit,
                        "strides and kernel_dilation must be positive, got ", value)) {
      return false;
    }
  }
  for (int64_t value : {g.pad_top, g.pad_left}) {
    if (!checks.require(value > -kLimit && value < kLimit, "a padding of ", value,
                        " is too large")) {
      return false;
    }
  }
  return true;
}

// Whether the groups divide the channels, and the kernels the images.
inline bool check_groups(Checks& checks, const DeformConvGeometry& g) {
  return checks.require(g.groups >= 1 && g.C % g.groups == 0 && g.K % g.groups == 0,
                        "feature_group_count ", g.groups, " does not divide C = ", g.C,
                        " and K = ", g.K) &&
         checks.require(g.G >= 1 && g.C % g.G == 0, "offset groups ", g.G,
                        " do not divide C = ", g.C) &&
         checks.require(g.kernels == 1 || g.kernels == g.N, "`kernel` has ", g.kernels,
                        " copies; expected 1 or N = ", g.N);
}

// Fills the sizes of `g`, whose attributes and `modulated` are set, from the operands' shapes.
inline bool decode_sizes(Checks& checks, const Shape& x, const Shape& offset, const Shape& kernel,
                         DeformConvGeometry* g) {
  if (!(checks.require(x.size() == 4, "`x` has shape ", x, "; expected (N, H, W, C)") &&
        checks.require(offset.size() == 6, "`offset` has shape ", offset,
                       "; expected (N, P, Q, G, R*S, 2)") &&
        checks.require(kernel.size() == 5, "`kernel` has shape ", kernel,
                       "; expected (1 or N, R, S, C/groups, K)"))) {
    return false;
  }
  g->N = x[0], g->H = x[1], g->W = x[2], g->C = x[3];
  g->P = offset[1], g->Q = offset[2], g->G = offset[3];
  g->kernels = kernel[0], g->R = kernel[1], g->S = kernel[2], g->K = kernel[4];
  return check_limits(checks, *g) && check_groups(checks, *g) &&
         checks.shape("offset", offset, {g->N, g->P, g->Q, g->G, g->taps(), 2}) &&
         checks.shape("kernel", kernel, {g->kernels, g->R, g->S, g->group_channels(), g->K});
}

inline Shape mask_shape(const DeformConvGeometry& g) { return {g.N, g.P, g.Q, g.G, g.taps()}; }

inline Shape output_shape(const DeformConvGeometry& g) { return {g.N, g.P, g.Q, g.K}; }

}  // namespace xla_ops

#endif  // XLA_OPS_DEFORM_CONV_DECODE_H_
