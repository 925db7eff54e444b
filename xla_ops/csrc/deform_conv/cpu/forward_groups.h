// The forward kernel of deform_conv2d where groups are small (groups.h): some rows of a tile are
// sampled, in some channels of an offset group, and multiplied in the lanes.
#ifndef XLA_OPS_DEFORM_CONV_CPU_FORWARD_GROUPS_H_
#define XLA_OPS_DEFORM_CONV_CPU_FORWARD_GROUPS_H_

#include "deform_conv/cpu/groups.h"
#include "deform_conv/cpu/samples.h"
#include "deform_conv/cpu/scratch.h"
#include "simd/lanes.h"

namespace xla_ops {
namespace XLA_OPS_ISA {

// The channels of an offset group are cut into chunks, and the taps into runs.
template <typename A>
struct GroupChunks {
  int64_t channels, count;  // of a chunk, and chunks of an offset group
  int64_t stride;           // of what belongs to the channels
  int64_t packed;           // elements of a chunk's packed kernel: [taps][outputs][stride]
  int64_t run;              // taps whose columns stay in cache

  explicit GroupChunks(const DeformConvGeometry& g) {
    const int64_t all = g.offset_group_channels();
    channels = min(all, round_up(ceil_div(all, ceil_div(all, kGroupChannels)), kLanes<A>));
    count = ceil_div(all, channels);
    stride = lane_stride<A>(channels);
    packed = g.taps() * g.group_outputs() * stride;
    run = kGroupColumnsBytes / (kGroupRows * stride * static_cast<int64_t>(sizeof(A)));
    run = ceil_div(g.taps(), ceil_div(g.taps(), run > 1 ? run : 1));
  }

  // Calls f(offset group, chunk of it, c0, channels) for all chunks.
  template <typename F>
  XLA_OPS_ALWAYS_INLINE void for_each(const DeformConvGeometry& g, F&& f) const {
    for (int64_t group = 0, begin = 0; group < g.G; ++group) {
      const int64_t end = begin + g.offset_group_channels();
      for (int64_t chunk = 0; begin < end; ++chunk) {
        const int64_t some = min(channels, end - begin);
        f(group, chunk, begin, some);
        begin += some;
      }
    }
  }
};

template <typename A>
struct GroupForwardScratch {
  char* samples;   // of Samples::bytes()
  A* columns;      // [kGroupRows][run][stride]
  int32_t* first;  // of GroupOutputs
  A* sums;         // [kGroupRows][K]
  size_t bytes;

