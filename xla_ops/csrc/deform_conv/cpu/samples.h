// Where the taps of a tile of output positions sample, for the kernels of deform_conv2d.
#ifndef XLA_OPS_DEFORM_CONV_CPU_SAMPLES_H_
#define XLA_OPS_DEFORM_CONV_CPU_SAMPLES_H_

#include "deform_conv/bilinear.h"
#include "deform_conv/cpu/kernels.h"
#include "deform_conv/cpu/scratch.h"
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

  // The pixels that are read lie in these rows and columns: first, and behind the last.
  int64_t top = 0, bottom = 0, left = 0, right = 0;

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
  // Vectors may run over the end: the arrays are that long. There nothing is read.
  constexpr int L = kLanes<A>;
  for (int64_t i = count; i < round_up(count, L); ++i) y[i] = x[i] = A(-2);
  using Lane = std::conditional_t<sizeof(A) == 4, int32_t, int64_t>;
  using Index = Vec<Lane, L>;
  using Real = Vec<A, L>;
  const Index height = Index{} + static_cast<Lane>(g.H), width = Index{} + static_cast<Lane>(g.W);
  Real low_y = Real{} + static_cast<A>(g.H), low_x = Real{} + static_cast<A>(g.W);
  Real high_y = Real{} - 1, high_x = high_y;
  for (int64_t i = 0; i < count; i += L) {
    const Real at_y = load<L>(y + i), at_x = load<L>(x + i);
    const auto c = zero_padded_corners<A, Index, Real>(at_y, at_x, height, width);
    const auto reads = (c.pixel[0] & c.pixel[1] & c.pixel[2] & c.pixel[3]) >= 0;
    low_y = reads & (at_y < low_y) ? at_y : low_y;
    low_x = reads & (at_x < low_x) ? at_x : low_x;
    high_y = reads & (at_y > high_y) ? at_y : high_y;
    high_x = reads & (at_x > high_x) ? at_x : high_x;
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
  top = left = INT32_MAX;
  bottom = right = 0;
  for (int l = 0; l < L; ++l) {
    // Samples begin at -1.
    top = min(top, max(static_cast<int64_t>(low_y[l]), 0));
    left = min(left, max(static_cast<int64_t>(low_x[l]), 0));
    bottom = max(bottom, min(static_cast<int64_t>(high_y[l]) + 2, g.H));
    right = max(right, min(static_cast<int64_t>(high_x[l]) + 2, g.W));
  }
}

// A sample of as many channels as are asked for.
template <typename T, typename A>
struct Sample {
  const T* corner[4];
  A weight[4];
  A* out;

  template <int L>
  XLA_OPS_ALWAYS_INLINE void interpolate(int64_t c) const {
    store<L>(out + c, weight[0] * load<L>(corner[0] + c) + weight[1] * load<L>(corner[1] + c) +
                          weight[2] * load<L>(corner[2] + c) + weight[3] * load<L>(corner[3] + c));
  }
};

}  // namespace XLA_OPS_ISA
}  // namespace xla_ops

#endif  // XLA_OPS_DEFORM_CONV_CPU_SAMPLES_H_
