// What the handlers of roi_pool (max_roi_pool.cc) ask of its kernels
// (max_roi_pool.cu). Letters as in ../max_roi_pool_operands.h.
#ifndef XLA_OPS_CUDA_MAX_ROI_POOL_H_
#define XLA_OPS_CUDA_MAX_ROI_POOL_H_

#include <cstdint>

#include "max_roi_pool_operands.h"
#include "stream.h"

namespace xla_ops {
namespace cuda {

// Pools all RoIs into y [N,B,h,w,C].
simt::Failure max_pool_rois(const MaxRoiPoolOperands& op, void* y, cudaStream_t stream);

// Gradients of the maps, in an order of additions that is always the same.
// `reach` [N,B,4] and `places` [N,B,h,w,C] are scratch.
simt::Failure max_roi_map_gradient(const MaxRoiPoolOperands& op, const void* g, int32_t* reach,
                                   int32_t* places, cudaStream_t stream);

}  // namespace cuda
}  // namespace xla_ops

#endif  // XLA_OPS_CUDA_MAX_ROI_POOL_H_
