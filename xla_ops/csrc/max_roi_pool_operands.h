// What the kernels of roi_pool (max pooling) read, on the CPU and on CUDA.
//
// N batch, L pyramid levels, H W map, C channels, B RoIs of an image, h w bins of a RoI.
#ifndef XLA_OPS_MAX_ROI_POOL_OPERANDS_H_
#define XLA_OPS_MAX_ROI_POOL_OPERANDS_H_

#include <cstdint>

#include "element_type.h"
#include "roi_pool_operands.h"

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

}  // namespace xla_ops

#endif  // XLA_OPS_MAX_ROI_POOL_OPERANDS_H_
