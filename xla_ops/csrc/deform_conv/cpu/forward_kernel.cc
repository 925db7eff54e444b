// Forward kernel of deform_conv2d: a tile of output positions is sampled into a bounded
// matrix [position][tap, channel] and multiplied with the packed kernel; the column
// matrix of an image never exists.
#include <type_traits>

#include "deform_conv/cpu/forward_groups.h"
#include "deform_conv/cpu/kernels.h"
#include "deform_conv/cpu/samples.h"
#include "simd/dispatch.h"
#include "simd/gemm.h"

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

// All steps, in order of channels.
template <typename A>
class Steps {
 public:
  explicit Steps(const DeformConvGeometry& g) : g_(g), padded_(padded_outputs<A>(g)) {
    step_.packed = 0;
    begin_channels(0);
  }

  bool done() const { return step_.c0 == g_.C; }
  const Step& operator*() const { return step_; }
  const Step* operator->() const { return &step_; }

  void advance() {
    step_.packed += step_.depth() * padded_;
    if (step_.t1 < g_.taps()) {
      begin_taps(step_.t1);
    } else {
      begin_channels(step_.c0 + step_.channels);
    }
  }

 private:
  void begin_channels(int64_t c0) {
    step_.c0 = c0;
    if (done()) return;
    step_.group = c0 / g_.group_channels();
    step_.offset_group = c0 / g_.offset_group_channels();
    group_end_ = (step_.group + 1) * g_.group_channels();
    const int64_t offset_end = (step_.offset_group + 1) * g_.offset_group_channels();
    int64_t channels = (group_end_ < offset_end ? group_end_ : offset_end) - c0;
    if (channels > kMaxDepth) {
      channels = round_up(ceil_div(channels, ceil_div(channels, kMaxDepth)), 2 * kLanes<A>);
      if (channels > kMaxDepth) channels = kMaxDepth;
    }
    step_.channels = channels;
    taps_ = ceil_div(g_.taps(), ceil_div(g_.taps(), kMaxDepth / channels));
    begin_taps(0);
  }

  void begin_taps(int64_t t0) {
    step_.t0 = t0;
    step_.t1 = t0 + taps_ < g_.taps() ? t0 + taps_ : g_.taps();
    step_.first_of_group = t0 == 0 && step_.c0 == step_.group * g_.group_channels();
    step_.last_of_group = step_.t1 == g_.taps() && step_.c0 + step_.channels == group_end_;
  }

  const DeformConvGeometry& g_;
  int64_t padded_, group_end_ = 0, taps_ = 0;
  Step step_{};
};

// Offset groups of few channels: a tile reads a small part of each of many cache lines, which
// compete for the same cache sets. Then the part of x that it reads is copied to lie together.
template <typename T>
bool copies_patches(const DeformConvGeometry& g) {
  return g.G > 1 && g.offset_group_channels() * static_cast<int64_t>(sizeof(T)) <= kNarrowPixel;
}

// Scratch of a worker: samples, then two sampled matrices, the output tile, and a patch.
template <typename T, typename A>
struct ForwardScratch {
  Samples<A> samples;  // [rows][taps]
  A* columns[2];       // [kMaxRowsTogether][kTileStride]
  A* sums;             // [rows][padded outputs of a group]
  T* patch;            // [map row][map column][channels of an offset group] of a few rows

  static int64_t columns_bytes() { return kMaxRowsTogether * kTileStride * sizeof(A); }
  static int64_t sums_bytes(const DeformConvGeometry& g, int64_t rows) {
    return rows * padded_outputs<A>(g) * sizeof(A);
  }
  static int64_t bytes(const DeformConvGeometry& g, int64_t rows) {
    return Samples<A>::bytes(rows * g.taps()) + 2 * columns_bytes() + sums_bytes(g, rows) +
           (copies_patches<T>(g) ? kPatchBytes : 0);
  }
  ForwardScratch(const DeformConvGeometry& g, int64_t rows, void* scratch)
      : samples(scratch, rows * g.taps()) {
    char* p = static_cast<char*>(scratch) + Samples<A>::bytes(rows * g.taps());
    for (A*& matrix : columns) {
      matrix = reinterpret_cast<A*>(p);
      p += columns_bytes();
    }
    sums = reinterpret_cast<A*>(p);
    patch = reinterpret_cast<T*>(p + sums_bytes(g, rows));
  }
};

