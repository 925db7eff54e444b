// Kernels of roi_pool: the maximum over the pixels of a bin, vectorised over channels.
#include "roi/bin.h"
#include "roi/cpu/channel_blocks.h"
#include "roi/cpu/max_pool_kernels.h"
#include "roi/cpu/window.h"
#include "simd/dispatch.h"
#include "simd/vector.h"

namespace xla_ops {
namespace XLA_OPS_ISA {
namespace {

// Numbers of pixels, as wide as the values they stand beside.
template <typename A>
struct IndexOf {
  using type = int32_t;
};
template <>
struct IndexOf<double> {
  using type = int64_t;
};
template <typename A>
using Index = typename IndexOf<A>::type;

// Calls f(bin, defined, rows, columns) for the h*w bins of RoI `roi` (of the N*B), which
// reads `window`; `bin` counts the bins of all RoIs.
template <typename A, typename F>
XLA_OPS_ALWAYS_INLINE void for_each_bin(const MaxRoiPoolOperands& op, const RoiWindow& window,
                                        int64_t roi, F&& f) {
  const A* box = static_cast<const A*>(op.boxes) + roi * 4;
  const bool defined = is_finite_box(box);
  PixelRange rows{0, 0}, columns{0, 0};
  for (int64_t i = 0; i < op.h; ++i) {
    if (defined) rows = bin_pixels(box[0], box[2], i, op.h, window.height);
    for (int64_t j = 0; j < op.w; ++j) {
      if (defined) columns = bin_pixels(box[1], box[3], j, op.w, window.width);
      f((roi * op.h + i) * op.w + j, defined, rows, columns);
    }
  }
}

bool is_empty(PixelRange range) { return range.end <= range.begin; }

template <typename T>
void forward(const MaxRoiPoolOperands& op, int64_t first, int64_t last, void* y) {
  using A = Arithmetic<T>;
  for (int64_t roi = first; roi < last; ++roi) {
    const RoiWindow window = window_of_roi(op, roi);
    const RoiMap& map = map_of_roi(op, roi);
    const T* pixels = static_cast<const T*>(map.pixels) + roi / op.B * map.H * map.W * op.C;
    for_each_bin<A>(
        op, window, roi, [&](int64_t bin, bool defined, PixelRange rows, PixelRange columns) {
          T* out = static_cast<T*>(y) + bin * op.C;
          const bool empty = is_empty(rows) || is_empty(columns);
          const A filler = defined ? A(0) : A(__builtin_nan(""));
          for_each_channel_block<A>(0, op.C, [&](auto lanes, auto unroll, int64_t c, int64_t) {
            constexpr int L = decltype(lanes)::value, U = decltype(unroll)::value;
            using V = Vec<A, L>;
            if (empty) {
#pragma GCC unroll 4
              for (int u = 0; u < U; ++u) store<L>(out + c + u * L, V{} + filler);
              return;
            }
            V most[U], bad[U];
#pragma GCC unroll 4
            for (int u = 0; u < U; ++u) {
              most[u] = V{} - A(__builtin_inf());
              bad[u] = V{};
            }
            for (int64_t r = rows.begin; r < rows.end; ++r) {
              const T* line = pixels + r * window.row * op.C + c;
              for (int64_t s = columns.begin; s < columns.end; ++s) {
#pragma GCC unroll 4
                for (int u = 0; u < U; ++u) {
                  const V value = load<L>(line + s * op.C + u * L);
                  most[u] = value > most[u] ? value : most[u];
                  // A NaN is greater than nothing, but it has to come out.
                  bad[u] = value == value ? bad[u] : value;
                }
              }
            }
#pragma GCC unroll 4
            for (int u = 0; u < U; ++u) {
              store<L>(out + c + u * L, bad[u] == bad[u] ? most[u] : bad[u]);
            }
          });
        });
  }
}

// Adds to `sums` [H,W, channels of the block].
template <typename T>
void add_map_gradient(const MaxRoiPoolOperands& op, const T* g, const RoiMapBlock& block,
                      Arithmetic<T>* sums) {
  using A = Arithmetic<T>;
  using I = Index<A>;
  const RoiWindow window = window_of(op, block.image, block.level);
  const RoiMap& map = op.maps[block.level];
  const T* pixels =
      static_cast<const T*>(map.pixels) + block.image * map.H * map.W * op.C + block.first_channel;
  const int64_t channels = block.last_channel - block.first_channel;
  for (int64_t roi = block.image * op.B; roi < (block.image + 1) * op.B; ++roi) {
    if (op.levels[roi] != block.level) continue;
    for_each_bin<A>(
        op, window, roi, [&](int64_t bin, bool defined, PixelRange rows, PixelRange columns) {
          if (!defined || is_empty(rows) || is_empty(columns)) return;
          const T* gradient = g + bin * op.C + block.first_channel;
          for_each_channel_block<A>(
              0, channels, [&](auto lanes, auto unroll, int64_t c, int64_t taken) {
                constexpr int L = decltype(lanes)::value, U = decltype(unroll)::value;
                using V = Vec<A, L>;
                V most[U];
                Vec<I, L> place[U];
                const I corner = static_cast<I>(rows.begin * window.row + columns.begin);
#pragma GCC unroll 4
                for (int u = 0; u < U; ++u) {
                  most[u] = load<L>(pixels + corner * op.C + c + u * L);
                  place[u] = Vec<I, L>{} + corner;
                }
                for (int64_t r = rows.begin; r < rows.end; ++r) {
                  const T* line = pixels + r * window.row * op.C + c;
                  for (int64_t s = columns.begin; s < columns.end; ++s) {
                    const I here = static_cast<I>(r * window.row + s);
#pragma GCC unroll 4
                    for (int u = 0; u < U; ++u) {
                      const V value = load<L>(line + s * op.C + u * L);
                      // The first of equal ones, and the first NaN, which counts as the greatest.
                      const auto greater =
                          (value > most[u]) | ((value != value) & (most[u] == most[u]));
                      most[u] = greater ? value : most[u];
                      place[u] = greater ? Vec<I, L>{} + here : place[u];
                    }
                  }
                }
                A share[U * L];
                I at[U * L];
#pragma GCC unroll 4
                for (int u = 0; u < U; ++u) {
                  store<L>(share + u * L, load<L>(gradient + c + u * L));
                  std::memcpy(at + u * L, &place[u], sizeof(place[u]));
                }
                for (int64_t k = taken; k < U * L; ++k) sums[at[k] * channels + c + k] += share[k];
              });
        });
  }
}

// Sums lie packed in scratch: threads would share cache lines of a gradient map whose
// pixels are no whole lines.
template <typename T>
void map_gradient(const MaxRoiPoolOperands& op, const void* g, const RoiMapBlock& block,
                  void* scratch) {
  using A = Arithmetic<T>;
  const RoiMap& map = op.maps[block.level];
  const int64_t channels = block.last_channel - block.first_channel;
  const int64_t pixels = map.H * map.W;
  T* gradient = static_cast<T*>(map.gradient) + block.image * pixels * op.C + block.first_channel;
  A* sums = static_cast<A*>(scratch);
  std::memset(sums, 0, pixels * channels * sizeof(A));
  add_map_gradient<T>(op, static_cast<const T*>(g), block, sums);
  store_sums(sums, channels, pixels, channels, gradient, op.C);
}

template <typename T>
int64_t scratch_bytes(const MaxRoiPoolOperands&, int64_t pixels, int64_t channels) {
  return pixels * channels * sizeof(Arithmetic<T>);
}

template <typename T>
constexpr MaxRoiPoolKernels kKernels = {scratch_bytes<T>, forward<T>, map_gradient<T>};

}  // namespace
}  // namespace XLA_OPS_ISA

XLA_OPS_EXPORT(MaxRoiPoolKernels, max_roi_pool_kernels, kKernels<float>, kKernels<double>,
               kKernels<Bf16>, kKernels<F16>);

}  // namespace xla_ops
