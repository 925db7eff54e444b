// What the handlers of roi_pool (max_roi_pool.cc) ask of its kernels
// (max_roi_pool_kernel.cc).
//
// Letters as in max_roi_pool_operands.h.
#ifndef XLA_OPS_CPU_MAX_ROI_POOL_H_
#define XLA_OPS_CPU_MAX_ROI_POOL_H_

#include <cstdint>

#include "isa.h"
#include "max_roi_pool_operands.h"
#include "roi_map_block.h"

namespace xla_ops {

// clang-format off
XLA_OPS_PER_ISA(
    // Scratch of one call of MaxRoiPoolMapGradient() with a block of that size.
    int64_t MaxRoiPoolScratchBytes(const MaxRoiPoolOperands& op, int64_t pixels,
                                   int64_t channels);

    // Pools the RoIs [first, last) of the N*B into y [N,B,h,w,C].
    void MaxRoiPoolForward(const MaxRoiPoolOperands& op, int64_t first, int64_t last, void* y);
    // Gradient of the pixels of a block, which has all rows of its map: every RoI's share, in
    // order. The bits do not depend on how the channels are cut into blocks.
    void MaxRoiPoolMapGradient(const MaxRoiPoolOperands& op, const void* g,
                               const RoiMapBlock& block, void* scratch);
)
// clang-format on

}  // namespace xla_ops

#endif  // XLA_OPS_CPU_MAX_ROI_POOL_H_
