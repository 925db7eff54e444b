// Sizes and FFI attributes of the operators, decoded and checked in one place.
// Shared by the CPU and the CUDA handlers; the struct also goes to the kernels.
//
// N batch, H W input map, P Q output map, C in channels, K out channels, R S
// kernel taps, G offset groups.

#ifndef XLA_OPS_GEOMETRY_H_
#define XLA_OPS_GEOMETRY_H_

#include <cstdint>
#include <string>
#include <vector>

#include "bilinear.h"

namespace xla_ops {

using Shape = std::vector<int64_t>;

// x [N,H,W,C], offset [N,P,Q,G,R*S,2], kernel [kernels,R,S,C/groups,K],
// mask [N,P,Q,G,R*S] where modulated, y [N,P,Q,K].
struct DeformConvGeometry {
  int64_t N, H, W, C;
  int64_t P, Q, K;
  int64_t R, S, G;
  int64_t groups;
  int64_t kernels;  // 1, or N: a kernel for each image; a divisor of N in the fused CUDA kernel
  bool modulated;
  int64_t stride_h, stride_w;
  int64_t pad_top, pad_left;
  int64_t dilation_h, dilation_w;

  XLA_OPS_INLINE int64_t taps() const { return R * S; }
  XLA_OPS_INLINE int64_t positions() const { return P * Q; }
  XLA_OPS_INLINE int64_t group_channels() const { return C / groups; }
  XLA_OPS_INLINE int64_t group_outputs() const { return K / groups; }
  XLA_OPS_INLINE int64_t offset_group_channels() const { return C / G; }
};

inline std::string shape_text(const Shape& shape) {
  std::string text = "(";
  for (size_t i = 0; i < shape.size(); ++i) {
    text += (i ? ", " : "") + std::to_string(shape[i]);
  }
  return text + (shape.size() == 1 ? ",)" : ")");
}

// Empty, or what is wrong with `got`.
inline std::string check_shape(const char* name, const Shape& got, const Shape& expected) {
  if (got == expected) return "";
  return std::string("`") + name + "` has shape " + shape_text(got) + "; expected " +
         shape_text(expected);
}

// Fills the sizes of `g`, whose attributes (groups, strides, padding, dilation) and
// `modulated` are set, from the operands' shapes. Returns what is wrong, or "".
inline std::string decode_deform_conv(const Shape& x, const Shape& offset, const Shape& kernel,
                                      DeformConvGeometry* g) {
  if (x.size() != 4) return "`x` has shape " + shape_text(x) + "; expected (N, H, W, C)";
  if (offset.size() != 6) {
    return "`offset` has shape " + shape_text(offset) + "; expected (N, P, Q, G, R*S, 2)";
  }
  if (kernel.size() != 5) {
    return "`kernel` has shape " + shape_text(kernel) + "; expected (1 or N, R, S, C/groups, K)";
  }
  g->N = x[0], g->H = x[1], g->W = x[2], g->C = x[3];
  g->P = offset[1], g->Q = offset[2], g->G = offset[3];
  g->kernels = kernel[0], g->R = kernel[1], g->S = kernel[2], g->K = kernel[4];

  // Coordinates stay far from the ends of int64, and a pixel's number fits int32.
  constexpr int64_t kLimit = int64_t{1} << 31;
  for (int64_t size : {g->H, g->W, g->P, g->Q, g->R, g->S}) {
    if (size >= kLimit) return "a map or kernel side of " + std::to_string(size) + " is too large";
  }
  if ((g->H + 1) * (g->W + 1) >= kLimit) {
    return "a map of " + std::to_string(g->H) + " x " + std::to_string(g->W) + " is too large";
  }
  for (int64_t value : {g->stride_h, g->stride_w, g->dilation_h, g->dilation_w}) {
    if (value < 1 || value >= kLimit) {
      return "strides and kernel_dilation must be positive, got " + std::to_string(value);
    }
  }
  for (int64_t value : {g->pad_top, g->pad_left}) {
    if (value <= -kLimit || value >= kLimit) {
      return "a padding of " + std::to_string(value) + " is too large";
    }
  }
  if (g->groups < 1 || g->C % g->groups != 0 || g->K % g->groups != 0) {
    return "feature_group_count " + std::to_string(g->groups) +
           " does not divide C = " + std::to_string(g->C) + " and K = " + std::to_string(g->K);
  }
  if (g->G < 1 || g->C % g->G != 0) {
    return "offset groups " + std::to_string(g->G) + " do not divide C = " + std::to_string(g->C);
  }
  if (g->kernels != 1 && g->kernels != g->N) {
    return "`kernel` has " + std::to_string(g->kernels) +
           " copies; expected 1 or N = " + std::to_string(g->N);
  }
  std::string error = check_shape("offset", offset, {g->N, g->P, g->Q, g->G, g->taps(), 2});
  if (error.empty()) {
    error = check_shape("kernel", kernel, {g->kernels, g->R, g->S, g->group_channels(), g->K});
  }
  return error;
}

inline Shape deform_conv_mask_shape(const DeformConvGeometry& g) {
  return {g.N, g.P, g.Q, g.G, g.taps()};
}

inline Shape deform_conv_output_shape(const DeformConvGeometry& g) { return {g.N, g.P, g.Q, g.K}; }

}  // namespace xla_ops

#endif  // XLA_OPS_GEOMETRY_H_
