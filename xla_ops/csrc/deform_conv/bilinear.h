// Bilinear sampling of an H x W map that is surrounded by zeros: which pixels a point
// reads, with which weights. Shared by the CPU and the CUDA kernels.
//
// Corners are numbered 0: top left, 1: top right, 2: bottom left, 3: bottom right. The
// cell is chosen by floor, so derivatives are right-hand ones.

#ifndef XLA_OPS_DEFORM_CONV_BILINEAR_H_
#define XLA_OPS_DEFORM_CONV_BILINEAR_H_

#include <cstdint>
#include <type_traits>

#include "inline.h"

namespace xla_ops {

// Real is float, double, or a vector of them; Index an integer, or a vector with as many
// lanes.
template <typename Real, typename Index>
struct Corners {
  Index pixel[4];  // y * W + x, or -1: outside the map, its value is 0
  Real weight[4];
  Real ly, lx;  // position inside the cell, in [0, 1)
};

template <typename To, typename From>
XLA_OPS_INLINE To convert_lanes(From v) {
  if constexpr (std::is_arithmetic_v<From>) {
    return static_cast<To>(v);
  } else {
    return __builtin_convertvector(v, To);
  }
}

// Corners of (y, x). T is the element type of Real; Index holds H * W.
//
// A point with -1 <= y < H and -1 <= x < W reads those of its corners that lie on the
// map. At exactly -1 all weights of the map's pixels are 0, and the derivative is the
// right-hand one, as in torchvision. Any other point, infinite ones too, reads nothing
// and has zero weights. NaN gives NaN weights, no pixel.
template <typename T, typename Index, typename Real>
XLA_OPS_INLINE Corners<Real, Index> zero_padded_corners(Real y, Real x, Index H, Index W) {
  Corners<Real, Index> c;
  const auto inside =
      (y >= T(-1)) & (y < convert_lanes<Real>(H)) & (x >= T(-1)) & (x < convert_lanes<Real>(W));
  const Real elsewhere = ((y != y) | (x != x)) ? y + x : Real{};
  y = inside ? y : Real{};
  x = inside ? x : Real{};
  Real y0 = convert_lanes<Real>(convert_lanes<Index>(y));
  Real x0 = convert_lanes<Real>(convert_lanes<Index>(x));
  y0 = y < y0 ? y0 - T(1) : y0;
  x0 = x < x0 ? x0 - T(1) : x0;
  c.ly = inside ? y - y0 : elsewhere;
  c.lx = inside ? x - x0 : elsewhere;
  const Real hy = T(1) - c.ly, hx = T(1) - c.lx;
  c.weight[0] = inside ? hy * hx : elsewhere;
  c.weight[1] = inside ? hy * c.lx : elsewhere;
  c.weight[2] = inside ? c.ly * hx : elsewhere;
  c.weight[3] = inside ? c.ly * c.lx : elsewhere;

  const Index row = convert_lanes<Index>(y0), column = convert_lanes<Index>(x0);
  const Index pixel = row * W + column, none = Index{} - 1;
  const auto top = inside & (row >= 0), bottom = inside & (row + 1 < H);
  const auto left = column >= 0, right = column + 1 < W;
  c.pixel[0] = (top & left) ? pixel : none;
  c.pixel[1] = (top & right) ? pixel + 1 : none;
  c.pixel[2] = (bottom & left) ? pixel + W : none;
  c.pixel[3] = (bottom & right) ? pixel + W + 1 : none;
  return c;
}

// Derivatives of the sampled value with respect to y and x, from the values (or any
// linear function of the values) at the four corners.
template <typename T>
XLA_OPS_INLINE T derivative_y(T lx, const T v[4]) {
  return (T(1) - lx) * (v[2] - v[0]) + lx * (v[3] - v[1]);
}

template <typename T>
XLA_OPS_INLINE T derivative_x(T ly, const T v[4]) {
  return (T(1) - ly) * (v[1] - v[0]) + ly * (v[3] - v[2]);
}

}  // namespace xla_ops

#endif  // XLA_OPS_DEFORM_CONV_BILINEAR_H_
