// A small matrix product in every lane: of as many pairs of matrices as there are channels,
// whose elements lie beside one another. For products that are too small for gemm.h.
#ifndef XLA_OPS_SIMD_LANES_H_
#define XLA_OPS_SIMD_LANES_H_

#include "simd/gemm.h"
#include "simd/vector.h"

namespace xla_ops {
namespace XLA_OPS_ISA {

// An operand: element (i, k) of channel c is at data[i * row + k * step + c].
template <typename A>
struct Lanes {
  const A* data;
  int64_t row, step;
};

// What becomes of the sums: they are stored the same way, or added to what is there.
template <typename A>
struct LaneSums {
  A* data;
  int64_t row, step;
  bool accumulate;

  XLA_OPS_ALWAYS_INLINE Vec<A, kLanes<A>> begin(int64_t i, int64_t j, int64_t c) const {
    constexpr int L = kLanes<A>;
    return accumulate ? load<L>(data + i * row + j * step + c) : Vec<A, L>{};
  }
  template <int cols>
  XLA_OPS_ALWAYS_INLINE void end(int64_t i, int64_t j, int64_t c,
                                 const Vec<A, kLanes<A>> (&sum)[cols]) const {
#pragma GCC unroll 4
    for (int u = 0; u < cols; ++u) {
      store<kLanes<A>>(data + i * row + (j + u) * step + c, sum[u]);
    }
  }
};

// A register block of multiply_lanes(), at (i, j), in the channels [c0, c1).
template <int rows, int cols, typename A, typename Out>
void multiply_lanes_block(int64_t i, int64_t j, int64_t depth, int64_t c0, int64_t c1,
                          const Lanes<A>& a, const Lanes<A>& b, const Out& out) {
  constexpr int L = kLanes<A>;
  for (int64_t c = c0; c < c1; c += L) {
    Vec<A, L> sum[rows][cols];
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 4
      for (int u = 0; u < cols; ++u) sum[r][u] = out.begin(i + r, j + u, c);
    }
    const A *left = a.data + i * a.row + c, *right = b.data + j * b.row + c;
    for (int64_t k = 0; k < depth; ++k, left += a.step, right += b.step) {
      Vec<A, L> element[rows];
#pragma GCC unroll 8
      for (int r = 0; r < rows; ++r) element[r] = load<L>(left + r * a.row);
#pragma GCC unroll 4
      for (int u = 0; u < cols; ++u) {
        const Vec<A, L> other = load<L>(right + u * b.row);
#pragma GCC unroll 8
        for (int r = 0; r < rows; ++r) sum[r][u] += element[r] * other;
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) out.template end<cols>(i + r, j, c, sum[r]);
  }
}

template <int cols, typename A, typename Out>
void multiply_lanes_cols(int64_t j, ProductSize size, int64_t c0, int64_t c1, const Lanes<A>& a,
                         const Lanes<A>& b, const Out& out) {
  // Their sums take at most 12 registers.
  constexpr int kMany = cols <= 2 ? 6 : 3;
  int64_t i = 0;
  for (; i + kMany <= size.rows; i += kMany) {
    multiply_lanes_block<kMany, cols, A>(i, j, size.depth, c0, c1, a, b, out);
  }
  for (; kMany > 3 && i + 3 <= size.rows; i += 3) {
    multiply_lanes_block<3, cols, A>(i, j, size.depth, c0, c1, a, b, out);
  }
  for (; i < size.rows; ++i) {
    multiply_lanes_block<1, cols, A>(i, j, size.depth, c0, c1, a, b, out);
  }
}

// The product A * B^T of each of the channels: element (i, j) is the sum of a(i, k) * b(j, k) over
// the depth. Operands have room for `channels` rounded up to a full vector; what the lanes behind
// them give is garbage.
template <typename A, typename Out>
void multiply_lanes(ProductSize size, int64_t channels, const Lanes<A>& a, const Lanes<A>& b,
                    const Out& out) {
  // A cache line of every row at a time, of which the first cache holds many.
  constexpr int64_t kSlice = 64 / sizeof(A);
  for (int64_t c0 = 0; c0 < channels; c0 += kSlice) {
    const int64_t c1 = c0 + kSlice < channels ? c0 + kSlice : channels;
    int64_t j = 0;
    for (; j + 4 <= size.cols; j += 4) multiply_lanes_cols<4>(j, size, c0, c1, a, b, out);
    for (; j + 2 <= size.cols; j += 2) multiply_lanes_cols<2>(j, size, c0, c1, a, b, out);
    if (j < size.cols) multiply_lanes_cols<1>(j, size, c0, c1, a, b, out);
  }
}

}  // namespace XLA_OPS_ISA
}  // namespace xla_ops

#endif  // XLA_OPS_SIMD_LANES_H_
