// The backward kernel of deform_conv2d where the groups are large enough for matrix products of
// their own: the gradient of a tile's columns is one, and so is what the tile adds to dkernel.
#ifndef XLA_OPS_DEFORM_CONV_CPU_BACKWARD_DENSE_H_
#define XLA_OPS_DEFORM_CONV_CPU_BACKWARD_DENSE_H_

#include "deform_conv/cpu/backward_block.h"
#include "deform_conv/cpu/scratch.h"
#include "simd/gemm.h"

namespace xla_ops {
namespace XLA_OPS_ISA {

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

template <typename A>
struct DenseScratch {
  A* weights;   // packed kernel^T of a run: [outputs][run, channel]
  A* g;         // [slab][kBackwardRows][kTileStride]
  A* dcolumns;  // [kBackwardRows][kTileStride]: [run, channel]
  A* columns;   // the same
  A* dkernel;   // [run, channel][padded outputs]

  // No run of any segment of a block is larger than these.
  DenseScratch(const DeformConvGeometry& geometry, ScratchPieces& scratch) {
    const int64_t padded = round_up(geometry.group_outputs(), kLanes<A>);
    const int64_t slabs = ceil_div(padded, slab_width<A>(padded));
    weights = scratch.take<A>(padded * kTileStride);
    g = scratch.take<A>(slabs * kBackwardRows * kTileStride);
    dcolumns = scratch.take<A>(kBackwardRows * kTileStride);
    columns = scratch.take<A>(kBackwardRows * kTileStride);
    dkernel = scratch.take<A>(kMaxDepth * padded);
  }

  // Samples of a tile in a run, at most.
  static int64_t samples(const DeformConvGeometry& g) {
    return kBackwardRows * min(kMaxDepth, g.taps());
  }
};

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

// All gradients that the taps [t0, t1) of a segment contribute.
template <typename T, typename A>
void backward_run(const DeformConvOperands& op, const DeformConvGradients& grad,
                  const DenseScratch<A>& s, const Block<T, A>& block, const Segment<A>& segment,
                  int64_t t0, int64_t t1) {
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
    visit_samples<T, A>(op, block, {s.columns, s.dcolumns, kTileStride, segment.channels},
                        segment.c0 - block.c_begin, segment.channels, tile, t0, t1);
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

// All gradients that a block contributes, segment after segment.
template <typename T, typename A>
void backward_dense(const DeformConvOperands& op, const DeformConvGradients& grad,
                    const DenseScratch<A>& s, Block<T, A>& block) {
  const int64_t taps = op.geometry.taps();
  for (int64_t c0 = block.c_begin; c0 < block.c_end;) {
    const Segment<A> segment(op.geometry, c0, block.c_end);
    for (int64_t t0 = 0; t0 < taps; t0 += segment.run) {
      backward_run<T, A>(op, grad, s, block, segment, t0, min(t0 + segment.run, taps));
    }
    block.shares.add = true;
    c0 += segment.channels;
  }
}

}  // namespace XLA_OPS_ISA
}  // namespace xla_ops

#endif  // XLA_OPS_DEFORM_CONV_CPU_BACKWARD_DENSE_H_
