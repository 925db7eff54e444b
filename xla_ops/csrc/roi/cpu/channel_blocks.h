// The cut of a run of channels into vectors, for kernels that go over the same pixels once
// for each block of vectors.
#ifndef XLA_OPS_ROI_CPU_CHANNEL_BLOCKS_H_
#define XLA_OPS_ROI_CPU_CHANNEL_BLOCKS_H_

#include "roi/tuning.h"
#include "simd/vector.h"

namespace xla_ops {
namespace XLA_OPS_ISA {

// Channels [c, end) in U vectors or less, where [begin, c) are taken.
template <int L, int U, typename F>
XLA_OPS_ALWAYS_INLINE void last_channel_block(int64_t begin, int64_t end, int64_t c, F&& f) {
  if constexpr (U > 1) {
    if (end - c <= (U - 1) * L) {
      last_channel_block<L, U - 1>(begin, end, c, f);
      return;
    }
  }
  if (end - U * L >= begin) {
    f(Width<L>(), Width<U>(), end - U * L, c - (end - U * L));
  } else if constexpr (U > 1) {
    f(Width<L>(), Width<U - 1>(), c, int64_t{0});
    f(Width<L>(), Width<1>(), end - L, c + U * L - end);
  }
}

// Less than 2 * L channels.
template <int L, typename F>
XLA_OPS_ALWAYS_INLINE void few_channels(int64_t begin, int64_t end, F&& f) {
  if constexpr (L > 1) {
    if (end - begin < L) {
      few_channels<L / 2>(begin, end, f);
      return;
    }
  }
  if (begin == end) return;
  f(Width<L>(), Width<1>(), begin, int64_t{0});
  if (end - begin > L) f(Width<L>(), Width<1>(), end - L, begin + 2 * L - end);
}

// Calls f(Width<L>(), Width<U>(), c, taken) for blocks of U vectors of L channels from c on,
// that together are [begin, end). The first `taken` channels of a block were in earlier
// ones: a block that reaches back costs less than several narrow ones.
template <typename A, typename F>
XLA_OPS_ALWAYS_INLINE void for_each_channel_block(int64_t begin, int64_t end, F&& f) {
  constexpr int L = kLanes<A>, U = kBlockVectors;
  if (end - begin < L) {
    few_channels<L / 2>(begin, end, f);
    return;
  }
  int64_t c = begin;
  for (; c + U * L <= end; c += U * L) f(Width<L>(), Width<U>(), c, int64_t{0});
  if (c < end) last_channel_block<L, U>(begin, end, c, f);
}

}  // namespace XLA_OPS_ISA
}  // namespace xla_ops

#endif  // XLA_OPS_ROI_CPU_CHANNEL_BLOCKS_H_
