// What the handlers of roi_pool (max_pool_handlers.cc) ask of its kernels
// (max_pool.cu). Letters as in ../operands.h.
#ifndef XLA_OPS_ROI_CUDA_MAX_POOL_KERNELS_H_
#define XLA_OPS_ROI_CUDA_MAX_POOL_KERNELS_H_

#include <cstdint>

#include "roi/operands.h"
#include "simt/stream.h"

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

#endif  // XLA_OPS_ROI_CUDA_MAX_POOL_KERNELS_H_
