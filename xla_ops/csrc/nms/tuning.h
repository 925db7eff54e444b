// How the kernels of nms cut their work.
//
// Figures are times with another value over those with this one, by `python -m
// scripts.benchmark.constants` on two cores of an AMD EPYC without AVX-512, November 2026.
// Those of CUDA are not measured.
#ifndef XLA_OPS_NMS_TUNING_H_
#define XLA_OPS_NMS_TUNING_H_

namespace xla_ops {

// Vectors of selected boxes that are compared before it is asked whether one overlaps: few
// branches against comparisons behind the one that decides. 2: 1.34 in one class, 1.08 in 80; 8:
// 1.04 and 1.10.
constexpr int kVectorsTogether = 4;

namespace cuda {

// Candidates are compared in blocks of as many: a word of bits for a candidate and a block.
constexpr int kNmsBlock = 64;

// Threads that gather whom the boxes of a block suppress, one image's all in one block.
constexpr int kScanThreads = 512;

}  // namespace cuda
}  // namespace xla_ops

#endif  // XLA_OPS_NMS_TUNING_H_
