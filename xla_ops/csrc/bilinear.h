// Bilinear sampling of an H x W map: which pixels a point reads, with which
// weights. Shared by the CPU and the CUDA kernels.
//
// Corners are numbered 0: top left, 1: top right, 2: bottom left, 3: bottom
// right. The cell is chosen by floor, so derivatives are right-hand ones.

#ifndef XLA_OPS_BILINEAR_H_
#define XLA_OPS_BILINEAR_H_

#include <cstdint>

// Always inlined: the CPU kernels compile this header once per instruction set,
// and no out-of-line copy may be shared between them.
#if defined(__CUDACC__)
#define XLA_OPS_INLINE __host__ __device__ __forceinline__
#else
#define XLA_OPS_INLINE inline __attribute__((always_inline))
#endif

namespace xla_ops {

template <typename T>
struct Corners {
  int64_t pixel[4];  // y * W + x, or -1: outside the map, its value is 0.
  T weight[4];
  T ly, lx;  // Position inside the cell, in [0, 1).
};

// floor(v) for |v| < 2^62; the caller has checked the range.
template <typename T>
XLA_OPS_INLINE int64_t floor_index(T v) {
  const int64_t i = static_cast<int64_t>(v);
  return i - (v < static_cast<T>(i) ? 1 : 0);
}

template <typename T>
XLA_OPS_INLINE void set_weights(Corners<T>* c) {
  const T hy = T(1) - c->ly, hx = T(1) - c->lx;
  c->weight[0] = hy * hx;
  c->weight[1] = hy * c->lx;
  c->weight[2] = c->ly * hx;
  c->weight[3] = c->ly * c->lx;
}

// Corners of (y, x) on a map that is surrounded by zeros.
//
// A point with -1 <= y < H and -1 <= x < W reads those of its corners that lie
// on the map. At exactly -1 all weights of the map's pixels are 0, and the
// derivative is the right-hand one, as in torchvision. Any other point, infinite
// ones too, reads nothing and has zero weights. NaN gives NaN weights, no pixel.
template <typename T>
XLA_OPS_INLINE Corners<T> zero_padded_corners(T y, T x, int64_t H, int64_t W) {
  Corners<T> c;
  const bool inside = y >= T(-1) && y < static_cast<T>(H) && x >= T(-1) && x < static_cast<T>(W);
  if (!inside) {
    const bool is_nan = y != y || x != x;
    const T w = is_nan ? y + x : T(0);
    for (int q = 0; q < 4; ++q) {
      c.pixel[q] = -1;
      c.weight[q] = w;
    }
    c.ly = c.lx = w;
    return c;
  }
  const int64_t y0 = floor_index(y), x0 = floor_index(x);
  c.ly = y - static_cast<T>(y0);
  c.lx = x - static_cast<T>(x0);
  set_weights(&c);
  const bool top = y0 >= 0 && y0 < H, bottom = y0 + 1 < H;
  const bool left = x0 >= 0 && x0 < W, right = x0 + 1 < W;
  const int64_t p = y0 * W + x0;
  c.pixel[0] = top && left ? p : -1;
  c.pixel[1] = top && right ? p + 1 : -1;
  c.pixel[2] = bottom && left ? p + W : -1;
  c.pixel[3] = bottom && right ? p + W + 1 : -1;
  return c;
}

// Corners of (y, x) on a map whose border pixels are repeated, as RoIAlign reads
// it: a point with -1 <= y <= H and -1 <= x <= W is moved to the nearest point of
// [0, H-1] x [0, W-1]; any other point reads nothing. Where the point was moved,
// opposite corners are one pixel, so the derivative comes out as 0.
//
// The map may be the top left part of rows of `row` pixels.
template <typename T>
XLA_OPS_INLINE Corners<T> clamped_corners(T y, T x, int64_t H, int64_t W, int64_t row) {
  Corners<T> c;
  const bool inside = y >= T(-1) && y <= static_cast<T>(H) && x >= T(-1) &&
                      x <= static_cast<T>(W) && H > 0 && W > 0;
  if (!inside) {
    const bool is_nan = y != y || x != x;
    const T w = is_nan ? y + x : T(0);
    for (int q = 0; q < 4; ++q) {
      c.pixel[q] = -1;
      c.weight[q] = w;
    }
    c.ly = c.lx = w;
    return c;
  }
  int64_t y0 = floor_index(y), x0 = floor_index(x);
  c.ly = y - static_cast<T>(y0);
  c.lx = x - static_cast<T>(x0);
  int64_t y1 = y0 + 1, x1 = x0 + 1;
  if (y0 < 0 || y1 >= H) {
    y0 = y1 = y0 < 0 ? 0 : H - 1;
    c.ly = T(0);
  }
  if (x0 < 0 || x1 >= W) {
    x0 = x1 = x0 < 0 ? 0 : W - 1;
    c.lx = T(0);
  }
  set_weights(&c);
  c.pixel[0] = y0 * row + x0;
  c.pixel[1] = y0 * row + x1;
  c.pixel[2] = y1 * row + x0;
  c.pixel[3] = y1 * row + x1;
  return c;
}

// Derivatives of the sampled value with respect to y and x, from the values (or
// any linear function of the values) at the four corners.
template <typename T>
XLA_OPS_INLINE T derivative_y(const Corners<T>& c, const T v[4]) {
  return (T(1) - c.lx) * (v[2] - v[0]) + c.lx * (v[3] - v[1]);
}

template <typename T>
XLA_OPS_INLINE T derivative_x(const Corners<T>& c, const T v[4]) {
  return (T(1) - c.ly) * (v[1] - v[0]) + c.ly * (v[3] - v[2]);
}

}  // namespace xla_ops

#endif  // XLA_OPS_BILINEAR_H_
