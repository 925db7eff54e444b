// What the handlers of deform_conv2d (handlers.cc) ask of its kernels (*_kernel.cc).
// Shape letters as in ../geometry.h.
#ifndef XLA_OPS_DEFORM_CONV_CPU_KERNELS_H_
#define XLA_OPS_DEFORM_CONV_CPU_KERNELS_H_

#include <cstddef>
#include <cstdint>

#include "deform_conv/geometry.h"
#include "element_type.h"

namespace xla_ops {

struct DeformConvOperands {
  DeformConvGeometry geometry;
  ElementType type;  // of x, the kernel and the result
  const void* x;
  const void* offset;
  const void* kernel;
  const void* mask;   // nullptr where not modulated
  const void* zeros;  // C zeros, read in place of a pixel outside the map
};

// All plans depend on the shapes alone, never on the number of threads, so that results
// do not either.

// The output positions of an image are cut into tiles; each is sampled, and multiplied
// with the packed kernel, in a worker's scratch.
struct DeformConvForwardPlan {
  int64_t rows;           // output positions of a tile
  int64_t rows_together;  // of them, sampled and then multiplied
  int64_t tiles;          // of an image
  size_t packed_bytes;    // of one packed kernel
  int64_t pack_parts;     // independent parts of packing one
  size_t worker_bytes;    // scratch of one worker
};

// x's channels are cut into blocks that lie in one offset group each. A block of an
// image owns its slice of dx and dkernel; its share of doffset and dmask is a partial
// sum, which slot 0 writes to the results and other slots to scratch.
struct DeformConvBackwardPlan {
  int64_t block_channels;
  int64_t blocks_per_offset_group;
  int64_t blocks;           // of an image
  size_t image_slot_bytes;  // partial sums of one slot of one image
  size_t worker_bytes;
  // Of a copy of a block's channels of x, beside sums of their gradients, that makes visits
  // faster and changes no bit. 0: of no use. Where `copies` is set, it lies behind a worker's
  // scratch.
  size_t copy_bytes;
  bool copies;
};

struct DeformConvGradients {
  const void* g;  // [N,P,Q,K]
  void* dx;
  void* doffset;
  void* dkernel;  // [N,R,S,C/groups,K], one for each image
  void* dmask;    // nullptr where not modulated
  void* partial;  // slots 1.. of the images in flight
};

struct DeformConvForwardKernels {
  DeformConvForwardPlan (*plan)(const DeformConvGeometry& g);
  // Packs a part of a copy of the kernel.
  void (*pack_kernel)(const DeformConvOperands& op, const DeformConvForwardPlan& plan,
                      int64_t copy, int64_t part, void* packed);
  void (*convolve_tile)(const DeformConvOperands& op, const DeformConvForwardPlan& plan,
                        const void* packed, int64_t image, int64_t tile, void* y, void* scratch);
};
const DeformConvForwardKernels& deform_conv_forward_kernels(ElementType type);

struct DeformConvBackwardKernels {
  DeformConvBackwardPlan (*plan)(const DeformConvGeometry& g);
  // `place` is the number of the image among those in flight.
  void (*visit_block)(const DeformConvOperands& op, const DeformConvBackwardPlan& plan,
                      const DeformConvGradients& grad, int64_t image, int64_t place, int64_t block,
                      void* scratch);
  // Adds the slots 1.. of an image to doffset and dmask, in order.
  void (*add_partial_sums)(const DeformConvOperands& op, const DeformConvBackwardPlan& plan,
                           const DeformConvGradients& grad, int64_t image, int64_t place,
                           int64_t first_position, int64_t last_position);
};
const DeformConvBackwardKernels& deform_conv_backward_kernels(ElementType type);

}  // namespace xla_ops

#endif  // XLA_OPS_DEFORM_CONV_CPU_KERNELS_H_
