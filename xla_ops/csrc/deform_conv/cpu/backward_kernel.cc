// Backward kernel of deform_conv2d. A block of input channels of one image is owned by
// one chunk of work: it alone adds to its slice of dx and dkernel, position after
// position, so the bits do not depend on threads. Per tile of positions the gradient of
// the columns is a small product; one pass over the samples then yields the columns for
// dkernel, four dot products for doffset and dmask, and the scatter into dx.
#include "deform_conv/cpu/kernels.h"
#include "deform_conv/cpu/samples.h"
#include "simd/dispatch.h"
#include "simd/gemm.h"

namespace xla_ops {
namespace XLA_OPS_ISA {
namespace {

template <typename T>
constexpr bool kAddsInPlace = sizeof(T) == sizeof(Arithmetic<T>);

int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }

// Part of a block that lies in one convolution group, and its cut into runs of taps
// whose weights and weight gradients stay in cache.
template <typename A>
struct Segment {
  int64_t group;
  int64_t c0, channels;
  int64_t outputs, padded;  // of the group; padded to whole vectors
  int64_t run;              // taps handled together

  Segment(const DeformConvGeometry& g, int64_t begin, int64_t end) {
    group = begin / g.group_channels();
    c0 = begin;
    channels = min(end, (group + 1) * g.group_channels()) - begin;
    outputs = g.group_outputs();
    padded = round_up(outputs, kLanes<A>);
    const int64_t cached =
        kRunWeightsBytes / (channels * padded * static_cast<int64_t>(sizeof(A)));
    run = min(kMaxDepth / channels, cached > 1 ? cached : 1);
    run = ceil_div(g.taps(), ceil_div(g.taps(), run));
  }
};

// g's columns are kept in slabs of equal width that fit a tile.
template <typename A>
int64_t slab_width(int64_t padded) {
  return round_up(ceil_div(padded, ceil_div(padded, kMaxDepth)), 2 * kLanes<A>);
}

template <typename T, typename A>
struct BackwardScratch {
  char* samples;  // of Samples::bytes()
  A* weights;     // packed kernel^T of a run: [outputs][run, channel]
  A* g;           // [slab][kBackwardRows][kTileStride]
  A* dcolumns;    // [kBackwardRows][kTileStride]: [run, channel]
  A* columns;     // the same
  A* dkernel;     // [run, channel][padded outputs]
  A* outside;     // takes what would be added to pixels outside the map
  A* dx;          // [H*W][block channels], where dx is not added to in place
  size_t bytes;

