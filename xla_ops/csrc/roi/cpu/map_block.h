// The blocks that the gradients of RoI pooling are cut into.
#ifndef XLA_OPS_ROI_CPU_MAP_BLOCK_H_
#define XLA_OPS_ROI_CPU_MAP_BLOCK_H_

#include <cstdint>

namespace xla_ops {

// Pixels of a gradient map and channels of a group that one call of a kernel owns.
struct RoiMapBlock {
  int64_t image, level, group;
  int64_t first_row, last_row;
  int64_t first_channel, last_channel;
};

}  // namespace xla_ops

#endif  // XLA_OPS_ROI_CPU_MAP_BLOCK_H_