template <typename T>
DeformConvForwardPlan plan_forward(const DeformConvGeometry& g) {
  using A = Arithmetic<T>;
  DeformConvForwardPlan plan;
  plan.packed_bytes = g.taps() * g.C * padded_outputs<A>(g) * sizeof(A);
  const int64_t columns_bytes = kMaxRowsTogether * Steps<A>(g)->depth() * sizeof(A);
  const bool few = plan.packed_bytes <= kNearKernelBytes && columns_bytes > kNearColumnsBytes;
  plan.rows_together = few ? kRowMultiple : kMaxRowsTogether;
  int64_t rows = few ? kMaxTileRows : kUsualTileRows;
  const auto fewer_than = [&](int64_t tiles) {
    return g.N * ceil_div(g.positions(), rows) < tiles;
  };
  while (rows > kUsualTileRows &&
         (fewer_than(kManyTiles) || ForwardScratch<T, A>::sums_bytes(g, rows) > kTileSumsBytes)) {
    rows /= 2;
  }
  while (rows > kFewTileRows && fewer_than(kEnoughTiles)) rows /= 2;
  while (rows > kRowMultiple && rows * g.taps() > kMaxTileSamples) rows /= 2;
  plan.rows = rows;
  plan.tiles = ceil_div(g.positions(), rows);
  plan.pack_parts = plan.packed_bytes > kPackedWhole ? kPackParts : 1;
  plan.worker_bytes = ForwardScratch<T, A>::bytes(g, rows);
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
  for (Steps<A> steps(g); !steps.done(); steps.advance()) {
    const Step& step = *steps;
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
  }
}

// Channel c of a pixel is at x[pixel * row + c].
template <typename T>
struct Pixels {
  const T* x;
  int64_t row;
};

// Copies the pixels that samples read, in the channels of an offset group, if they have room in
// kPatchBytes.
template <typename T, typename A>
Pixels<T> copy_patch(const DeformConvGeometry& g, const Samples<A>& samples, const T* x,
                     int64_t offset_group, T* patch) {
  const int64_t channels = g.offset_group_channels(), row = g.W * channels;
  const int64_t bytes = (samples.bottom - samples.top) * row * static_cast<int64_t>(sizeof(T));
  if (samples.top >= samples.bottom || bytes > kPatchBytes) return {x, g.C};
  for (int64_t i = samples.top; i < samples.bottom; ++i) {
    const T* from = x + (i * g.W + samples.left) * g.C + offset_group * channels;
    T* to = patch + (i - samples.top) * row + samples.left * channels;
    for (int64_t j = samples.left; j < samples.right; ++j, from += g.C, to += channels) {
      for_each_vector<kVectorBytes / static_cast<int>(sizeof(T))>(
          0, channels, [&](auto w, int64_t c) {
            std::memcpy(to + c, from + c, decltype(w)::value * sizeof(T));
          });
    }
  }
  return {patch - samples.top * row - offset_group * channels, channels};
}

// Fills in the columns of some rows of a tile in a step: sample after sample, beside a
// product, and the rest at once.
template <typename T, typename A>
class Sampling {
  static constexpr int kFull = kLanes<A>;

  // The last vector begins early where the number of channels is no multiple of it.
  static XLA_OPS_ALWAYS_INLINE int64_t begin_of(int64_t v, int64_t channels) {
    return v * kFull < channels - kFull ? v * kFull : channels - kFull;
  }

  struct Piece {
    Sample<T, A> sample;
    const T* soon[2];  // the two left corners of the sample to be fetched into a cache
    int64_t channels;

    XLA_OPS_ALWAYS_INLINE void do_vector(int64_t v) const {
      const int64_t c = begin_of(v, channels);
      for (const T* pixel : soon) __builtin_prefetch(pixel + c, 0, 2);
      sample.template interpolate<kFull>(c);
    }
  };

 public:
  static constexpr bool kAnything = true;

  // Of the samples from row `first` on, `rows` are filled in and `more` are used next.
  Sampling(const DeformConvOperands& op, const Pixels<T>& pixels, const Samples<A>& samples,
           int64_t first, int64_t rows, int64_t more, const Step& step, A* columns)
      : x_(pixels.x + step.c0),
        zeros_(static_cast<const T*>(op.zeros) + step.c0),
        pixel_channels_(pixels.row),
        samples_(samples),
        channels_(step.channels),
        vectors_(ceil_div(step.channels, kFull)),
        taps_(step.t1 - step.t0),
        skipped_taps_(op.geometry.taps() - taps_),
        left_(rows * taps_),
        at_(first * op.geometry.taps() + step.t0),
        soon_(more < rows ? 0 : rows * op.geometry.taps()),
        out_(columns) {}

  // Samples that a product may take: none where they are narrower than a vector, or where
  // converting them takes the registers of the product.
  int64_t left() const { return channels_ < kFull || std::is_same_v<T, F16> ? 0 : left_; }
  int64_t vectors() const { return vectors_; }

  XLA_OPS_ALWAYS_INLINE Piece next() {
    const int64_t soon = at_ + soon_;
    return {next_sample(), {pixel(0, soon), pixel(2, soon)}, channels_};
  }

  // The vectors are those of do_vector(): how much a product takes depends on the number of
  // images, the result must not.
  void finish() {
    while (left_ > 0) {
      const Sample<T, A> sample = next_sample();
      if (channels_ < kFull) {
        for_each_vector<kFull>(0, channels_, [&](auto w, int64_t c) {
          sample.template interpolate<decltype(w)::value>(c);
        });
      } else {
        for (int64_t v = 0; v < vectors_; ++v) {
          sample.template interpolate<kFull>(begin_of(v, channels_));
        }
      }
    }
  }

 private:
  XLA_OPS_ALWAYS_INLINE const T* pixel(int q, int64_t at) const {
    const int64_t number = samples_.pixel[q][at];
    return number < 0 ? zeros_ : x_ + number * pixel_channels_;
  }

