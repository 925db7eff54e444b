// What the handlers of deform_conv2d (handlers.cc) ask of its kernels (*.cu).
// Shape letters as in ../geometry.h.
//
// XLA multiplies; the kernels do what lies around the products. Columns are the samples
// that are multiplied with the kernel: [N,P,Q,groups,R*S,C/groups]. P counts the rows of a
// chunk of the output, whose first row is first_row[n].
#ifndef XLA_OPS_DEFORM_CONV_CUDA_KERNELS_H_
#define XLA_OPS_DEFORM_CONV_CUDA_KERNELS_H_

#include <cstdint>

#include "deform_conv/geometry.h"
#include "element_type.h"
#include "simt/stream.h"

namespace xla_ops {
namespace cuda {

// The gradient of the columns lies in memory between the product that makes it and the sums
// that it enters: in bfloat16 where x does, which has the range of float32; else in the type
// of offset.
inline ElementType columns_gradient_type(ElementType type) {
  return type == ElementType::kF16 ? ElementType::kF32 : type;
}

struct DeformConvOperands {
  DeformConvGeometry geometry;
  ElementType type;          // of x and the columns
  const void* x;             // nullptr where only places matter
  const int32_t* first_row;  // [N]
  const void* offset;
  const void* mask;  // nullptr where not modulated
};

struct DeformConvGradients {
  const void* dcolumns;  // like columns, in columns_gradient_type()
  void* columns;
  void* doffset;
  void* dmask;  // nullptr where not modulated
  void* dx;     // [N,H,W,C] in the type of offset, or nullptr: see gather_input_gradient()
};

// How pixels are numbered in the lists of corners, one for each image and offset group.
// H*W stands for outside the map.
struct DeformConvList {
  bool narrow;  // uint16_t, else uint32_t
  bool joint;   // a list goes on where the one before ended, after its H*W
};

// The samples' corners, sorted by the pixel they read. A corner's number is
// 4 * (position * R*S + tap) + corner of ../bilinear.h.
struct DeformConvCorners {
  DeformConvList list;
  const void* pixel;      // [N,G,P*Q*R*S*4], rising
  const int32_t* number;  // the same shape; rising among equal pixels
};

simt::Failure sample_columns(const DeformConvOperands& op, void* columns, cudaStream_t stream);

// Writes the columns again, and the gradients of offset, mask and, by atomic additions in
// any order, x.
simt::Failure visit_samples(const DeformConvOperands& op, const DeformConvGradients& grad,
                            cudaStream_t stream);

// Writes which pixel each corner reads, in the order of their numbers.
simt::Failure list_corners(const DeformConvOperands& op, const DeformConvList& list, void* pixel,
                           cudaStream_t stream);

// The gradient of x, in an order of additions that is always the same. The type of `op` is
// that of `dcolumns`; dx has `type`: a half-precision one, or that of sums. `starts`
// [N,G,H*W+1] is scratch.
simt::Failure gather_input_gradient(const DeformConvOperands& op, const void* dcolumns,
                                    const DeformConvCorners& corners, int32_t* starts,
                                    ElementType type, void* dx, cudaStream_t stream);

}  // namespace cuda
}  // namespace xla_ops

#endif  // XLA_OPS_DEFORM_CONV_CUDA_KERNELS_H_
