// Small matrix products on cache tiles, for kernels compiled once per instruction set.
//
// A product C[rows][cols] += A[rows][depth] * B[depth][cols] is cut into blocks of
// kMicroRows rows by one or two vectors of columns, whose sums stay in registers.
// Tiles have room for `rows` rounded up to kMicroRows and `cols` to a full vector; what
// lies there is garbage in C.
#ifndef XLA_OPS_CPU_GEMM_H_
#define XLA_OPS_CPU_GEMM_H_

#include "simd.h"

namespace xla_ops {
namespace XLA_OPS_ISA {

#if defined(__AVX512F__)
constexpr int kMicroRows = 12;
#elif defined(__AVX2__)
constexpr int kMicroRows = 6;
#else
constexpr int kMicroRows = 4;
#endif

// Every tile has room for rows rounded up to a multiple of this.
constexpr int64_t kRowMultiple = 12;

// Depth of one product, and the row stride of a tile that holds as many columns: known
// to the compiler so that row addresses are immediate offsets, and for float an odd
// number of cache lines so that rows do not compete for the same cache sets.
constexpr int64_t kMaxDepth = 384;
constexpr int64_t kTileStride = 400;

constexpr int64_t round_up(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

constexpr int64_t ceil_div(int64_t n, int64_t d) { return (n + d - 1) / d; }

// What a product does beside itself: nothing.
struct Nothing {
  static constexpr bool kAnything = false;
};

// One register block. a(i, k) is a[i * kTileStride + k], or a[k * a_stride + i] where
// `transposed`. Else `soon` is what the next blocks need of B: some of it is fetched
// into the second cache at each k. `beside` is other work in pieces of vectors(): a vector
// is done every kSpan of k, so that its loads wait while the arithmetic units are busy.
// What does not fit is left().
template <typename A, int vectors, bool transposed, typename Beside = Nothing>
XLA_OPS_ALWAYS_INLINE void micro_kernel(int64_t depth, const A* a, int64_t a_stride, const A* b,
                                        int64_t b_stride, A* c, int64_t c_stride, bool accumulate,
                                        const A* soon = nullptr, int64_t soon_stride = 0,
                                        Beside* beside = nullptr) {
  constexpr int L = kLanes<A>;
  Vec<A, L> sum[kMicroRows][vectors];
#pragma GCC unroll 16
  for (int i = 0; i < kMicroRows; ++i) {
#pragma GCC unroll 2
    for (int j = 0; j < vectors; ++j) {
      sum[i][j] = accumulate ? load<L>(c + i * c_stride + j * L) : Vec<A, L>{};
    }
  }
  const auto add_products = [&](int64_t k) __attribute__((always_inline)) {
    Vec<A, L> bv[vectors];
#pragma GCC unroll 2
    for (int j = 0; j < vectors; ++j) bv[j] = load<L>(b + k * b_stride + j * L);
    if constexpr (!transposed) __builtin_prefetch(soon + k * soon_stride, 0, 2);
#pragma GCC unroll 16
    for (int i = 0; i < kMicroRows; ++i) {
      const A av = transposed ? a[k * a_stride + i] : a[i * kTileStride + k];
#pragma GCC unroll 2
      for (int j = 0; j < vectors; ++j) sum[i][j] += av * bv[j];
    }
  };
  int64_t k = 0;
  if constexpr (Beside::kAnything) {
    constexpr int kSpan = 4;
    while (beside->left() > 0 && depth - k >= kSpan * beside->vectors()) {
      const auto piece = beside->next();
      for (int64_t v = 0; v < beside->vectors(); ++v, k += kSpan) {
        piece.do_vector(v);
#pragma GCC unroll 4
        for (int u = 0; u < kSpan; ++u) add_products(k + u);
      }
    }
  }
  for (; k < depth; ++k) add_products(k);
#pragma GCC unroll 16
  for (int i = 0; i < kMicroRows; ++i) {
#pragma GCC unroll 2
    for (int j = 0; j < vectors; ++j) store<L>(c + i * c_stride + j * L, sum[i][j]);
  }
}

// Width of the panel at column j of a packed matrix with `cols` columns, a multiple of
// the vector length: two vectors, or one at the end.
template <typename A>
XLA_OPS_ALWAYS_INLINE int64_t panel_width(int64_t j, int64_t cols) {
  constexpr int64_t L = kLanes<A>;
  return cols - j >= 2 * L ? 2 * L : L;
}

// C = (accumulate ? C : 0) + A * B. A has rows of kTileStride; B is packed: for every
// panel of panel_width() columns, at j * depth, [depth][width].
template <typename A, typename Beside = Nothing>
void multiply_packed(int64_t rows, int64_t depth, int64_t cols, const A* a, const A* packed, A* c,
                     int64_t c_stride, bool accumulate, Beside* beside = nullptr) {
  constexpr int64_t L = kLanes<A>;
  for (int64_t j = 0; j < cols;) {
    const int64_t width = panel_width<A>(j, cols);
    const A* b = packed + j * depth;
    // The blocks of rows together fetch the next panel into the second cache.
    const int64_t soon_stride = ceil_div(width * kMicroRows, round_up(rows, kMicroRows));
    const A* soon = b + width * depth;
    for (int64_t i = 0; i < rows; i += kMicroRows, soon += depth * soon_stride) {
      const A* ai = a + i * kTileStride;
      A* ci = c + i * c_stride + j;
      if (width == 2 * L) {
        micro_kernel<A, 2, false>(depth, ai, 0, b, 2 * L, ci, c_stride, accumulate, soon,
                                  soon_stride, beside);
      } else {
        micro_kernel<A, 1, false>(depth, ai, 0, b, L, ci, c_stride, accumulate, soon, soon_stride);
      }
    }
    j += width;
  }
}

// C += A^T * B with A [depth][rows] of row stride a_stride, and B [depth][cols] with
// rows of kTileStride.
template <typename A>
void multiply_transposed(int64_t rows, int64_t depth, int64_t cols, const A* a, int64_t a_stride,
                         const A* b, A* c, int64_t c_stride) {
  constexpr int64_t L = kLanes<A>;
  for (int64_t j = 0; j < cols;) {
    const int64_t width = panel_width<A>(j, cols);
    for (int64_t i = 0; i < rows; i += kMicroRows) {
      A* ci = c + i * c_stride + j;
      if (width == 2 * L) {
        micro_kernel<A, 2, true>(depth, a + i, a_stride, b + j, kTileStride, ci, c_stride, true);
      } else {
        micro_kernel<A, 1, true>(depth, a + i, a_stride, b + j, kTileStride, ci, c_stride, true);
      }
    }
    j += width;
  }
}

}  // namespace XLA_OPS_ISA
}  // namespace xla_ops

#endif  // XLA_OPS_CPU_GEMM_H_
