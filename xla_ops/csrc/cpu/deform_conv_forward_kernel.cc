// Forward kernel of deform_conv2d: a tile of output positions is sampled into a bounded
// matrix [position][tap, channel] and multiplied with the packed kernel; the column
// matrix of an image never exists.
#include "deform_conv.h"
#include "deform_conv_samples.h"
#include "gemm.h"

namespace xla_ops {
namespace XLA_OPS_ISA {
namespace {

// A step of the product over taps and channels: the taps [t0, t1) of the channels
// [c0, c0 + channels), which lie in one convolution group and one offset group.
struct Step {
  int64_t group, offset_group;
  int64_t c0, channels;
  int64_t t0, t1;
  int64_t packed;  // where its rows of the packed kernel begin, in elements
  bool first_of_group, last_of_group;

  int64_t depth() const { return (t1 - t0) * channels; }
};

template <typename A>
int64_t padded_outputs(const DeformConvGeometry& g) {
  return round_up(g.group_outputs(), kLanes<A>);
}

// Calls f(step) for all steps in order of channels.
template <typename A, typename F>
void for_each_step(const DeformConvGeometry& g, F&& f) {
  const int64_t padded = padded_outputs<A>(g);
  int64_t packed = 0;
  for (int64_t c0 = 0; c0 < g.C;) {
    const int64_t group = c0 / g.group_channels();
    const int64_t offset_group = c0 / g.offset_group_channels();
    const int64_t group_end = (group + 1) * g.group_channels();
    const int64_t offset_end = (offset_group + 1) * g.offset_group_channels();
    const int64_t limit = group_end < offset_end ? group_end : offset_end;
    int64_t channels = limit - c0;
    if (channels > kMaxDepth) {
      channels = round_up(ceil_div(channels, ceil_div(channels, kMaxDepth)), 2 * kLanes<A>);
      if (channels > kMaxDepth) channels = kMaxDepth;
    }
    int64_t taps = kMaxDepth / channels;
    taps = ceil_div(g.taps(), ceil_div(g.taps(), taps));
    for (int64_t t0 = 0; t0 < g.taps(); t0 += taps) {
      const int64_t t1 = t0 + taps < g.taps() ? t0 + taps : g.taps();
      const bool first = t0 == 0 && c0 == group * g.group_channels();
      const bool last = t1 == g.taps() && c0 + channels == group_end;
      f(Step{group, offset_group, c0, channels, t0, t1, packed, first, last});
      packed += (t1 - t0) * channels * padded;
    }
    c0 += channels;
  }
}

// Scratch of a worker: samples, then the sampled matrix, then the output tile.
template <typename A>
struct ForwardScratch {
  Samples<A> samples;  // [rows][taps]
  A* columns;          // [rows][kTileStride]
  A* sums;             // [rows][padded outputs of a group]

