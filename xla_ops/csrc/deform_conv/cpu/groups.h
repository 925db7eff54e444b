// Kernels of deform_conv2d in many small groups. A matrix product for each group would leave most
// of every vector empty; here a lane is a channel, so that a vector holds channels of several
// groups, and each of a group's outputs is a product in the lanes (simd/lanes.h).
//
// Spread over channels, the kernel has the weight from channel c at tap t to output j of the
// group of c, and the gradient that of this output:
//
//   y[r][j] = sum over c of a group, and t, of columns[r][t][c] * kernel[t][j][c]
//   dcolumns[r][t][c] = sum over j of g[r][j][c] * kernel[t][j][c]
//   dkernel[t][j][c] = sum over r of columns[r][t][c] * g[r][j][c]
#ifndef XLA_OPS_DEFORM_CONV_CPU_GROUPS_H_
#define XLA_OPS_DEFORM_CONV_CPU_GROUPS_H_

#include "deform_conv/cpu/kernels.h"
#include "deform_conv/cpu/samples.h"
#include "deform_conv/cpu/scratch.h"
#include "deform_conv/tuning.h"
#include "simd/lanes.h"

namespace xla_ops {
namespace XLA_OPS_ISA {

// Whether the groups are too small for products of their own.
inline bool has_small_groups(const DeformConvGeometry& g) {
  return g.groups > 1 && g.group_channels() <= kSmallGroup && g.group_outputs() <= kSmallGroup;
}

// Distance between what belongs to so many channels: whole vectors, and no even number of cache
// lines, so that taps and rows do not compete for the same cache sets.
template <typename A>
int64_t lane_stride(int64_t channels) {
  const int64_t stride = round_up(channels, kLanes<A>), line = 64 / sizeof(A);
  return stride % (2 * line) == 0 ? stride + line : stride;
}

// Calls f(group, begin, end) for the channels [begin, end) from c0 on of each group that the
// channels [c0, c0 + channels) touch.
template <typename F>
XLA_OPS_ALWAYS_INLINE void for_each_group(const DeformConvGeometry& g, int64_t c0,
                                          int64_t channels, F&& f) {
  const int64_t size = g.group_channels();
  int64_t group = c0 / size;
  for (int64_t begin = 0, end = size - c0 % size; begin < channels; begin = end, end += size) {
    f(group++, begin, min(end, channels));
  }
}

// Spreads the taps [t0, t1) of a copy of the kernel: out[(t - t0) * outputs + j][stride].
template <typename T, typename A>
void spread_kernel(const DeformConvGeometry& g, const T* kernel, int64_t c0, int64_t channels,
                   int64_t t0, int64_t t1, int64_t stride, A* out) {
  const int64_t size = g.group_channels(), outputs = g.group_outputs();
  for (int64_t t = t0; t < t1; ++t, out += outputs * stride) {
    for_each_group(g, c0, channels, [&](int64_t group, int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; ++c) {
        const T* from = kernel + (t * size + (c0 + c) % size) * g.K + group * outputs;
        for (int64_t j = 0; j < outputs; ++j) out[j * stride + c] = load<1>(from + j);
      }
    });
  }
}

// Writes a spread gradient of the kernel to where it belongs.
template <typename A>
void collect_kernel(const DeformConvGeometry& g, const A* spread, int64_t c0, int64_t channels,
                    int64_t t0, int64_t t1, int64_t stride, A* dkernel) {
  const int64_t size = g.group_channels(), outputs = g.group_outputs();
  for (int64_t t = t0; t < t1; ++t, spread += outputs * stride) {
    for_each_group(g, c0, channels, [&](int64_t group, int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; ++c) {
        A* to = dkernel + (t * size + (c0 + c) % size) * g.K + group * outputs;
        for (int64_t j = 0; j < outputs; ++j) to[j] = spread[j * stride + c];
      }
    });
  }
}

// Calls f(Width<L>()) with the widest vector, of at most kLanes, that no two of the groups which
// the channels [c0, c0 + channels) touch have a part in.
template <typename A, int L = kLanes<A>, typename F>
XLA_OPS_ALWAYS_INLINE void with_vectors_of_a_group(const DeformConvGeometry& g, int64_t c0,
                                                   int64_t channels, F&& f) {
  if constexpr (L > 1) {
    if ((g.group_channels() | c0 | channels) % L != 0) {
      return with_vectors_of_a_group<A, L / 2>(g, c0, channels, f);
    }
  }
  f(Width<L>());
}