  GroupForwardScratch(const DeformConvGeometry& g, const GroupChunks<A>& chunks, void* scratch) {
    ScratchPieces pieces(scratch);
    samples = pieces.take<char>(Samples<A>::bytes(kGroupRows * chunks.run));
    columns = pieces.take<A>(kGroupRows * chunks.run * chunks.stride);
    first = pieces.take<int32_t>(chunks.channels);
    sums = pieces.take<A>(kGroupRows * g.K);
    bytes = pieces.end();
  }
};

template <typename T>
DeformConvForwardPlan plan_groups(const DeformConvGeometry& g) {
  using A = Arithmetic<T>;
  const GroupChunks<A> chunks(g);
  DeformConvForwardPlan plan;
  plan.rows_together = kGroupRows;
  plan.rows = kUsualTileRows;
  while (plan.rows > kGroupRows && g.N * ceil_div(g.positions(), plan.rows) < kEnoughTiles) {
    plan.rows /= 2;
  }
  plan.tiles = ceil_div(g.positions(), plan.rows);
  plan.packed_bytes = g.G * chunks.count * chunks.packed * sizeof(A);
  plan.pack_parts = plan.packed_bytes > kPackedWhole ? min(kPackParts, g.G * chunks.count) : 1;
  plan.worker_bytes = GroupForwardScratch<A>(g, chunks, nullptr).bytes;
  return plan;
}

// Spreads every so many-th chunk of a copy of the kernel.
template <typename T>
void pack_groups(const DeformConvOperands& op, const DeformConvForwardPlan& plan, int64_t copy,
                 int64_t part, void* packed) {
  using A = Arithmetic<T>;
  const DeformConvGeometry& g = op.geometry;
  const GroupChunks<A> chunks(g);
  const T* kernel = static_cast<const T*>(op.kernel) + copy * g.taps() * g.group_channels() * g.K;
  A* out = static_cast<A*>(packed);
  int64_t turn = 0;
  chunks.for_each(g, [&](int64_t, int64_t, int64_t c0, int64_t channels) {
    if (turn++ % plan.pack_parts == part) {
      spread_kernel<T, A>(g, kernel, c0, channels, 0, g.taps(), chunks.stride, out);
    }
    out += chunks.packed;
  });
}

// Fills in the columns [row][tap][stride] of as many channels of x.
template <typename T, typename A>
void sample_groups(const Samples<A>& samples, const T* x, int64_t pixel_channels, const T* zeros,
                   int64_t count, int64_t channels, int64_t stride, A* columns) {
  constexpr int L = kLanes<A>;
  for (int64_t i = 0; i < count; ++i, columns += stride) {
    Sample<T, A> sample;
#pragma GCC unroll 4
    for (int q = 0; q < 4; ++q) {
      const int64_t pixel = samples.pixel[q][i];
      sample.corner[q] = pixel < 0 ? zeros : x + pixel * pixel_channels;
      sample.weight[q] = samples.weight[q][i];
    }
    sample.out = columns;
    for_each_vector<L>(0, channels, [&](auto w, int64_t c) {
      sample.template interpolate<decltype(w)::value>(c);
    });
  }
}

template <typename T>
void convolve_groups(const DeformConvOperands& op, const DeformConvForwardPlan& plan,
                     const void* packed, int64_t image, int64_t tile, void* y, void* scratch) {
  using A = Arithmetic<T>;
  const DeformConvGeometry& g = op.geometry;
  const GroupChunks<A> chunks(g);
  const GroupForwardScratch<A> s(g, chunks, scratch);
  Samples<A> samples(s.samples, kGroupRows * chunks.run);
  const int64_t outputs = g.group_outputs(), stride = chunks.stride;
  const T* x = static_cast<const T*>(op.x) + image * g.H * g.W * g.C;
  const T* zeros = static_cast<const T*>(op.zeros);
  T* out = static_cast<T*>(y) + image * g.positions() * g.K;

  const int64_t end = min((tile + 1) * plan.rows, g.positions());
  for (int64_t first = tile * plan.rows; first < end; first += kGroupRows) {
    const Tile positions(g, first, min(kGroupRows, end - first));
    std::memset(s.sums, 0, positions.rows * g.K * sizeof(A));
    const A* kernel = static_cast<const A*>(packed);
    chunks.for_each(g, [&](int64_t offset_group, int64_t chunk, int64_t c0, int64_t channels) {
      const GroupOutputs<A> sums(g, c0, channels, s.first, s.sums);
      for (int64_t t0 = 0; t0 < g.taps(); t0 += chunks.run) {
        const int64_t t1 = min(t0 + chunks.run, g.taps()), run = t1 - t0;
        // All chunks of an offset group have the same samples.
        if (chunk == 0 || run < g.taps()) samples.find(op, image, positions, offset_group, t0, t1);
        sample_groups<T, A>(samples, x + c0, g.C, zeros, positions.rows * run, channels, stride,
                            s.columns);
        multiply_lanes<A>({positions.rows, run, outputs}, channels,
                          {s.columns, run * stride, stride},
                          {kernel + t0 * outputs * stride, stride, outputs * stride}, sums);
      }
      kernel += chunks.packed;
    });
    for (int64_t r = 0; r < positions.rows; ++r) {
      const A* from = s.sums + r * g.K;
      T* to = out + positions.position[r] * g.K;
      for_each_vector<kLanes<A>>(0, g.K, [&](auto w, int64_t k) {
        constexpr int L = decltype(w)::value;
        store<L>(to + k, load<L>(from + k));
      });
    }
  }
}

}  // namespace XLA_OPS_ISA
}  // namespace xla_ops

#endif  // XLA_OPS_DEFORM_CONV_CPU_FORWARD_GROUPS_H_