  XLA_OPS_ALWAYS_INLINE Sample<T, A> next_sample() {
    Sample<T, A> sample;
#pragma GCC unroll 4
    for (int q = 0; q < 4; ++q) {
      sample.corner[q] = pixel(q, at_);
      sample.weight[q] = samples_.weight[q][at_];
    }
    sample.out = out_;
    --left_;
    ++at_;
    out_ += channels_;
    if (++tap_ == taps_) {
      tap_ = 0;
      at_ += skipped_taps_;
      out_ += kTileStride - taps_ * channels_;
    }
    return sample;
  }

  const T *x_, *zeros_;
  int64_t pixel_channels_;
  const Samples<A>& samples_;
  int64_t channels_, vectors_;
  int64_t taps_, skipped_taps_;
  int64_t left_;
  int64_t at_, soon_;  // among the samples: the next one, and how far ahead to fetch
  int64_t tap_ = 0;
  A* out_;
};

template <typename T>
void convolve_tile(const DeformConvOperands& op, const DeformConvForwardPlan& plan,
                   const void* packed, int64_t image, int64_t tile, void* y, void* scratch) {
  using A = Arithmetic<T>;
  const DeformConvGeometry& g = op.geometry;
  const int64_t first = tile * plan.rows;
  const int64_t left = g.positions() - first;
  const int64_t rows = left < plan.rows ? left : plan.rows;
  const int64_t outputs = g.group_outputs(), padded = padded_outputs<A>(g);
  ForwardScratch<T, A> s(g, plan.rows, scratch);
  const Tile positions(g, first, rows);
  const T* x = static_cast<const T*>(op.x) + image * g.H * g.W * g.C;
  T* out = static_cast<T*>(y) + image * g.positions() * g.K;

  int64_t sampled_group = -1;
  Pixels<T> pixels{x, g.C};
  const auto sample = [&](const Step& step, int64_t r, A* columns) {
    if (step.offset_group != sampled_group) {
      s.samples.find(op, image, positions, step.offset_group, 0, g.taps());
      sampled_group = step.offset_group;
      if (copies_patches<T>(g)) pixels = copy_patch(g, s.samples, x, sampled_group, s.patch);
    }
    const int64_t some = rows - r < plan.rows_together ? rows - r : plan.rows_together;
    return Sampling<T, A>(op, pixels, s.samples, r, some, rows - r - some, step, columns);
  };

  Steps<A> steps(g);
  sample(*steps, 0, s.columns[0]).finish();
  for (int64_t r = 0, turn = 0; !steps.done(); ++turn) {
    const Step step = *steps;
    const A* columns = s.columns[turn % 2];
    const A* b = static_cast<const A*>(packed) + step.packed;
    const int64_t some = rows - r < plan.rows_together ? rows - r : plan.rows_together;
    const ProductSize size{some, step.depth(), padded};
    const Sums<A> sums{s.sums + r * padded, padded, !step.first_of_group};
    // The next columns are filled in beside this product.
    r += some;
    if (r == rows) {
      r = 0;
      steps.advance();
    }
    if (steps.done()) {
      multiply_packed(size, columns, b, sums);
    } else {
      auto next = sample(*steps, r, s.columns[(turn + 1) % 2]);
      multiply_packed(size, columns, b, sums, &next);
      next.finish();
    }
    if (r > 0 || !step.last_of_group) continue;
    for (int64_t i = 0; i < rows; ++i) {
      const A* from = s.sums + i * padded;
      T* to = out + positions.position[i] * g.K + step.group * outputs;
      for_each_vector<kLanes<A>>(0, outputs, [&](auto w, int64_t k) {
        constexpr int L = decltype(w)::value;
        store<L>(to + k, load<L>(from + k));
      });
    }
  }
}

template <typename T>
DeformConvForwardPlan plan_any(const DeformConvGeometry& g) {
  return has_small_groups(g) ? plan_groups<T>(g) : plan_forward<T>(g);
}

template <typename T>
void pack_any(const DeformConvOperands& op, const DeformConvForwardPlan& plan, int64_t copy,
              int64_t part, void* packed) {
  (has_small_groups(op.geometry) ? pack_groups<T> : pack_kernel<T>)(op, plan, copy, part, packed);
}

template <typename T>
void convolve_any(const DeformConvOperands& op, const DeformConvForwardPlan& plan,
                  const void* packed, int64_t image, int64_t tile, void* y, void* scratch) {
  const auto convolve = has_small_groups(op.geometry) ? convolve_groups<T> : convolve_tile<T>;
  convolve(op, plan, packed, image, tile, y, scratch);
}

template <typename T>
constexpr DeformConvForwardKernels kKernels = {plan_any<T>, pack_any<T>, convolve_any<T>};

}  // namespace
}  // namespace XLA_OPS_ISA

XLA_OPS_EXPORT(DeformConvForwardKernels, deform_conv_forward_kernels, kKernels<float>,
               kKernels<double>, kKernels<Bf16>, kKernels<F16>);

}  // namespace xla_ops
