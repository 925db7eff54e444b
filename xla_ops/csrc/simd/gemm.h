// Small matrix products on cache tiles, for kernels compiled once per instruction set.
//
// A product C[rows][cols] += A[rows][depth] * B[depth][cols] is cut into blocks of
// kMicroRows rows by one or two vectors of columns, whose sums stay in registers.
// Tiles have room for `rows` rounded up to kMicroRows and `cols` to a full vector; what
// lies there is garbage in C.
#ifndef XLA_OPS_SIMD_GEMM_H_
#define XLA_OPS_SIMD_GEMM_H_

#include "simd/tuning.h"
#include "simd/vector.h"

namespace xla_ops {
namespace XLA_OPS_ISA {

// Rows of a register block: with two vectors of columns their sums take 24 of 32 registers
// (AVX-512), 12 of 16 (AVX2) or 8 of 16, and a row of B two.
#if defined(__AVX512F__)
constexpr int kMicroRows = 12;
#elif defined(__AVX2__)
constexpr int kMicroRows = 6;
#else
constexpr int kMicroRows = 4;
#endif

constexpr int64_t round_up(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

constexpr int64_t ceil_div(int64_t n, int64_t d) { return (n + d - 1) / d; }

static_assert(kRowMultiple % kMicroRows == 0, "tiles have no room for whole register blocks");

// Operands of a register block. A: element (i, k) is at data[i * kTileStride + k], or
// transposed at data[k * kTileStride + i].
template <typename A>
struct TileRows {
  const A* data;

  XLA_OPS_ALWAYS_INLINE A at(int64_t i, int64_t k) const { return data[i * kTileStride + k]; }
};
template <typename A>
struct TileColumns {
  const A* data;

  XLA_OPS_ALWAYS_INLINE A at(int64_t i, int64_t k) const { return data[k * kTileStride + i]; }
};

// B: rows of a tile, or packed. Some of what the next blocks need of the latter, which is at
// `soon`, is fetched into the second cache at each k.
template <typename A>
struct TilePanel {
  const A* data;

  XLA_OPS_ALWAYS_INLINE const A* row(int64_t k) const { return data + k * kTileStride; }
  XLA_OPS_ALWAYS_INLINE void fetch_ahead(int64_t) const {}
};
template <typename A, int vectors>
struct PackedPanel {
  const A* data;
  const A* soon;
  int64_t soon_stride;

  XLA_OPS_ALWAYS_INLINE const A* row(int64_t k) const { return data + k * vectors * kLanes<A>; }
  XLA_OPS_ALWAYS_INLINE void fetch_ahead(int64_t k) const {
    __builtin_prefetch(soon + k * soon_stride, 0, 2);
  }
};

// C: rows `stride` apart, which are added to, or begin at 0.
template <typename A>
struct Sums {
  A* data;
  int64_t stride;
  bool accumulate;
};

// What a product does beside itself: nothing.
struct Nothing {
  static constexpr bool kAnything = false;
};

// One register block. `beside` is other work in pieces of vectors(): a vector is done every
// kStepsBesideVector of k, so that its loads wait while the arithmetic units are busy. What
// does not fit is left().
template <int vectors, typename A, typename Left, typename Right, typename Beside = Nothing>
XLA_OPS_ALWAYS_INLINE void micro_kernel(int64_t depth, const Left& a, const Right& b,
                                        const Sums<A>& c, Beside* beside = nullptr) {
  constexpr int L = kLanes<A>;
  Vec<A, L> sum[kMicroRows][vectors];
#pragma GCC unroll 16
  for (int i = 0; i < kMicroRows; ++i) {
#pragma GCC unroll 2
    for (int j = 0; j < vectors; ++j) {
      sum[i][j] = c.accumulate ? load<L>(c.data + i * c.stride + j * L) : Vec<A, L>{};
    }
  }
  const auto add_products = [&](int64_t k) __attribute__((always_inline)) {
    Vec<A, L> bv[vectors];
#pragma GCC unroll 2
    for (int j = 0; j < vectors; ++j) bv[j] = load<L>(b.row(k) + j * L);
    b.fetch_ahead(k);
#pragma GCC unroll 16
    for (int i = 0; i < kMicroRows; ++i) {
      const A av = a.at(i, k);
#pragma GCC unroll 2
      for (int j = 0; j < vectors; ++j) sum[i][j] += av * bv[j];
    }
  };
  int64_t k = 0;
  if constexpr (Beside::kAnything) {
    constexpr int kSteps = kStepsBesideVector;
    while (beside->left() > 0 && depth - k >= kSteps * beside->vectors()) {
      const auto piece = beside->next();
      for (int64_t v = 0; v < beside->vectors(); ++v, k += kSteps) {
        piece.do_vector(v);
#pragma GCC unroll 4
        for (int u = 0; u < kSteps; ++u) add_products(k + u);
      }
    }
  }
  for (; k < depth; ++k) add_products(k);
#pragma GCC unroll 16
  for (int i = 0; i < kMicroRows; ++i) {
#pragma GCC unroll 2
    for (int j = 0; j < vectors; ++j) store<L>(c.data + i * c.stride + j * L, sum[i][j]);
  }
}

// Width of the panel at column j of a packed matrix with `cols` columns, a multiple of
// the vector length: two vectors, or one at the end.
template <typename A>
XLA_OPS_ALWAYS_INLINE int64_t panel_width(int64_t j, int64_t cols) {
  constexpr int64_t L = kLanes<A>;
  return cols - j >= 2 * L ? 2 * L : L;
}

// Of A [rows][depth], B [depth][cols] and C [rows][cols].
struct ProductSize {
  int64_t rows, depth, cols;
};

// C += A * B. A is a tile; B is packed: for every panel of panel_width() columns, at
// j * depth, [depth][width].
template <typename A, typename Beside = Nothing>
void multiply_packed(ProductSize size, const A* a, const A* packed, Sums<A> c,
                     Beside* beside = nullptr) {
  constexpr int64_t L = kLanes<A>;
  for (int64_t j = 0; j < size.cols;) {
    const int64_t width = panel_width<A>(j, size.cols);
    const A* b = packed + j * size.depth;
    // The blocks of rows together fetch the next panel into the second cache.
    const int64_t soon_stride = ceil_div(width * kMicroRows, round_up(size.rows, kMicroRows));
    const A* soon = b + width * size.depth;
    for (int64_t i = 0; i < size.rows; i += kMicroRows, soon += size.depth * soon_stride) {
      const TileRows<A> rows{a + i * kTileStride};
      const Sums<A> sums{c.data + i * c.stride + j, c.stride, c.accumulate};
      if (width == 2 * L) {
        micro_kernel<2>(size.depth, rows, PackedPanel<A, 2>{b, soon, soon_stride}, sums, beside);
      } else {
        micro_kernel<1>(size.depth, rows, PackedPanel<A, 1>{b, soon, soon_stride}, sums);
      }
    }
    j += width;
  }
}

// C += A^T * B for tiles A [depth][rows] and B [depth][cols].
template <typename A>
void multiply_transposed(ProductSize size, const A* a, const A* b, Sums<A> c) {
  constexpr int64_t L = kLanes<A>;
  for (int64_t j = 0; j < size.cols;) {
    const int64_t width = panel_width<A>(j, size.cols);
    for (int64_t i = 0; i < size.rows; i += kMicroRows) {
      const TileColumns<A> columns{a + i};
      const TilePanel<A> panel{b + j};
      const Sums<A> sums{c.data + i * c.stride + j, c.stride, c.accumulate};
      if (width == 2 * L) {
        micro_kernel<2>(size.depth, columns, panel, sums);
      } else {
        micro_kernel<1>(size.depth, columns, panel, sums);
      }
    }
    j += width;
  }
}

}  // namespace XLA_OPS_ISA
}  // namespace xla_ops

#endif  // XLA_OPS_SIMD_GEMM_H_
