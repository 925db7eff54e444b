// What the kernels of roi_pool (max pooling) read, on the CPU and on CUDA.
//
// N batch, L pyramid levels, H W map, C channels, B RoIs of an image, h w bins of a RoI.
#ifndef XLA_OPS_MAX_ROI_POOL_OPERANDS_H_
#define XLA_OPS_MAX_ROI_POOL_OPERANDS_H_

#include "roi_pool_operands.h"

namespace xla_ops {

// Maps have less than 2^31 pixels, and boxes are whole pixels.
struct MaxRoiPoolOperands : RoiOperands {};

}  // namespace xla_ops

#endif  // XLA_OPS_MAX_ROI_POOL_OPERANDS_H_
