// What the handlers of roi_pool (max_pool_handlers.cc) ask of its kernels
// (max_pool_kernel.cc). Letters as in ../operands.h.
#ifndef XLA_OPS_ROI_CPU_MAX_POOL_KERNELS_H_
#define XLA_OPS_ROI_CPU_MAX_POOL_KERNELS_H_

#include <cstdint>

#include "element_type.h"
#include "roi/cpu/map_block.h"
#include "roi/operands.h"

namespace xla_ops {

struct MaxRoiPoolKernels {
  // Scratch of one call of map_gradient() with a block of that size.
  int64_t (*scratch_bytes)(const MaxRoiPoolOperands& op, int64_t pixels, int64_t channels);

  // Pools the RoIs [first, last) of the N*B into y [N,B,h,w,C].
  void (*pool)(const MaxRoiPoolOperands& op, int64_t first, int64_t last, void* y);
  // Gradient of the pixels of a block, which has all rows of its map: every RoI's share, in
  // order. The bits do not depend on how the channels are cut into blocks.
  void (*map_gradient)(const MaxRoiPoolOperands& op, const void* g, const RoiMapBlock& block,
                       void* scratch);
};
const MaxRoiPoolKernels& max_roi_pool_kernels(ElementType type);

}  // namespace xla_ops

#endif  // XLA_OPS_ROI_CPU_MAX_POOL_KERNELS_H_
