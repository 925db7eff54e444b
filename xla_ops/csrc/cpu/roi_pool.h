// What the handlers of RoI pooling (roi_pool.cc) ask of its kernels
// (roi_pool_kernel.cc).
//
// N batch, L pyramid levels, H W map, C channels, B RoIs of an image, h w bins of a RoI.
#ifndef XLA_OPS_CPU_ROI_POOL_H_
#define XLA_OPS_CPU_ROI_POOL_H_

#include <cstdint>

#include "element_type.h"
#include "isa.h"

namespace xla_ops {

struct RoiMap {
  int64_t H, W;
  const void* pixels;  // [N,H,W,C]
  void* gradient;      // the same, or nullptr in the forward pass
};

// `Real` stands for float, beside kF64 maps double.
struct RoiPoolOperands {
  ElementType type;
  int64_t N, L, C, B, h, w;
  int64_t sampling_ratio;    // 0: adaptive
  const RoiMap* maps;        // L of them
  const void* boxes;         // Real [N,B,4]: y, x, height, width in pixels of the map
  const int32_t* levels;     // [N,B]; others than 0..L-1 pool to 0
  const int32_t* map_sizes;  // [N,L,2]: height and width of the part that counts
  const void* shift;         // Real [N,B,h,w,2] as (dy, dx) in pixels, or nullptr
  const void* mask;          // Real [N,B,h,w], or nullptr
};

// Pixels of a gradient map and channels that one call of MapGradient() owns.
struct RoiMapBlock {
  int64_t image, level;
  int64_t first_channel, last_channel;
};

// clang-format off
XLA_OPS_PER_ISA(
    // Scratch of one call of any of these; `channels` is the widest block of
    // MapGradient(), 0 for the others.
    int64_t RoiPoolScratchBytes(const RoiPoolOperands& op, int64_t channels);

    // Pools the RoIs [first, last) of the N*B into y [N,B,h,w,C].
    void RoiPoolForward(const RoiPoolOperands& op, int64_t first, int64_t last, void* y,
                        void* scratch);
    // Gradients of shift and mask, for the RoIs [first, last); either may be nullptr.
    void RoiPoolBinGradient(const RoiPoolOperands& op, const void* g, int64_t first,
                            int64_t last, void* dshift, void* dmask, void* scratch);
    // Gradient of the pixels of a block: every RoI's share, in order. The bits do not
    // depend on how the channels are cut into blocks.
    void RoiPoolMapGradient(const RoiPoolOperands& op, const void* g, const RoiMapBlock& block,
                            void* scratch);
)
// clang-format on

}  // namespace xla_ops

#endif  // XLA_OPS_CPU_ROI_POOL_H_
