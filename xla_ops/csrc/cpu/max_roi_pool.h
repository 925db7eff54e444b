// What the handlers of roi_pool (max_roi_pool.cc) ask of its kernels
// (max_roi_pool_kernel.cc).
//
// N batch, L pyramid levels, H W map, C channels, B RoIs of an image, h w bins of a RoI.
#ifndef XLA_OPS_CPU_MAX_ROI_POOL_H_
#define XLA_OPS_CPU_MAX_ROI_POOL_H_

#include <cstdint>

#include "element_type.h"
#include "isa.h"
#include "roi_pool.h"

namespace xla_ops {

// `Real` stands for float, beside kF64 maps double.
struct MaxRoiPoolOperands {
  ElementType type;
  int64_t N, L, C, B, h, w;
  const RoiMap* maps;        // L of them, of less than 2^31 pixels
  const void* boxes;         // Real [N,B,4]: first row and column, rows, columns
  const int32_t* levels;     // [N,B]; others than 0..L-1 pool to 0
  const int32_t* map_sizes;  // [N,L,2]: height and width of the part that counts
};

// Pixels of a gradient map and channels that one call of MaxRoiPoolMapGradient() owns.
struct RoiMapBlock {
  int64_t image, level;
  int64_t first_channel, last_channel;
};

// clang-format off
XLA_OPS_PER_ISA(
    // Scratch of one call of MaxRoiPoolMapGradient() with blocks of up to `channels`.
    int64_t MaxRoiPoolScratchBytes(const MaxRoiPoolOperands& op, int64_t channels);

    // Pools the RoIs [first, last) of the N*B into y [N,B,h,w,C].
    void MaxRoiPoolForward(const MaxRoiPoolOperands& op, int64_t first, int64_t last, void* y);
    // Gradient of the pixels of a block: every RoI's share, in order. The bits do not
    // depend on how the channels are cut into blocks.
    void MaxRoiPoolMapGradient(const MaxRoiPoolOperands& op, const void* g,
                               const RoiMapBlock& block, void* scratch);
)
// clang-format on

}  // namespace xla_ops

#endif  // XLA_OPS_CPU_MAX_ROI_POOL_H_
