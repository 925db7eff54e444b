// Sizes and attributes of deform_conv2d, as handlers decode them (decode.h) and
// kernels read them.
//
// N batch, H W input map, P Q output map, C in channels, K out channels, R S
// kernel taps, G offset groups.

#ifndef XLA_OPS_DEFORM_CONV_GEOMETRY_H_
#define XLA_OPS_DEFORM_CONV_GEOMETRY_H_

#include <cstdint>

#include "inline.h"

namespace xla_ops {

// What every call says, on the CPU and on CUDA.
struct DeformConvAttributes {
  int64_t stride_h, stride_w;
  int64_t pad_top, pad_left;
  int64_t dilation_h, dilation_w;
  int64_t groups;
};

// x [N,H,W,C], offset [N,P,Q,G,R*S,2], kernel [kernels,R,S,C/groups,K],
// mask [N,P,Q,G,R*S] where modulated, y [N,P,Q,K].
struct DeformConvGeometry : DeformConvAttributes {
  int64_t N, H, W, C;
  int64_t P, Q, K;
  int64_t R, S, G;
  int64_t kernels;  // 1, or N: a kernel for each image
  bool modulated;

  XLA_OPS_INLINE int64_t taps() const { return R * S; }
  XLA_OPS_INLINE int64_t positions() const { return P * Q; }
  XLA_OPS_INLINE int64_t group_channels() const { return C / groups; }
  XLA_OPS_INLINE int64_t group_outputs() const { return K / groups; }
  XLA_OPS_INLINE int64_t offset_group_channels() const { return C / G; }
};

}  // namespace xla_ops

#endif  // XLA_OPS_DEFORM_CONV_GEOMETRY_H_
