// Sizes of the matrix products of gemm.h.
//
// Figures are times with another value over those with this one, by `python -m
// scripts.benchmark.constants` on two cores of an AMD EPYC without AVX-512, November 2026.
// Layers of float32; two runs of one library differ by 2 % there.
#ifndef XLA_OPS_SIMD_TUNING_H_
#define XLA_OPS_SIMD_TUNING_H_

#include <cstdint>

namespace xla_ops {

// Rows of a register block, of every instruction set, divide it: tiles have room for rows
// rounded up to a multiple of it.
constexpr int64_t kRowMultiple = 12;

// Depth of one product: deep ones load and store their sums seldom, shallow ones leave the
// rows of both operands in the first cache. 12 rows of float are 18 KiB. 192: 1.05 to 1.13 with
// 128 and 256 channels.
constexpr int64_t kMaxDepth = 384;

// Row stride of a tile, with as many columns as a product is deep: known to the compiler, so
// that row addresses are immediate offsets, and for float 25 cache lines, an odd number, so
// that rows do not compete for the same cache sets.
constexpr int64_t kTileStride = 400;

// A vector of the work beside a product is done every so many steps of its depth: many, and
// less work fits beside it; few, and the loads of that work are waited for. 2: 1.01 to 1.03; 8:
// 1.03 to 1.09.
constexpr int kStepsBesideVector = 4;

}  // namespace xla_ops

#endif  // XLA_OPS_SIMD_TUNING_H_
