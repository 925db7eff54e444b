// What the handlers of nms (handler.cc) ask of its kernels (kernels.cu).
//
// N images, B boxes of an image, D outputs. Candidates are the boxes that take part, by
// falling score.
#ifndef XLA_OPS_NMS_CUDA_KERNELS_H_
#define XLA_OPS_NMS_CUDA_KERNELS_H_

#include <cstdint>

#include "nms/tuning.h"
#include "simt/stream.h"

namespace xla_ops {
namespace cuda {

inline int64_t nms_blocks(int64_t boxes) { return (boxes + kNmsBlock - 1) / kNmsBlock; }

// The scan keeps a word for each block in shared memory.
constexpr int64_t kNmsMaxBoxes = 1 << 18;

struct NmsOperands {
  int64_t N, B, D;
  const int32_t* class_ids;   // [N,B]
  const int32_t* order;       // [N,B] numbers of the candidates, then of the others
  const int32_t* candidates;  // [N] how many there are
};

// Writes which later candidates each candidate suppresses: bit k of word b of `suppressed`
// [N,B,blocks] is candidate 64 b + k. Words of earlier blocks than the candidate's own are
// not written.
//
// IoU is computed and rounded as torchvision does: inter / (area + area - inter).
template <typename A>
simt::Failure compare_boxes(const NmsOperands& op, const A* boxes, A threshold,
                            uint64_t* suppressed, cudaStream_t stream);

// Selects candidates in their order until there are D.
simt::Failure select_boxes(const NmsOperands& op, const uint64_t* suppressed, int32_t* indices,
                           bool* selected, cudaStream_t stream);

}  // namespace cuda
}  // namespace xla_ops

#endif  // XLA_OPS_NMS_CUDA_KERNELS_H_
