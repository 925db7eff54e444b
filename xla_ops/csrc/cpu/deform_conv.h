// What the handlers of deform_conv2d (deform_conv.cc) ask of its kernels
// (deform_conv_*_kernel.cc). Shape letters as in geometry.h.
#ifndef XLA_OPS_CPU_DEFORM_CONV_H_
#define XLA_OPS_CPU_DEFORM_CONV_H_

#include <cstddef>
#include <cstdint>

#include "../geometry.h"
#include "element_type.h"
#include "isa.h"

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
};

struct DeformConvGradients {
  const void* g;  // [N,P,Q,K]
  void* dx;
  void* doffset;
  void* dkernel;  // [N,R,S,C/groups,K], one for each image
  void* dmask;    // nullptr where not modulated
  void* partial;  // slots 1.. of the images in flight
};

// clang-format off
XLA_OPS_PER_ISA(
    DeformConvForwardPlan PlanForward(const DeformConvOperands& op);
    void PackKernel(const DeformConvOperands& op, const DeformConvForwardPlan& plan,
                    int64_t copy, int64_t part, void* packed);
    void ForwardTile(const DeformConvOperands& op, const DeformConvForwardPlan& plan,
                     const void* packed, int64_t image, int64_t tile, void* y, void* scratch);

    DeformConvBackwardPlan PlanBackward(const DeformConvOperands& op);
    // `place` is the number of the image among those in flight.
    void BackwardBlock(const DeformConvOperands& op, const DeformConvBackwardPlan& plan,
                       const DeformConvGradients& grad, int64_t image, int64_t place,
                       int64_t block, void* scratch);
    // Adds the slots 1.. of an image to doffset and dmask, in order.
    void AddPartialSums(const DeformConvOperands& op, const DeformConvBackwardPlan& plan,
                        const DeformConvGradients& grad, int64_t image, int64_t place,
                        int64_t first_position, int64_t last_position);
)
// clang-format on

}  // namespace xla_ops

#endif  // XLA_OPS_CPU_DEFORM_CONV_H_
