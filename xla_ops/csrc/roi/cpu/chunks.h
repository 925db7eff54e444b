// How the CPU handlers of RoI pooling cut their work into chunks for threads.
#ifndef XLA_OPS_ROI_CPU_CHUNKS_H_
#define XLA_OPS_ROI_CPU_CHUNKS_H_

#include <algorithm>
#include <cstdint>
#include <new>
#include <vector>

#include "ffi/buffers.h"
#include "ffi/parallel.h"
#include "roi/cpu/map_block.h"
#include "roi/operands.h"
#include "roi/tuning.h"
#include "xla/ffi/api/ffi.h"

namespace xla_ops {

// Whether no RoI has anything to add to a gradient, which then is 0.
inline bool adds_nothing(const RoiOperands& op) {
  return op.N == 0 || op.B == 0 || op.h == 0 || op.w == 0 || op.C == 0;
}

inline void fill_with_zeros(const xla::ffi::RemainingRets& results) {
  for (size_t i = 0; i < results.size(); ++i) {
    fill_with_zeros(**results.get<xla::ffi::AnyBuffer>(i));
  }
}

// Calls body(chunk, scratch of the worker) for all chunks.
template <typename Body>
xla::ffi::Error for_each_roi_chunk(xla::ffi::ThreadPool& pool, int64_t chunks,
                                   int64_t scratch_bytes, Body&& body) {
  scratch_bytes = (scratch_bytes + 63) / 64 * 64;
  try {
    Scratch scratch(num_workers(pool, chunks) * scratch_bytes);
    parallel_for(pool, chunks, [&](int64_t chunk, int64_t worker) {
      body(chunk, scratch.as<char>() + worker * scratch_bytes);
    });
  } catch (const std::bad_alloc&) {
    return xla::ffi::Error(xla::ffi::ErrorCode::kResourceExhausted, "no memory for RoI pooling");
  }
  return xla::ffi::Error::Success();
}

// Calls body(first, last, scratch of the worker) for runs of RoIs that together are all.
template <typename Body>
xla::ffi::Error for_each_run_of_rois(xla::ffi::ThreadPool& pool, const RoiOperands& op,
                                     int64_t scratch_bytes, Body&& body) {
  const int64_t rois = op.N * op.B;
  return for_each_roi_chunk(pool, (rois + kRoisOfChunk - 1) / kRoisOfChunk, scratch_bytes,
                            [&](int64_t chunk, void* scratch) {
                              body(chunk * kRoisOfChunk,
                                   std::min((chunk + 1) * kRoisOfChunk, rois), scratch);
                            });
}

inline int64_t block_pixels(const RoiOperands& op, const RoiMapBlock& block) {
  return (block.last_row - block.first_row) * op.maps[block.level].W;
}

// So that no thread begins a large one last.
inline void sort_largest_first(const RoiOperands& op, std::vector<RoiMapBlock>* blocks) {
  std::stable_sort(blocks->begin(), blocks->end(),
                   [&](const RoiMapBlock& a, const RoiMapBlock& b) {
                     return block_pixels(op, a) > block_pixels(op, b);
                   });
}

// Calls body(block, scratch of the worker) for all blocks; scratch_bytes(pixels, channels)
// says how much one of that size takes.
template <typename ScratchBytes, typename Body>
xla::ffi::Error for_each_block(xla::ffi::ThreadPool& pool, const RoiOperands& op,
                               const std::vector<RoiMapBlock>& blocks,
                               ScratchBytes&& scratch_bytes, Body&& body) {
  int64_t pixels = 0, channels = 0;
  for (const RoiMapBlock& block : blocks) {
    pixels = std::max(pixels, block_pixels(op, block));
    channels = std::max(channels, block.last_channel - block.first_channel);
  }
  return for_each_roi_chunk(pool, static_cast<int64_t>(blocks.size()),
                            scratch_bytes(pixels, channels),
                            [&](int64_t chunk, void* scratch) { body(blocks[chunk], scratch); });
}

}  // namespace xla_ops

#endif  // XLA_OPS_ROI_CPU_CHUNKS_H_