// Spreads the gradients of a tile's outputs: out[position][j][stride].
template <typename T, typename A>
void spread_gradient(const DeformConvGeometry& g, const T* gradient, const Tile& tile, int64_t c0,
                     int64_t channels, int64_t stride, A* out) {
  const int64_t outputs = g.group_outputs();
  if (g.group_channels() == 1 && outputs == 1) {
    for (int64_t r = 0; r < tile.rows; ++r, out += stride) {
      const T* from = gradient + tile.position[r] * g.K + c0;
      for_each_vector<kLanes<A>>(0, channels, [&](auto w, int64_t c) {
        constexpr int L = decltype(w)::value;
        store<L>(out + c, load<L>(from + c));
      });
    }
    return;
  }
  with_vectors_of_a_group<A>(g, c0, channels, [&](auto w) {
    constexpr int L = decltype(w)::value;
    for (int64_t r = 0; r < tile.rows; ++r, out += outputs * stride) {
      const T* from = gradient + tile.position[r] * g.K;
      for_each_group(g, c0, channels, [&](int64_t group, int64_t begin, int64_t end) {
        for (int64_t c = begin; c < end; c += L) {
          A* to = out + c;
          for (int64_t j = 0; j < outputs; ++j, to += stride) {
            store<L>(to, Vec<A, L>{} + load<1>(from + group * outputs + j));
          }
        }
      });
    }
  });
}

// Takes the sums in the lanes forward, of (position, output): adds them up over each group, to
// y[position][K].
template <typename A>
class GroupOutputs {
 public:
  // Of the channels [c0, c0 + channels). `first` is scratch for as many numbers.
  GroupOutputs(const DeformConvGeometry& g, int64_t c0, int64_t channels, int32_t* first, A* y)
      : y_(y), K_(g.K), first_(first), channels_(channels) {
    const int64_t outputs = g.group_outputs(), size = g.group_channels();
    for_each_group(g, c0, channels, [&](int64_t group, int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; ++c) first[c] = static_cast<int32_t>(group * outputs);
    });
    one_each_ = size == 1 && outputs == 1;
    fours_ = sizeof(A) == 4 && kLanes<A> >= 4 && (size | outputs | c0 | channels) % 4 == 0;
  }

  XLA_OPS_ALWAYS_INLINE Vec<A, kLanes<A>> begin(int64_t, int64_t, int64_t) const {
    return Vec<A, kLanes<A>>{};
  }

  template <int cols>
  XLA_OPS_ALWAYS_INLINE void end(int64_t i, int64_t j, int64_t c,
                                 const Vec<A, kLanes<A>> (&sum)[cols]) const {
    constexpr int L = kLanes<A>;
    A* y = y_ + i * K_ + j;
    const int64_t lanes = min(L, channels_ - c);
    if constexpr (sizeof(A) == 4 && cols == 4) {
      if (fours_) {
        const auto all = sum_fours<L>(sum[0], sum[1], sum[2], sum[3]);
        Vec<A, 4> group[L / 4];
        std::memcpy(group, &all, sizeof(all));
        for (int64_t q = 0; 4 * q < lanes; ++q) {
          A* to = y + first_[c + 4 * q];
          store<4>(to, load<4>(to) + group[q]);
        }
        return;
      }
    }
    if (one_each_ && lanes == L) {
      A* to = y + first_[c];
      store<L>(to, load<L>(to) + sum[0]);
      return;
    }
#pragma GCC unroll 4
    for (int u = 0; u < cols; ++u) {
      A lane[L];
      store<L>(lane, sum[u]);
      for (int64_t l = 0; l < lanes; ++l) y[first_[c + l] + u] += lane[l];
    }
  }

 private:
  A* y_;
  int64_t K_;
  const int32_t* first_;  // output of the group of each channel
  int64_t channels_;
  bool one_each_, fours_;
};

}  // namespace XLA_OPS_ISA
}  // namespace xla_ops

#endif  // XLA_OPS_DEFORM_CONV_CPU_GROUPS_H_
