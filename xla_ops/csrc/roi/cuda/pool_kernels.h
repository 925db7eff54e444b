// What the handlers of RoI pooling (pool_handlers.cc) ask of its kernels
// (pool_*.cu). Letters as in ../operands.h.
#ifndef XLA_OPS_ROI_CUDA_POOL_KERNELS_H_
#define XLA_OPS_ROI_CUDA_POOL_KERNELS_H_

#include <cstdint>

#include "roi/operands.h"
#include "simt/stream.h"

namespace xla_ops {
namespace cuda {

// Maps go to a kernel as its parameters.
constexpr int kMaxRoiLevels = 32;

// Bins of a RoI, counted for each class: those of a block's RoIs are counted in 32 bits.
constexpr int64_t kMaxRoiCells = 1 << 23;

// Pools all RoIs into y [N,B,h,w,C].
simt::Failure pool_rois(const RoiPoolOperands& op, void* y, cudaStream_t stream);

// Gradients of shift and mask; either may be nullptr.
simt::Failure roi_bin_gradient(const RoiPoolOperands& op, const void* g, void* dshift, void* dmask,
                               cudaStream_t stream);

// Gradients of the maps, in an order of additions that is always the same.
// `reach` [N,B,4] is scratch.
simt::Failure roi_map_gradient(const RoiPoolOperands& op, const void* g, int32_t* reach,
                               cudaStream_t stream);

}  // namespace cuda
}  // namespace xla_ops

#endif  // XLA_OPS_ROI_CUDA_POOL_KERNELS_H_
