// How the kernels of deform_conv2d cut their work.
//
// Figures are times with another value over those with this one, by `python -m
// scripts.benchmark.constants` on two cores of an AMD EPYC without AVX-512, November 2026.
// "Flat": half and twice the value change no row of float32 layers by more than 3 %, where two
// runs of one library differ by 2 %. Constants for many threads or for memory have no figure, and
// those of CUDA only where it is said.
#ifndef XLA_OPS_DEFORM_CONV_TUNING_H_
#define XLA_OPS_DEFORM_CONV_TUNING_H_

#include <cstddef>
#include <cstdint>

#include "simd/tuning.h"

namespace xla_ops {

// Packed kernels, and partial sums, of the images in flight take at most this much where one
// image does not need more: memory against images whose work is dealt out together. The peaks
// in docs/benchmarks.md, 7.4 to 25.9 MiB with 128 and 256 channels, keep the bound there.
constexpr int64_t kScratchBytes = int64_t{8} << 20;

// Chunks of work that keep the threads of a large machine busy.
constexpr int64_t kManyChunks = 8;

// Output positions of a chunk that adds partial sums.
constexpr int64_t kPartialSumPositions = 512;

// Rows of output positions in the strips that tiles are cut from: a tile is then a patch,
// whose samples share more pixels than those of a run along a row. 4: 1.00; 16: 1.04 (128
// channels forward), else 1.00.
constexpr int64_t kStripRows = 8;

// Groups of no more channels and outputs than this are worked on together, a channel in each lane.
// This and the other constants of small groups, of copies and of patches were timed by calling the
// kernels alone, least times of runs that took turns on a busy machine: differences below 10 % say
// nothing. A product for each group of 16 (512 channels, 50x76): 1.0 forward, 1.5 to 2.3 backward.
constexpr int64_t kSmallGroup = 16;
// Output positions of a tile of such groups, and how large its columns may be. Half: 1.05; twice:
// 1.0 (backward).
constexpr int64_t kGroupRows = 2 * kRowMultiple;
constexpr int64_t kGroupColumnsBytes = 160 << 10;
// Forward, so many channels of an offset group are worked on together. No figure.
constexpr int64_t kGroupChannels = 64;

// Forward.

// Output positions of a tile, at most, and where the packed kernel does not stay in the second
// cache. Large tiles read the packed kernel and the borders of their patch of x seldom, as long
// as their sums stay in the second cache; small ones are many, for many threads. Flat, all three.
constexpr int64_t kMaxTileRows = 16 * kRowMultiple;
constexpr int64_t kUsualTileRows = 8 * kRowMultiple;
constexpr int64_t kTileSumsBytes = 256 << 10;
// Tiles of a call that are enough for tiles above, and for tiles of, kUsualTileRows. Flat.
constexpr int64_t kManyTiles = 32, kEnoughTiles = 8;
// No tile has less than this while there are not enough of them.
constexpr int64_t kFewTileRows = 2 * kRowMultiple;
// Samples of a tile in an offset group: bounds a worker's scratch for large windows.
constexpr int64_t kMaxTileSamples = 96 * 64;

// Offset groups of pixels up to this are copied to lie together, as much as a tile reads, if the
// rows of the map that it reads have room in so much of a worker's scratch. None: 1.1 to 1.3 (64
// channels in 8 offset groups).
constexpr int64_t kNarrowPixel = 64;
constexpr int64_t kPatchBytes = 1 << 20;

// At most so many rows of a tile are sampled, then multiplied: few, so that their columns are
// still in the first cache. Flat.
constexpr int64_t kMaxRowsTogether = 2 * kRowMultiple;
// A packed kernel up to this size stays in the second cache, and may be read for half as many
// rows, where the columns of more would take the first one. Flat, both.
constexpr int64_t kNearKernelBytes = 640 << 10;
constexpr int64_t kNearColumnsBytes = 8 << 10;

// A packed kernel of more than this is packed in parts, for threads. Flat, both.
constexpr int64_t kPackedWhole = 64 << 10;
constexpr int64_t kPackParts = 16;

// Backward.

// Output positions whose columns and their gradients are worked on together. Half: 1.00; twice:
// 1.07 to 1.08.
constexpr int64_t kBackwardRows = 8 * kRowMultiple;

// Channels of a block of x. Narrow blocks repeat the work per sample; few blocks leave threads
// idle: blocks of kWideBlock are halved down to kNarrowBlock while they are less than
// kManyChunks, then to kNarrowestBlock while they are less than kFewChunks. kWideBlock is flat;
// kNarrowBlock 16: 1.18 (128 channels), 64: 1.00.
constexpr int64_t kWideBlock = 128, kNarrowBlock = 32, kNarrowestBlock = 16;
// In place of kNarrowBlock for small groups. 32: 1.2 to 1.5 (256 channels in groups of 8).
constexpr int64_t kNarrowGroupBlock = 64;
constexpr int64_t kFewChunks = 4;

// A block's channels of x, and the sums of their gradients, are copied to lie together where the
// copies of all workers are at most this much: samples lie anywhere, and narrow parts of many
// cache lines compete for few cache sets. None: 1.15 to 1.3 (128 and 256 channels backward).
constexpr size_t kCopyBytes = size_t{8} << 20;

// Weights of the taps that are handled together, which are as large as their gradients: both
// stay in the second cache. Half: 1.05 (256 and 512 channels); twice: 1.00.
constexpr int64_t kRunWeightsBytes = 400 << 10;

// Outputs that are transposed together: both sides stay in the first cache. Flat.
constexpr int64_t kTransposedOutputs = 16;

// How many samples ahead pixels are fetched. Corners lie anywhere: the hardware cannot foresee
// them, but samples are known ahead. Worth it for maps that are larger than the caches near the
// core. Flat, both.
constexpr int64_t kAhead = 12;
constexpr int64_t kNearMapBytes = 1 << 20;

namespace cuda {

// A block handles a square patch of output positions, an offset group and a run of taps:
// neighbours in both directions read the same pixels, which the L1 cache then holds.
constexpr int kSide = 8;
constexpr int kThreads = 256;
// Taps of a run: long runs find more corners at once, in more shared memory.
constexpr int kMaxTaps = 16;
// Fewer blocks than this leave multiprocessors idle; then runs are shorter. Emulated, a block
// of a small map has several taps too.
#if defined(XLA_OPS_EMULATES_CUDA)
constexpr int64_t kManyBlocks = 16;
#else
constexpr int64_t kManyBlocks = 1024;
#endif

// Neighbouring lanes that share a sample, 16 bytes of channels each: 128 bytes, a line of the
// L1 cache. A trial kernel on an H200, 128 bfloat16 channels: 16: 0.98, 32: 1.80. Where they are
// more than the runs of an offset group, kFewLanes.
constexpr int kLanes = 8, kFewLanes = 4;
// Blocks on a multiprocessor: two samples that wait take up to 80 and 128 registers.
constexpr int kColumnsBlocks = 3, kVisitBlocks = 2;

// Blocks of the gather on a multiprocessor: left to itself, ptxas spills to run five.
constexpr int kGatherBlocks = 4;

}  // namespace cuda
}  // namespace xla_ops

#endif  // XLA_OPS_DEFORM_CONV_TUNING_H_
