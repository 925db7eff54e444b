// How the kernels of RoI pooling cut their work.
//
// Figures are times with another value over those with this one, by `python -m
// scripts.benchmark.constants` on two cores of an AMD EPYC without AVX-512, November 2026.
// Two runs of one library differ by 5 % there. Constants without a figure are for half precision,
// for memory or for many threads; those of CUDA are not measured.
#ifndef XLA_OPS_ROI_TUNING_H_
#define XLA_OPS_ROI_TUNING_H_

#include <cstdint>

namespace xla_ops {

// RoIs of a chunk of work: few, for many threads; more, so that a chunk is worth its start. 2:
// 1.02 to 1.16 forward; 8: 0.99 to 1.07.
constexpr int64_t kRoisOfChunk = 4;

// Vectors of channels that a loop over pixels keeps in registers. 2: 1.01 to 1.25 forward; 8: 1.02
// to 1.69.
constexpr int kBlockVectors = 4;

// Taps of a RoI's columns that are kept while its rows pass: memory of a worker against
// finding them again for every row of bins.
constexpr int64_t kMaxKeptTaps = 1 << 14;

// Gradient maps are cut into blocks, enough for all threads: so many for each, because blocks
// are not alike. 2: 0.91 to 1.02 forward and backward; 8: 0.97 to 1.13.
constexpr int64_t kBlocksOfThread = 4;
// A block of roi_pool is as wide as this at most, and not narrower without need: a wide one costs
// hardly more than a narrow one. Those of the other operators are kBlockVectors wide: 32 channels
// where vectors have 8, against which 64 took 1.8 times as long in roi_align, 1.6 times in
// deform_roi_pool, and 16 twice as long, forward and backward.
constexpr int64_t kMaxBlockChannels = 64, kMinBlockChannels = 16;
// Nor has it fewer rows without need: every block looks at all RoIs. 4: 0.94 to 1.01 forward and
// backward; 16: 0.92 to 1.00.
constexpr int64_t kMinBlockRows = 8;
// Bytes that the sums of one block should not exceed.
constexpr int64_t kBlockBytes = 4 << 20;
// Sums of neighbouring pixels lie a cache line more apart than need be: at a multiple of 256
// bytes, stores to them would delay loads from equal places of other pages.
constexpr int64_t kSumsPadding = 16;

namespace cuda {

// Gradients of maps are summed in tiles of this side: a large one looks at each RoI seldom, and
// keeps as many sums of each thread in registers.
constexpr int kTileSide = 8;
// A warp of 32 threads for each row of a tile. In the forward pass warps work on their own.
constexpr int kRoiThreads = 32 * kTileSide;
// Bins that are looked at together for a tile: two threads, one for each axis, have a bin.
constexpr int kTileCells = kRoiThreads / 2;
// Blocks on a multiprocessor that leave a thread the registers it needs: up to 128.
constexpr int kRoiBlocks = 2;

// Taps of an axis that a warp keeps at a time, in shared memory.
constexpr int kMaxWarpTaps = 64;

}  // namespace cuda
}  // namespace xla_ops

#endif  // XLA_OPS_ROI_TUNING_H_
