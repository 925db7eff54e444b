// A block of input channels of one image in the backward kernel of deform_conv2d: one pass over
// the samples of a tile of positions yields the columns for dkernel, four dot products for
// doffset and dmask, and the scatter into dx.
#ifndef XLA_OPS_DEFORM_CONV_CPU_BACKWARD_BLOCK_H_
#define XLA_OPS_DEFORM_CONV_CPU_BACKWARD_BLOCK_H_

#include "deform_conv/cpu/kernels.h"
#include "deform_conv/cpu/samples.h"
#include "deform_conv/cpu/scratch.h"

namespace xla_ops {
namespace XLA_OPS_ISA {

template <typename T>
constexpr bool kAddsInPlace = sizeof(T) == sizeof(Arithmetic<T>);

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

// Where a block's channels of x lie, and where their gradients are added up.
template <typename X, typename A>
struct Maps {
  const X* x;
  A* dx;
  int64_t x_row, dx_row;  // from pixel to pixel
  const X* zeros;         // read in place of a pixel outside the map
  A* outside;             // takes what would be added to it
};

// The channels [c_begin, c_end) of one image.
template <typename T, typename A>
struct Block {
  int64_t image, offset_group;
  int64_t c_begin, c_end;
  const T* g;           // of the image
  bool is_copied;       // which maps count
  Maps<T, A> in_place;  // x is the operand
  Maps<A, A> copied;    // the block's channels lie together
  bool prefetches;
  char* samples;  // scratch of Samples::bytes()
  OffsetShares<A> shares;

  int64_t channels() const { return c_end - c_begin; }
};

// Fetches cache lines from p on.
XLA_OPS_ALWAYS_INLINE void fetch(const char* p, int64_t bytes) {
  for (int64_t b = 0; b < bytes; b += 64) __builtin_prefetch(p + b);
}

// Columns of a tile and their gradients, [position][tap][channel] with these strides. They may
// be the same: a column is written after its gradient was read.
template <typename A>
struct Columns {
  A* columns;
  const A* dcolumns;
  int64_t row, tap;
};

// Visits the samples of the taps [t0, t1) of the tile's positions, in the channels from c0 of the
// block on.
template <typename T, typename X, typename A>
void visit_samples_in(const Maps<X, A>& maps, const DeformConvOperands& op,
                      const Block<T, A>& block, const Columns<A>& columns, int64_t c0,
                      int64_t channels, const Tile& tile, int64_t t0, int64_t t1) {
  const X *x = maps.x + c0, *zeros = maps.zeros;
  A *dx = maps.dx + c0, *outside = maps.outside;
  const int64_t x_row = maps.x_row, dx_row = maps.dx_row;
  const int64_t x_bytes = channels * sizeof(X), dx_bytes = channels * sizeof(A);
  const int64_t count = tile.rows * (t1 - t0);
  const int64_t fetched = block.prefetches ? count - kAhead : 0;
  Samples<A> samples(block.samples, count);
  samples.find(op, block.image, tile, block.offset_group, t0, t1);
  int64_t i = 0;
  for (int64_t r = 0; r < tile.rows; ++r) {
    for (int64_t t = t0; t < t1; ++t, ++i) {
      const X* corner_x[4];
      A* corner_dx[4];
      A weight[4], dot[4];
      for (int q = 0; q < 4; ++q) {
        const int64_t pixel = samples.pixel[q][i];
        corner_x[q] = pixel < 0 ? zeros : x + pixel * x_row;
        corner_dx[q] = pixel < 0 ? outside : dx + pixel * dx_row;
        weight[q] = samples.weight[q][i];
      }
      // The right corners are mostly left ones of other samples.
      for (int q = 0; i < fetched && q < 4; q += 2) {
        const int64_t pixel = samples.pixel[q][i + kAhead];
        if (pixel < 0) continue;
        fetch(reinterpret_cast<const char*>(x + pixel * x_row), x_bytes);
        fetch(reinterpret_cast<const char*>(dx + pixel * dx_row), dx_bytes);
      }
      const int64_t at = r * columns.row + (t - t0) * columns.tap;
      visit_sample<X, A>(channels, corner_x, corner_dx, weight, columns.dcolumns + at,
                         columns.columns + at, dot);
      write_shares<A>(block.shares, tile.position[r] * block.shares.position_taps + t,
                      samples.ly[i], samples.lx[i], samples.mask[i], dot);
    }
  }
}

template <typename T, typename A>
void visit_samples(const DeformConvOperands& op, const Block<T, A>& block,
                   const Columns<A>& columns, int64_t c0, int64_t channels, const Tile& tile,
                   int64_t t0, int64_t t1) {
  if (block.is_copied) {
    visit_samples_in(block.copied, op, block, columns, c0, channels, tile, t0, t1);
  } else {
    visit_samples_in(block.in_place, op, block, columns, c0, channels, tile, t0, t1);
  }
}

}  // namespace XLA_OPS_ISA
}  // namespace xla_ops

#endif  // XLA_OPS_DEFORM_CONV_CPU_BACKWARD_BLOCK_H_
