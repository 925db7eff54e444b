// How the kernels of nms cut their work. No figure of a comparison is on record; what each
// constant trades is said. Those of CUDA are not measured: no GPU has run them.
#ifndef XLA_OPS_NMS_TUNING_H_
#define XLA_OPS_NMS_TUNING_H_

namespace xla_ops {

// Vectors of selected boxes that are compared before it is asked whether one overlaps: few
// branches against comparisons behind the one that decides.
constexpr int kVectorsTogether = 4;

namespace cuda {

// Candidates are compared in blocks of as many: a word of bits for a candidate and a block.
constexpr int kNmsBlock = 64;

// Threads that gather whom the boxes of a block suppress, one image's all in one block.
constexpr int kScanThreads = 512;

}  // namespace cuda
}  // namespace xla_ops

#endif  // XLA_OPS_NMS_TUNING_H_
