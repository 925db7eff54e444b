// Where the taps of a tile of output positions sample, for the kernels of deform_conv2d.
#ifndef XLA_OPS_DEFORM_CONV_CPU_SAMPLES_H_
#define XLA_OPS_DEFORM_CONV_CPU_SAMPLES_H_

#include "deform_conv/bilinear.h"
#include "deform_conv/cpu/kernels.h"
#include "deform_conv/tuning.h"
#include "simd/gemm.h"

namespace xla_ops {
namespace XLA_OPS_ISA {

// Output positions of an image that are handled together. Tiles take them strip after
// strip of a few rows, each column after column.
struct Tile {
  int64_t rows;
  int64_t p[kMaxTileRows], q[kMaxTileRows];
  int64_t position[kMaxTileRows];  // p * Q + q

  // `rows` positions from place `first` of the order.
  Tile(const DeformConvGeometry& g, int64_t first, int64_t count) : rows(count) {
    const int64_t height = ceil_div(g.P, ceil_div(g.P, kStripRows));
    int64_t top = first / (height * g.Q) * height;
    int64_t bottom = top + height < g.P ? top + height : g.P;
    const int64_t inside = first - top * g.Q;
    int64_t row = top + inside % (bottom - top), column = inside / (bottom - top);
    for (int64_t r = 0; r < count; ++r) {
      p[r] = row;
      q[r] = column;
      position[r] = row * g.Q + column;
      if (++row < bottom) continue;
      row = top;
      if (++column < g.Q) continue;
      column = 0;
      row = top = bottom;
      bottom = top + height < g.P ? top + height : g.P;
    }
  }
};

// Corners of the samples (position, tap) of a tile: an array for each field, so that they
// are computed a vector at a time.
template <typename A>
class Samples {
 public:
  static int64_t bytes(int64_t count) { return kFields * array_bytes(count); }

  // In scratch of bytes(count), aligned to a cache line.
  Samples(void* scratch, int64_t count) {
    char* p = static_cast<char*>(scratch);
    const int64_t step = array_bytes(count);
    for (int q = 0; q < 4; ++q, p += step) pixel[q] = reinterpret_cast<int32_t*>(p);
    for (int q = 0; q < 4; ++q, p += step) weight[q] = reinterpret_cast<A*>(p);
    for (A** field : {&ly, &lx, &mask}) {
      *field = reinterpret_cast<A*>(p);
      p += step;
    }
  }

  int32_t* pixel[4];  // y * W + x, or -1: outside the map
  A* weight[4];       // modulation included
  A *ly, *lx;         // position inside the cell
  A* mask;            // 1 where not modulated

  // Fills in the taps [t0, t1) of the tile's positions, in this order.
  void find(const DeformConvOperands& op, int64_t image, const Tile& tile, int64_t offset_group,
            int64_t t0, int64_t t1);

 private:
  static constexpr int kFields = 11;
  static int64_t array_bytes(int64_t count) { return round_up(count * sizeof(A), 64); }
};

template <typename A>
void Samples<A>::find(const DeformConvOperands& op, int64_t image, const Tile& tile,
                      int64_t offset_group, int64_t t0, int64_t t1) {
  const DeformConvGeometry& g = op.geometry;
  // First the coordinates, in the place of ly and lx.
  A *y = ly, *x = lx;
  int64_t count = 0;
  for (int64_t r = 0; r < tile.rows; ++r) {
    const int64_t at =
        ((image * g.positions() + tile.position[r]) * g.G + offset_group) * g.taps();
    const A* offset = static_cast<const A*>(op.offset) + at * 2;
    const int64_t y0 = tile.p[r] * g.stride_h - g.pad_top;
    const int64_t x0 = tile.q[r] * g.stride_w - g.pad_left;
    int64_t i = t0 / g.S, j = t0 % g.S;
    for (int64_t t = t0; t < t1; ++t, ++count) {
      y[count] = static_cast<A>(y0 + i * g.dilation_h) + offset[2 * t];
      x[count] = static_cast<A>(x0 + j * g.dilation_w) + offset[2 * t + 1];
      if (++j == g.S) j = 0, ++i;
    }
    if (op.mask) {
      std::memcpy(mask + count - (t1 - t0), static_cast<const A*>(op.mask) + at + t0,
                  (t1 - t0) * sizeof(A));
    }
  }
  // Vectors may run over the end: the arrays are that long.
  constexpr int L = kLanes<A>;
  using Lane = std::conditional_t<sizeof(A) == 4, int32_t, int64_t>;
  using Index = Vec<Lane, L>;
  using Real = Vec<A, L>;
  const Index height = Index{} + static_cast<Lane>(g.H), width = Index{} + static_cast<Lane>(g.W);
  for (int64_t i = 0; i < count; i += L) {
    const auto c =
        zero_padded_corners<A, Index, Real>(load<L>(y + i), load<L>(x + i), height, width);
    const Real m = op.mask ? load<L>(mask + i) : Real{} + A(1);
    for (int q = 0; q < 4; ++q) {
      const auto pixels = convert<int32_t, L>(c.pixel[q]);
      std::memcpy(pixel[q] + i, &pixels, sizeof(pixels));
      store<L>(weight[q] + i, c.weight[q] * m);
    }
    store<L>(ly + i, c.ly);
    store<L>(lx + i, c.lx);
    store<L>(mask + i, m);
  }
}

}  // namespace XLA_OPS_ISA
}  // namespace xla_ops

#endif  // XLA_OPS_DEFORM_CONV_CPU_SAMPLES_H_
