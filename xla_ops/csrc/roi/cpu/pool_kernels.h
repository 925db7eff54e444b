// What the handlers of RoI pooling (pool_handlers.cc) ask of its kernels
// (pool_kernel.cc). Letters as in ../operands.h.
#ifndef XLA_OPS_ROI_CPU_POOL_KERNELS_H_
#define XLA_OPS_ROI_CPU_POOL_KERNELS_H_

#include <cstdint>

#include "element_type.h"
#include "roi/cpu/map_block.h"
#include "roi/operands.h"

namespace xla_ops {

struct RoiPoolKernels {
  // Scratch of one call of any of these; no block of map_gradient() has more `pixels` or
  // `channels`, which are 0 for the others.
  int64_t (*scratch_bytes)(const RoiPoolOperands& op, int64_t pixels, int64_t channels);

  // Pools the RoIs [first, last) of the N*B into y [N,B,h,w,C].
  void (*pool)(const RoiPoolOperands& op, int64_t first, int64_t last, void* y, void* scratch);
  // Gradients of shift and mask, for the RoIs [first, last); either may be nullptr.
  void (*bin_gradient)(const RoiPoolOperands& op, const void* g, int64_t first, int64_t last,
                       void* dshift, void* dmask, void* scratch);
  // Gradient of the pixels of a block: every RoI's share, in order. The bits do not
  // depend on how the map is cut into blocks.
  void (*map_gradient)(const RoiPoolOperands& op, const void* g, const RoiMapBlock& block,
                       void* scratch);
  // Channels of a block of map_gradient(), at most: what a pass over the taps keeps in registers.
  int64_t block_channels;
};
const RoiPoolKernels& roi_pool_kernels(ElementType type);

}  // namespace xla_ops

#endif  // XLA_OPS_ROI_CPU_POOL_KERNELS_H_
