// What the handlers of RoI pooling (roi_pool.cc) ask of its kernels
// (roi_pool_kernel.cc).
//
// N batch, L pyramid levels, G channel groups, H W map, C channels of a group and of a
// bin, B RoIs of an image, h w bins of a RoI.
#ifndef XLA_OPS_CPU_ROI_POOL_H_
#define XLA_OPS_CPU_ROI_POOL_H_

#include <cstdint>

#include "element_type.h"
#include "isa.h"

namespace xla_ops {

// What a bin is the mean of (../roi_axis.h).
enum class RoiSampling {
  kGrid,    // bilinear samples: axis_taps()
  kParts,   // bilinear samples of deform_ps_roi_pool: part_taps()
  kPixels,  // whole pixels: pixel_taps()
};

// Every place on an axis is a whole number in float.
constexpr int64_t kMaxRoiMapSide = int64_t{1} << 24;

struct RoiMap {
  int64_t H, W;  // at most kMaxRoiMapSide
  const void* pixels;  // [N,G,H,W,C]
  void* gradient;      // the same, or nullptr in the forward pass
};

// `Real` stands for float, beside kF64 maps double.
struct RoiPoolOperands {
  ElementType type;
  int64_t N, L, C, B, h, w;
  // Bin (i, j) reads group (i * group_h / h) * group_w + j * group_w / w.
  int64_t group_h, group_w;
  int64_t classes;  // a bin's channels in as many parts, each with its own shift
  RoiSampling sampling;
  int64_t samples;           // of a bin along an axis; 0: adaptive (kGrid), none (kPixels)
  const RoiMap* maps;        // L of them
  const void* boxes;         // Real [N,B,4]: y, x, height, width in pixels of the map
  const int32_t* levels;     // [N,B]; others than 0..L-1 pool to 0
  const int32_t* map_sizes;  // [N,L,2]: height and width of the part that counts
  const void* shift;         // Real [N,B,h,w,classes,2]: (dy, dx) in pixels, or nullptr
  const void* mask;          // Real [N,B,h,w], or nullptr
};

// Pixels of a gradient map and channels of a group that one call of MapGradient() owns.
struct RoiPoolBlock {
  int64_t image, level, group;
  int64_t first_row, last_row;
  int64_t first_channel, last_channel;
};

// clang-format off
XLA_OPS_PER_ISA(
    // Scratch of one call of any of these; no block of MapGradient() has more `pixels` or
    // `channels`, which are 0 for the others.
    int64_t RoiPoolScratchBytes(const RoiPoolOperands& op, int64_t pixels, int64_t channels);

    // Pools the RoIs [first, last) of the N*B into y [N,B,h,w,C].
    void RoiPoolForward(const RoiPoolOperands& op, int64_t first, int64_t last, void* y,
                        void* scratch);
    // Gradients of shift and mask, for the RoIs [first, last); either may be nullptr.
    void RoiPoolBinGradient(const RoiPoolOperands& op, const void* g, int64_t first,
                            int64_t last, void* dshift, void* dmask, void* scratch);
    // Gradient of the pixels of a block: every RoI's share, in order. The bits do not
    // depend on how the map is cut into blocks.
    void RoiPoolMapGradient(const RoiPoolOperands& op, const void* g, const RoiPoolBlock& block,
                            void* scratch);
)
// clang-format on

}  // namespace xla_ops

#endif  // XLA_OPS_CPU_ROI_POOL_H_