  BackwardScratch(const DeformConvGeometry& geometry, int64_t block_channels, void* scratch) {
    // No run of any segment of a block is larger than these.
    const int64_t padded = round_up(geometry.group_outputs(), kLanes<A>);
    const int64_t slabs = ceil_div(padded, slab_width<A>(padded));
    uintptr_t p = reinterpret_cast<uintptr_t>(scratch);
    const uintptr_t begin = p;
    auto take = [&p](int64_t count, size_t size) {
      char* here = reinterpret_cast<char*>(p);
      p += round_up(count * size, 64);
      return here;
    };
    samples = take(Samples<A>::bytes(kBackwardRows * min(kMaxDepth, geometry.taps())), 1);
    weights = reinterpret_cast<A*>(take(padded * kTileStride, sizeof(A)));
    g = reinterpret_cast<A*>(take(slabs * kBackwardRows * kTileStride, sizeof(A)));
    dcolumns = reinterpret_cast<A*>(take(kBackwardRows * kTileStride, sizeof(A)));
    columns = reinterpret_cast<A*>(take(kBackwardRows * kTileStride, sizeof(A)));
    dkernel = reinterpret_cast<A*>(take(kMaxDepth * padded, sizeof(A)));
    outside = reinterpret_cast<A*>(take(block_channels, sizeof(A)));
    dx = reinterpret_cast<A*>(
        take(kAddsInPlace<T> ? 0 : geometry.H * geometry.W * block_channels, sizeof(A)));
    bytes = p - begin;
  }
};

template <typename T>
DeformConvBackwardPlan plan_backward(const DeformConvGeometry& g) {
  using A = Arithmetic<T>;
  DeformConvBackwardPlan plan;
  const int64_t channels = g.offset_group_channels();
  int64_t block = kWideBlock;
  auto chunks = [&] { return g.N * g.G * ceil_div(channels, block); };
  while (block > kNarrowBlock && chunks() < kManyChunks) block /= 2;
  while (block > kNarrowestBlock && chunks() < kFewChunks) block /= 2;
  plan.blocks_per_offset_group = ceil_div(channels, block);
  plan.block_channels =
      min(channels, round_up(ceil_div(channels, plan.blocks_per_offset_group), kLanes<A>));
  plan.blocks_per_offset_group = ceil_div(channels, plan.block_channels);
  plan.blocks = g.G * plan.blocks_per_offset_group;
  plan.image_slot_bytes = g.positions() * g.G * g.taps() * (g.modulated ? 3 : 2) * sizeof(A);
  plan.worker_bytes = BackwardScratch<T, A>(g, plan.block_channels, nullptr).bytes;
  return plan;
}

// Packs kernel^T of the taps [t0, t1): slab after slab of rows (outputs), each as
// multiply_packed() reads it, with columns [tap, channel] filled up with zeros.
template <typename T, typename A>
void pack_transposed(const DeformConvOperands& op, const Segment<A>& segment, int64_t image,
                     int64_t t0, int64_t t1, A* packed) {
  const DeformConvGeometry& g = op.geometry;
  const int64_t row = g.K, tap = g.group_channels() * row;
  const T* kernel =
      static_cast<const T*>(op.kernel) + (g.kernels == 1 ? 0 : image) * g.taps() * tap +
      (segment.c0 - segment.group * g.group_channels()) * row + segment.group * segment.outputs;
  const int64_t real = (t1 - t0) * segment.channels, cols = round_up(real, kLanes<A>);
  const int64_t slab = slab_width<A>(segment.padded);
  for (int64_t o0 = 0; o0 < segment.outputs; o0 += slab) {
    const int64_t depth = min(slab, segment.outputs - o0);
    for (int64_t j = 0; j < cols;) {
      const int64_t width = panel_width<A>(j, cols);
      for (int64_t b0 = 0; b0 < depth; b0 += kTransposedOutputs) {
        const int64_t b1 = min(b0 + kTransposedOutputs, depth);
        for (int64_t i = 0; i < width; ++i) {
          const int64_t k = j + i;
          if (k < real) {
            const T* from =
                kernel + (t0 + k / segment.channels) * tap + k % segment.channels * row + o0;
            for (int64_t o = b0; o < b1; ++o) packed[o * width + i] = load<1>(from + o);
          } else {
            for (int64_t o = b0; o < b1; ++o) packed[o * width + i] = A(0);
          }
        }
      }
      packed += depth * width;
      j += width;
    }
  }
}

// Copies g of the tile's positions into slabs, filled up with zeros.
template <typename T, typename A>
void copy_gradient(const T* g, int64_t row, const Tile& tile, const Segment<A>& segment, A* out) {
  const int64_t slab = slab_width<A>(segment.padded);
  for (int64_t o0 = 0; o0 < segment.padded; o0 += slab, out += kBackwardRows * kTileStride) {
    const int64_t width = min(slab, segment.padded - o0);
    const int64_t real = min(width, segment.outputs - o0);
    for (int64_t r = 0; r < tile.rows; ++r) {
      A* to = out + r * kTileStride;
      const T* from = g + tile.position[r] * row + o0;
      for_each_vector<kLanes<A>>(0, real, [&](auto w, int64_t i) {
        constexpr int L = decltype(w)::value;
        store<L>(to + i, load<L>(from + i));
      });
      for (int64_t i = real; i < width; ++i) to[i] = A(0);
    }
  }
}

// Reads the four corners x of a sample and the gradient of its columns: writes the
// columns, adds to dx, and returns the dot products of the gradient with each corner.
template <typename T, typename A>
XLA_OPS_ALWAYS_INLINE void visit_sample(int64_t channels, const T* const x[4], A* const dx[4],
                                        const A weight[4], const A* dcolumn, A* column, A dot[4]) {
  constexpr int kFull = kLanes<A>;
  const T *x0 = x[0], *x1 = x[1], *x2 = x[2], *x3 = x[3];
  A *dx0 = dx[0], *dx1 = dx[1], *dx2 = dx[2], *dx3 = dx[3];
  const A w0 = weight[0], w1 = weight[1], w2 = weight[2], w3 = weight[3];
  Vec<A, kFull> s0{}, s1{}, s2{}, s3{};
  dot[0] = dot[1] = dot[2] = dot[3] = A(0);
  for_each_vector<kFull>(0, channels, [&](auto w, int64_t c) {
    constexpr int L = decltype(w)::value;
    const Vec<A, L> v0 = load<L>(x0 + c), v1 = load<L>(x1 + c);
    const Vec<A, L> v2 = load<L>(x2 + c), v3 = load<L>(x3 + c);
    const Vec<A, L> d = load<L>(dcolumn + c);
    store<L>(column + c, w0 * v0 + w1 * v1 + w2 * v2 + w3 * v3);
    if constexpr (L == kFull) {
      s0 += d * v0;
      s1 += d * v1;
      s2 += d * v2;
      s3 += d * v3;
    } else {
      add_lanes_of_4<A, L>(dot, d * v0, d * v1, d * v2, d * v3);
    }
    // Corners of one sample are different pixels, except outside the map.
    store<L>(dx0 + c, load<L>(dx0 + c) + w0 * d);
    store<L>(dx1 + c, load<L>(dx1 + c) + w1 * d);
    store<L>(dx2 + c, load<L>(dx2 + c) + w2 * d);
    store<L>(dx3 + c, load<L>(dx3 + c) + w3 * d);
  });
  add_lanes_of_4<A, kFull>(dot, s0, s1, s2, s3);
}

// Where the shares of doffset and dmask of position 0, tap 0 go, and the strides.
template <typename A>
struct OffsetShares {
  A* doffset;
  A* dmask;  // nullptr where not modulated
  int64_t offset_tap, mask_tap, position_taps;
  bool add;  // to what a former segment of this block wrote
};

template <typename A>
OffsetShares<A> offset_shares(const DeformConvOperands& op, const DeformConvBackwardPlan& plan,
                              const DeformConvGradients& grad, int64_t image, int64_t place,
                              int64_t offset_group, int64_t slot) {
  const DeformConvGeometry& g = op.geometry;
  OffsetShares<A> out;
  out.position_taps = g.G * g.taps();
  out.add = false;
  const int64_t group = offset_group * g.taps();
  if (slot == 0) {
    const int64_t at = image * g.positions() * out.position_taps + group;
    out.doffset = static_cast<A*>(grad.doffset) + at * 2;
    out.dmask = g.modulated ? static_cast<A*>(grad.dmask) + at : nullptr;
    out.offset_tap = 2;
    out.mask_tap = 1;
  } else {
    const int64_t slots = plan.blocks_per_offset_group - 1;
    const int64_t width = g.modulated ? 3 : 2;
    char* begin =
        static_cast<char*>(grad.partial) + (place * slots + slot - 1) * plan.image_slot_bytes;
    out.doffset = reinterpret_cast<A*>(begin) + group * width;
    out.dmask = g.modulated ? out.doffset + 2 : nullptr;
    out.offset_tap = out.mask_tap = width;
  }
  return out;
}

template <typename A>
XLA_OPS_ALWAYS_INLINE void write_shares(const OffsetShares<A>& out, int64_t at, A ly, A lx, A mask,
                                        const A dot[4]) {
  A* doffset = out.doffset + at * out.offset_tap;
  const A dy = mask * derivative_y(lx, dot);
  const A dx = mask * derivative_x(ly, dot);
  doffset[0] = out.add ? doffset[0] + dy : dy;
  doffset[1] = out.add ? doffset[1] + dx : dx;
  if (out.dmask) {
    A* dmask = out.dmask + at * out.mask_tap;
    const A dm = (A(1) - ly) * ((A(1) - lx) * dot[0] + lx * dot[1]) +
                 ly * ((A(1) - lx) * dot[2] + lx * dot[3]);
    *dmask = out.add ? *dmask + dm : dm;
  }
}

// The channels [c_begin, c_end) of one image, and where their gradients go.
template <typename T, typename A>
struct Block {
  int64_t image, offset_group;
  int64_t c_begin, c_end;
  const T* x;  // of the image
  const T* g;  // of the image
  A* dx;       // dx[pixel * dx_row + c - c_begin]
  int64_t dx_row;
  bool prefetches;
  OffsetShares<A> shares;

