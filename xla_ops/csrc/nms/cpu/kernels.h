// What the handler of nms (handler.cc) asks of its kernel (select_kernel.cc).
#ifndef XLA_OPS_NMS_CPU_KERNELS_H_
#define XLA_OPS_NMS_CPU_KERNELS_H_

#include <cstdint>

#include "element_type.h"

namespace xla_ops {

// Scratch holds the selected boxes in vectors: this many more than are selected.
constexpr int64_t kNmsPadding = 64;
// Arrays of `A` in scratch: four corners, the area, and the group.
constexpr int64_t kNmsArrays = 6;

// Boxes suppress only those of their group. Those selected of a group lie side by side.
struct NmsGroups {
  const int32_t* of;     // [candidates] group of each candidate, in their order
  const int32_t* first;  // [groups] place of a group's first selected box
  int32_t* count;        // [groups] zeros; on return, how many are selected
  int64_t places;        // of all groups
};

// `Real` stands for float, for kF64 double; other types have no kernel.
struct NmsKernels {
  // Greedy non-maximum suppression of one image. Goes through the boxes in the order
  // `order` [candidates] and stops when `max_outputs` are selected. Writes their numbers to
  // `indices`, returns how many there are. `boxes` Real [B,4]; `scratch` holds kNmsArrays *
  // (groups.places + kNmsPadding) values of Real, aligned.
  //
  // IoU is computed and rounded as torchvision does: inter / (area + area - inter).
  int64_t (*select_boxes)(const void* boxes, const int32_t* order, int64_t candidates,
                          const NmsGroups& groups, double threshold, int64_t max_outputs,
                          void* scratch, int32_t* indices);
};
const NmsKernels& nms_kernels(ElementType type);

}  // namespace xla_ops

#endif  // XLA_OPS_NMS_CPU_KERNELS_H_
