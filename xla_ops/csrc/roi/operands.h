// What the kernels of RoI pooling read, on the CPU and on CUDA: those of means (roi_align,
// deform_roi_pool and the position-sensitive operators) and of maxima (roi_pool).
//
// N batch, L pyramid levels, G channel groups, H W map, C channels of a group and of a
// bin, B RoIs of an image, h w bins of a RoI.
#ifndef XLA_OPS_ROI_OPERANDS_H_
#define XLA_OPS_ROI_OPERANDS_H_

#include <cstdint>

#include "element_type.h"
#include "roi/axis.h"

namespace xla_ops {

// Every place on an axis is a whole number in float.
constexpr int64_t kMaxRoiMapSide = int64_t{1} << 24;

struct RoiMap {
  int64_t H, W;        // at most kMaxRoiMapSide
  const void* pixels;  // [N,G,H,W,C]
  void* gradient;      // the same, or nullptr in the forward pass
};

// What all kernels of RoI pooling read. `Real` stands for float, beside kF64 maps double.
struct RoiOperands {
  ElementType type;
  int64_t N, L, C, B, h, w;
  const RoiMap* maps;        // L of them
  const void* boxes;         // Real [N,B,4]: y, x, height, width in pixels of the map
  const int32_t* levels;     // [N,B]; others than 0..L-1 pool to 0
  const int32_t* map_sizes;  // [N,L,2]: height and width of the part that counts
};

struct RoiPoolOperands : RoiOperands {
  // Bin (i, j) reads group (i * group_h / h) * group_w + j * group_w / w.
  int64_t group_h, group_w;
  int64_t classes;  // a bin's channels in as many parts, each with its own shift
  RoiSampling sampling;
  int64_t samples;    // of a bin along an axis; 0: adaptive (kGrid), none (kPixels)
  const void* shift;  // Real [N,B,h,w,classes,2]: (dy, dx) in pixels, or nullptr
  const void* mask;   // Real [N,B,h,w], or nullptr
};

// Maps have less than 2^31 pixels, and boxes are whole pixels.
struct MaxRoiPoolOperands : RoiOperands {};

}  // namespace xla_ops

#endif  // XLA_OPS_ROI_OPERANDS_H_