  int64_t channels() const { return c_end - c_begin; }
};

// Fetches all cache lines that hold a byte of [p, p + bytes).
XLA_OPS_ALWAYS_INLINE void fetch(const char* p, int64_t bytes) {
  for (int64_t b = 0; b < bytes; b += 64) __builtin_prefetch(p + b);
  __builtin_prefetch(p + bytes - 1);
}

// Visits the samples of the taps [t0, t1) of the tile's positions.
template <typename T, typename A>
void visit_samples(const DeformConvOperands& op, const BackwardScratch<T, A>& s,
                   const Block<T, A>& block, const Segment<A>& segment, const Tile& tile,
                   int64_t t0, int64_t t1) {
  const DeformConvGeometry& g = op.geometry;
  const T* x = block.x + segment.c0;
  const T* zeros = static_cast<const T*>(op.zeros);
  A* dx = block.dx + segment.c0 - block.c_begin;
  const int64_t x_bytes = segment.channels * sizeof(T), dx_bytes = segment.channels * sizeof(A);
  const int64_t count = tile.rows * (t1 - t0);
  Samples<A> samples(s.samples, count);
  samples.find(op, block.image, tile, block.offset_group, t0, t1);
  int64_t i = 0;
  for (int64_t r = 0; r < tile.rows; ++r) {
    for (int64_t t = t0; t < t1; ++t, ++i) {
      const T* corner_x[4];
      A* corner_dx[4];
      A weight[4], dot[4];
      for (int q = 0; q < 4; ++q) {
        const int64_t pixel = samples.pixel[q][i];
        corner_x[q] = pixel < 0 ? zeros : x + pixel * g.C;
        corner_dx[q] = pixel < 0 ? s.outside : dx + pixel * block.dx_row;
        weight[q] = samples.weight[q][i];
      }
      for (int q = 0; block.prefetches && i + kAhead < count && q < 4; ++q) {
        const int64_t pixel = samples.pixel[q][i + kAhead];
        if (pixel < 0) continue;
        const char* next_x = reinterpret_cast<const char*>(x + pixel * g.C);
        const char* next_dx = reinterpret_cast<const char*>(dx + pixel * block.dx_row);
        fetch(next_x, x_bytes);
        fetch(next_dx, dx_bytes);
      }
      const int64_t at = r * kTileStride + (t - t0) * segment.channels;
      visit_sample<T, A>(segment.channels, corner_x, corner_dx, weight, s.dcolumns + at,
                         s.columns + at, dot);
      write_shares<A>(block.shares, tile.position[r] * block.shares.position_taps + t,
                      samples.ly[i], samples.lx[i], samples.mask[i], dot);
    }
  }
}

// All gradients that the taps [t0, t1) of a segment contribute.
template <typename T, typename A>
void backward_run(const DeformConvOperands& op, const DeformConvGradients& grad,
                  const BackwardScratch<T, A>& s, const Block<T, A>& block,
                  const Segment<A>& segment, int64_t t0, int64_t t1) {
  const DeformConvGeometry& g = op.geometry;
  const int64_t depth = (t1 - t0) * segment.channels;
  const int64_t cols = round_up(depth, kLanes<A>);
  const int64_t slab = slab_width<A>(segment.padded);
  const auto g_slab = [&](int64_t o0) -> const A* {
    return s.g + o0 / slab * kBackwardRows * kTileStride;
  };
  pack_transposed<T, A>(op, segment, block.image, t0, t1, s.weights);
  std::memset(s.dkernel, 0, depth * segment.padded * sizeof(A));

  for (int64_t first = 0; first < g.positions(); first += kBackwardRows) {
    const int64_t rows = min(kBackwardRows, g.positions() - first);
    const Tile tile(g, first, rows);
    copy_gradient<T, A>(block.g + segment.group * segment.outputs, g.K, tile, segment, s.g);
    for (int64_t o0 = 0; o0 < segment.outputs; o0 += slab) {
      const ProductSize size{rows, min(slab, segment.outputs - o0), cols};
      multiply_packed(size, g_slab(o0), s.weights + o0 * cols,
                      Sums<A>{s.dcolumns, kTileStride, o0 > 0});
    }
    visit_samples<T, A>(op, s, block, segment, tile, t0, t1);
    for (int64_t o0 = 0; o0 < segment.padded; o0 += slab) {
      const ProductSize size{depth, rows, min(slab, segment.padded - o0)};
      multiply_transposed(size, s.columns, g_slab(o0),
                          Sums<A>{s.dkernel + o0, segment.padded, true});
    }
  }

  A* dkernel = static_cast<A*>(grad.dkernel) + block.image * g.taps() * g.group_channels() * g.K +
               segment.group * segment.outputs;
  for (int64_t k = 0; k < depth; ++k) {
    const int64_t t = t0 + k / segment.channels;
    const int64_t c = (segment.c0 + k % segment.channels) % g.group_channels();
    std::memcpy(dkernel + (t * g.group_channels() + c) * g.K, s.dkernel + k * segment.padded,
                segment.outputs * sizeof(A));
  }
}

template <typename T>
void visit_block(const DeformConvOperands& op, const DeformConvBackwardPlan& plan,
                 const DeformConvGradients& grad, int64_t image, int64_t place, int64_t number,
                 void* scratch) {
  using A = Arithmetic<T>;
  const DeformConvGeometry& g = op.geometry;
  const BackwardScratch<T, A> s(g, plan.block_channels, scratch);
  const int64_t slot = number % plan.blocks_per_offset_group;
  const int64_t pixels = g.H * g.W;

  Block<T, A> block;
  block.image = image;
  block.offset_group = number / plan.blocks_per_offset_group;
  const int64_t group_begin = block.offset_group * g.offset_group_channels();
  block.c_begin = group_begin + slot * plan.block_channels;
  block.c_end = min(block.c_begin + plan.block_channels, group_begin + g.offset_group_channels());
  block.x = static_cast<const T*>(op.x) + image * pixels * g.C;
  block.g = static_cast<const T*>(grad.g) + image * g.positions() * g.K;
  T* dx = static_cast<T*>(grad.dx) + image * pixels * g.C + block.c_begin;
  block.dx = kAddsInPlace<T> ? reinterpret_cast<A*>(dx) : s.dx;
  block.dx_row = kAddsInPlace<T> ? g.C : plan.block_channels;
  block.prefetches = pixels * g.C * static_cast<int64_t>(sizeof(A)) > kNearMapBytes;
  block.shares = offset_shares<A>(op, plan, grad, image, place, block.offset_group, slot);

  for (int64_t p = 0; p < pixels; ++p) {
    std::memset(block.dx + p * block.dx_row, 0, block.channels() * sizeof(A));
  }
  std::memset(s.outside, 0, plan.block_channels * sizeof(A));
  for (int64_t c0 = block.c_begin; c0 < block.c_end;) {
    const Segment<A> segment(g, c0, block.c_end);
    for (int64_t t0 = 0; t0 < g.taps(); t0 += segment.run) {
      backward_run<T, A>(op, grad, s, block, segment, t0, min(t0 + segment.run, g.taps()));
    }
    block.shares.add = true;
    c0 += segment.channels;
  }

  if constexpr (!kAddsInPlace<T>) {
    for (int64_t p = 0; p < pixels; ++p) {
      const A* from = block.dx + p * block.dx_row;
      T* to = dx + p * g.C;
      for_each_vector<kLanes<A>>(0, block.channels(), [&](auto w, int64_t i) {
        constexpr int L = decltype(w)::value;
        store<L>(to + i, load<L>(from + i));
      });
    }
  }
}

template <typename T>
void add_partial_sums(const DeformConvOperands& op, const DeformConvBackwardPlan& plan,
                      const DeformConvGradients& grad, int64_t image, int64_t place,
                      int64_t first_position, int64_t last_position) {
  using A = Arithmetic<T>;
  const int64_t taps = op.geometry.G * op.geometry.taps();
  const OffsetShares<A> to = offset_shares<A>(op, plan, grad, image, place, 0, 0);
  for (int64_t slot = 1; slot < plan.blocks_per_offset_group; ++slot) {
    const OffsetShares<A> from = offset_shares<A>(op, plan, grad, image, place, 0, slot);
    for (int64_t at = first_position * taps; at < last_position * taps; ++at) {
      to.doffset[2 * at] += from.doffset[at * from.offset_tap];
      to.doffset[2 * at + 1] += from.doffset[at * from.offset_tap + 1];
      if (to.dmask) to.dmask[at] += from.dmask[at * from.mask_tap];
    }
  }
}

template <typename T>
constexpr DeformConvBackwardKernels kKernels = {plan_backward<T>, visit_block<T>,
                                                add_partial_sums<T>};

}  // namespace
}  // namespace XLA_OPS_ISA

XLA_OPS_EXPORT(DeformConvBackwardKernels, deform_conv_backward_kernels, kKernels<float>,
               kKernels<double>, kKernels<Bf16>, kKernels<F16>);

}  // namespace xla_ops