  static int64_t columns_bytes(int64_t rows) { return rows * kTileStride * sizeof(A); }
  static int64_t sums_bytes(const DeformConvGeometry& g, int64_t rows) {
    return rows * padded_outputs<A>(g) * sizeof(A);
  }
  static int64_t bytes(const DeformConvGeometry& g, int64_t rows) {
    return Samples<A>::bytes(rows * g.taps()) + columns_bytes(rows) + sums_bytes(g, rows);
  }
  ForwardScratch(const DeformConvGeometry& g, int64_t rows, void* scratch)
      : samples(scratch, rows * g.taps()) {
    char* p = static_cast<char*>(scratch) + Samples<A>::bytes(rows * g.taps());
    columns = reinterpret_cast<A*>(p);
    sums = reinterpret_cast<A*>(p + columns_bytes(rows));
  }
};

template <typename T>
DeformConvForwardPlan plan_forward(const DeformConvGeometry& g) {
  using A = Arithmetic<T>;
  DeformConvForwardPlan plan;
  // Large tiles read the packed kernel seldom; small ones are many, for many threads.
  int64_t rows = 8 * kRowMultiple;
  while (rows > 2 * kRowMultiple && g.N * ceil_div(g.positions(), rows) < 8) rows /= 2;
  while (rows > kRowMultiple && rows * g.taps() > 96 * 64) rows /= 2;
  plan.rows = rows;
  plan.tiles = ceil_div(g.positions(), rows);
  plan.packed_bytes = g.taps() * g.C * padded_outputs<A>(g) * sizeof(A);
  plan.pack_parts = plan.packed_bytes > (1 << 16) ? 16 : 1;
  plan.worker_bytes = ForwardScratch<A>::bytes(g, rows);
  return plan;
}

// Packs panels of the steps' rows, as multiply_packed() reads them. The last panel of a
// group is filled up with zeros.
template <typename T>
void pack_kernel(const DeformConvOperands& op, const DeformConvForwardPlan& plan, int64_t copy,
                 int64_t part, void* packed) {
  using A = Arithmetic<T>;
  const DeformConvGeometry& g = op.geometry;
  const int64_t outputs = g.group_outputs(), padded = padded_outputs<A>(g);
  const int64_t row = g.K, tap = g.group_channels() * row;
  const T* kernel = static_cast<const T*>(op.kernel) + copy * g.taps() * tap;
  int64_t turn = 0;
  for_each_step<A>(g, [&](const Step& step) {
    A* out = static_cast<A*>(packed) + step.packed;
    const T* in =
        kernel + (step.c0 - step.group * g.group_channels()) * row + step.group * outputs;
    for (int64_t j = 0; j < padded;) {
      const int64_t width = panel_width<A>(j, padded);
      if (turn++ % plan.pack_parts == part) {
        const int64_t real = j + width <= outputs ? width : outputs - j;
        A* to = out + j * step.depth();
        for (int64_t t = step.t0; t < step.t1; ++t) {
          for (int64_t c = 0; c < step.channels; ++c, to += width) {
            const T* from = in + t * tap + c * row + j;
            for_each_vector<kLanes<A>>(0, real, [&](auto w, int64_t i) {
              constexpr int L = decltype(w)::value;
              store<L>(to + i, load<L>(from + i));
            });
            for (int64_t i = real; i < width; ++i) to[i] = A(0);
          }
        }
      }
      j += width;
    }
  });
}

// Fills in the columns of a step whose channels are kVectors full vectors; 0 stands for
// any number of channels.
template <int kVectors, typename T, typename A>
void sample_vectors(const DeformConvOperands& op, const T* x, const Samples<A>& samples,
                    int64_t rows, const Step& step, A* columns) {
  constexpr int kFull = kLanes<A>;
  const DeformConvGeometry& g = op.geometry;
  const T* zeros = static_cast<const T*>(op.zeros);
  for (int64_t r = 0; r < rows; ++r) {
    A* out = columns + r * kTileStride;
    for (int64_t t = step.t0; t < step.t1; ++t, out += step.channels) {
      const int64_t at = r * g.taps() + t;
      const T* corner[4];
      A weight[4];
#pragma GCC unroll 4
      for (int q = 0; q < 4; ++q) {
        const int64_t pixel = samples.pixel[q][at];
        corner[q] = (pixel < 0 ? zeros : x + pixel * g.C) + step.c0;
        weight[q] = samples.weight[q][at];
      }
      const auto interpolate = [&](auto w, int64_t c) {
        constexpr int L = decltype(w)::value;
        store<L>(out + c, weight[0] * load<L>(corner[0] + c) + weight[1] * load<L>(corner[1] + c) +
                              weight[2] * load<L>(corner[2] + c) +
                              weight[3] * load<L>(corner[3] + c));
      };
      if constexpr (kVectors > 0) {
#pragma GCC unroll 16
        for (int i = 0; i < kVectors; ++i) interpolate(Width<kFull>(), i * kFull);
      } else {
        for_each_vector<kFull>(0, step.channels, interpolate);
      }
    }
  }
}

template <typename T, typename A>
void sample_columns(const DeformConvOperands& op, const T* x, const Samples<A>& samples,
                    int64_t rows, const Step& step, A* columns) {
  // Without a loop over channels, the usual numbers of them take a twentieth less time.
  const auto sample = step.channels == 2 * kLanes<A>    ? sample_vectors<2, T, A>
                      : step.channels == 4 * kLanes<A>  ? sample_vectors<4, T, A>
                      : step.channels == 8 * kLanes<A>  ? sample_vectors<8, T, A>
                      : step.channels == 16 * kLanes<A> ? sample_vectors<16, T, A>
                                                        : sample_vectors<0, T, A>;
  sample(op, x, samples, rows, step, columns);
}

template <typename T>
void forward_tile(const DeformConvOperands& op, const DeformConvForwardPlan& plan,
                  const void* packed, int64_t image, int64_t tile, void* y, void* scratch) {
  using A = Arithmetic<T>;
  const DeformConvGeometry& g = op.geometry;
  const int64_t first = tile * plan.rows;
  const int64_t left = g.positions() - first;
  const int64_t rows = left < plan.rows ? left : plan.rows;
  const int64_t outputs = g.group_outputs(), padded = padded_outputs<A>(g);
  ForwardScratch<A> s(g, plan.rows, scratch);
  const Tile positions(g, first, rows);
  const T* x = static_cast<const T*>(op.x) + image * g.H * g.W * g.C;
  T* out = static_cast<T*>(y) + image * g.positions() * g.K;

  int64_t sampled_group = -1;
  for_each_step<A>(g, [&](const Step& step) {
    if (step.offset_group != sampled_group) {
      s.samples.find(op, image, positions, step.offset_group, 0, g.taps());
      sampled_group = step.offset_group;
    }
    sample_columns<T, A>(op, x, s.samples, rows, step, s.columns);
    multiply_packed<A>(rows, step.depth(), padded, s.columns,
                       static_cast<const A*>(packed) + step.packed, s.sums, padded,
                       !step.first_of_group);
    if (!step.last_of_group) return;
    for (int64_t r = 0; r < rows; ++r) {
      const A* from = s.sums + r * padded;
      T* to = out + positions.position[r] * g.K + step.group * outputs;
      for_each_vector<kLanes<A>>(0, outputs, [&](auto w, int64_t i) {
        constexpr int L = decltype(w)::value;
        store<L>(to + i, load<L>(from + i));
      });
    }
  });
}

}  // namespace

DeformConvForwardPlan PlanForward(const DeformConvOperands& op) {
  XLA_OPS_RETURN_FOR(op.type, plan_forward, op.geometry);
}

void PackKernel(const DeformConvOperands& op, const DeformConvForwardPlan& plan, int64_t copy,
                int64_t part, void* packed) {
  XLA_OPS_RETURN_FOR(op.type, pack_kernel, op, plan, copy, part, packed);
}

void ForwardTile(const DeformConvOperands& op, const DeformConvForwardPlan& plan,
                 const void* packed, int64_t image, int64_t tile, void* y, void* scratch) {
  XLA_OPS_RETURN_FOR(op.type, forward_tile, op, plan, packed, image, tile, y, scratch);
}

}  // namespace XLA_OPS_ISA
}  // namespace xla_ops
