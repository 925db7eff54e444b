// Kernels of RoI pooling: a RoI's bins are sums over rows and columns of the map
// (roi_axis.h), vectorised over channels.
#include "../roi_axis.h"
#include "roi_pool.h"
#include "simd.h"

namespace xla_ops {
namespace XLA_OPS_ISA {
namespace {

// Vectors that a loop over pixels keeps in registers.
constexpr int kUnroll = 4;

template <typename A>
struct Taps {
  AxisTap<A>* data;
  int64_t count;
};

// The part of one image's map that a RoI reads.
struct Window {
  int64_t level;
  int64_t row;            // pixels from a row to the next
  int64_t height, width;  // of the part that counts
};

int64_t clamp(int64_t value, int64_t low, int64_t high) {
  return value < low ? low : value > high ? high : value;
}

Window window_of(const RoiPoolOperands& op, int64_t image, int64_t level) {
  const RoiMap& map = op.maps[level];
  const int32_t* size = op.map_sizes + (image * op.L + level) * 2;
  return {level, map.W, clamp(size[0], 0, map.H), clamp(size[1], 0, map.W)};
}

int64_t max_taps(const RoiPoolOperands& op) {
  int64_t size = 0;
  for (int64_t l = 0; l < op.L; ++l) {
    if (op.maps[l].H > size) size = op.maps[l].H;
    if (op.maps[l].W > size) size = op.maps[l].W;
  }
  return max_axis_taps(op.sampling_ratio, size);
}

// Runs f(Vec[], i) over channels: kUnroll vectors at a time, then one, then less.
template <typename A, typename F>
XLA_OPS_ALWAYS_INLINE void for_each_channel_block(int64_t begin, int64_t end, F&& f) {
  constexpr int L = kLanes<A>;
  int64_t c = begin;
  for (; c + kUnroll * L <= end; c += kUnroll * L) f(Width<L>(), Width<kUnroll>(), c);
  for_each_vector<L>(c, end, [&](auto lanes, int64_t i) { f(lanes, Width<1>(), i); });
}

template <typename A>
bool is_finite(A v) {
  return v - v == A(0);
}

// Calls f(bin, defined, rows, columns) for the h*w bins of RoI `roi` (of the N*B), which
// reads `window`; `bin` counts the bins of all RoIs. The taps lie in `scratch`.
template <typename A, typename F>
XLA_OPS_ALWAYS_INLINE void for_each_bin(const RoiPoolOperands& op, const Window& window,
                                        int64_t roi, void* scratch, F&& f) {
  const A* box = static_cast<const A*>(op.boxes) + roi * 4;
  const A* shift = static_cast<const A*>(op.shift);
  const bool finite =
      is_finite(box[0]) && is_finite(box[1]) && is_finite(box[2]) && is_finite(box[3]);
  const A height = box[2] / static_cast<A>(op.h), width = box[3] / static_cast<A>(op.w);
  Taps<A> rows{static_cast<AxisTap<A>*>(scratch), 0};
  Taps<A> columns{rows.data + max_taps(op), 0};
  for (int64_t i = 0; i < op.h; ++i) {
    for (int64_t j = 0; j < op.w; ++j) {
      const int64_t bin = (roi * op.h + i) * op.w + j;
      const A dy = shift ? shift[2 * bin] : A(0), dx = shift ? shift[2 * bin + 1] : A(0);
      const bool defined = finite && dy == dy && dx == dx;
      if (defined) {
        if (shift || j == 0) {
          rows.count = axis_taps(box[0] + static_cast<A>(i) * height + dy, height,
                                 op.sampling_ratio, window.height, rows.data);
        }
        columns.count = axis_taps(box[1] + static_cast<A>(j) * width + dx, width,
                                  op.sampling_ratio, window.width, columns.data);
      }
      f(bin, defined, rows, columns);
    }
  }
}

template <typename T>
void forward(const RoiPoolOperands& op, int64_t first, int64_t last, void* y, void* scratch) {
  using A = Arithmetic<T>;
  const A* mask = static_cast<const A*>(op.mask);
  const Window nowhere{0, 0, 0, 0};
  for (int64_t roi = first; roi < last; ++roi) {
    const int64_t image = roi / op.B, level = op.levels[roi];
    const bool known = level >= 0 && level < op.L;
    const Window window = known ? window_of(op, image, level) : nowhere;
    const RoiMap& map = op.maps[window.level];
    const T* pixels = static_cast<const T*>(map.pixels) + image * map.H * map.W * op.C;
    for_each_bin<A>(op, window, roi, scratch,
                    [&](int64_t bin, bool defined, Taps<A> rows, Taps<A> columns) {
                      const A factor = defined ? (mask ? mask[bin] : A(1)) : A(__builtin_nan(""));
                      if (!defined) rows.count = 0;
                      T* out = static_cast<T*>(y) + bin * op.C;
                      for_each_channel_block<A>(0, op.C, [&](auto lanes, auto unroll, int64_t c) {
                        constexpr int L = decltype(lanes)::value, U = decltype(unroll)::value;
                        Vec<A, L> sum[U] = {};
                        for (int64_t r = 0; r < rows.count; ++r) {
                          const T* line = pixels + rows.data[r].pixel * window.row * op.C + c;
                          for (int64_t s = 0; s < columns.count; ++s) {
                            const A weight = rows.data[r].weight * columns.data[s].weight;
                            const T* p = line + columns.data[s].pixel * op.C;
#pragma GCC unroll 4
                            for (int u = 0; u < U; ++u) sum[u] += weight * load<L>(p + u * L);
                          }
                        }
#pragma GCC unroll 4
                        for (int u = 0; u < U; ++u) store<L>(out + c + u * L, sum[u] * factor);
                      });
                    });
  }
}

template <typename T>
void bin_gradient(const RoiPoolOperands& op, const void* gradient, int64_t first, int64_t last,
                  void* shift_gradient, void* mask_gradient, void* scratch) {
  using A = Arithmetic<T>;
  const T* g = static_cast<const T*>(gradient);
  A* dshift = static_cast<A*>(shift_gradient);
  A* dmask = static_cast<A*>(mask_gradient);
  const A* mask = static_cast<const A*>(op.mask);
  const Window nowhere{0, 0, 0, 0};
  for (int64_t roi = first; roi < last; ++roi) {
    const int64_t image = roi / op.B, level = op.levels[roi];
    const bool known = level >= 0 && level < op.L;
    const Window window = known ? window_of(op, image, level) : nowhere;
    const RoiMap& map = op.maps[window.level];
    const T* pixels = static_cast<const T*>(map.pixels) + image * map.H * map.W * op.C;
    for_each_bin<A>(op, window, roi, scratch,
                    [&](int64_t bin, bool defined, Taps<A> rows, Taps<A> columns) {
                      if (!defined) rows.count = 0;
                      // Products of g with the pooled value and with its derivatives.
                      A value = A(0), dy = A(0), dx = A(0);
                      for_each_channel_block<A>(0, op.C, [&](auto lanes, auto unroll, int64_t c) {
                        constexpr int L = decltype(lanes)::value, U = decltype(unroll)::value;
                        Vec<A, L> values = {}, along_y = {}, along_x = {};
                        Vec<A, L> weight[U];
#pragma GCC unroll 4
                        for (int u = 0; u < U; ++u)
                          weight[u] = load<L>(g + bin * op.C + c + u * L);
                        for (int64_t r = 0; r < rows.count; ++r) {
                          const T* line = pixels + rows.data[r].pixel * window.row * op.C + c;
                          Vec<A, L> row = {}, row_slope = {};
                          for (int64_t s = 0; s < columns.count; ++s) {
                            const T* p = line + columns.data[s].pixel * op.C;
                            Vec<A, L> product = {};
#pragma GCC unroll 4
                            for (int u = 0; u < U; ++u) product += weight[u] * load<L>(p + u * L);
                            row += columns.data[s].weight * product;
                            row_slope += columns.data[s].slope * product;
                          }
                          values += rows.data[r].weight * row;
                          along_y += rows.data[r].slope * row;
                          along_x += rows.data[r].weight * row_slope;
                        }
                        value += sum_lanes<A, L>(values);
                        dy += sum_lanes<A, L>(along_y);
                        dx += sum_lanes<A, L>(along_x);
                      });
                      const A factor = mask ? mask[bin] : A(1);
                      if (dshift) {
                        dshift[2 * bin] = defined ? factor * dy : A(0);
                        dshift[2 * bin + 1] = defined ? factor * dx : A(0);
                      }
                      if (dmask) dmask[bin] = value;
                    });
  }
}

// Adds to `sums`, whose pixels are `stride` apart and begin with the block's channels.
template <typename T>
void add_map_gradient(const RoiPoolOperands& op, const T* g, const RoiMapBlock& block,
                      Arithmetic<T>* sums, int64_t stride, void* scratch) {
  using A = Arithmetic<T>;
  const A* mask = static_cast<const A*>(op.mask);
  const Window window = window_of(op, block.image, block.level);
  for (int64_t roi = block.image * op.B; roi < (block.image + 1) * op.B; ++roi) {
    if (op.levels[roi] != block.level) continue;
    for_each_bin<A>(
        op, window, roi, scratch, [&](int64_t bin, bool defined, Taps<A> rows, Taps<A> columns) {
          if (!defined) return;
          const A factor = mask ? mask[bin] : A(1);
          const int64_t channels = block.last_channel - block.first_channel;
          for_each_channel_block<A>(0, channels, [&](auto lanes, auto unroll, int64_t c) {
            constexpr int L = decltype(lanes)::value, U = decltype(unroll)::value;
            Vec<A, L> gradient[U];
            const T* in = g + bin * op.C + block.first_channel + c;
#pragma GCC unroll 4
            for (int u = 0; u < U; ++u) gradient[u] = factor * load<L>(in + u * L);
            for (int64_t r = 0; r < rows.count; ++r) {
              A* line = sums + rows.data[r].pixel * window.row * stride + c;
              for (int64_t s = 0; s < columns.count; ++s) {
                const A weight = rows.data[r].weight * columns.data[s].weight;
                A* p = line + columns.data[s].pixel * stride;
#pragma GCC unroll 4
                for (int u = 0; u < U; ++u) {
                  store<L>(p + u * L, load<L>(p + u * L) + weight * gradient[u]);
                }
              }
            }
          });
        });
  }
}

template <typename T>
void map_gradient(const RoiPoolOperands& op, const void* g, const RoiMapBlock& block,
                  void* scratch) {
  using A = Arithmetic<T>;
  constexpr bool in_place = sizeof(T) == sizeof(A);
  const RoiMap& map = op.maps[block.level];
  const int64_t channels = block.last_channel - block.first_channel;
  const int64_t pixels = map.H * map.W;
  T* gradient = static_cast<T*>(map.gradient) + block.image * pixels * op.C + block.first_channel;
  A* taps = static_cast<A*>(scratch);
  A* sums;
  if constexpr (in_place) {
    sums = gradient;
  } else {
    sums = taps + 2 * max_taps(op) * sizeof(AxisTap<A>) / sizeof(A);
  }
  const int64_t stride = in_place ? op.C : channels;
  for (int64_t k = 0; k < pixels; ++k) {
    std::memset(sums + k * stride, 0, channels * sizeof(A));
  }
  add_map_gradient<T>(op, static_cast<const T*>(g), block, sums, stride, taps);
  if constexpr (!in_place) {
    for (int64_t k = 0; k < pixels; ++k) {
      for_each_vector<kLanes<A>>(0, channels, [&](auto lanes, int64_t c) {
        constexpr int L = decltype(lanes)::value;
        store<L>(gradient + k * op.C + c, load<L>(sums + k * stride + c));
      });
    }
  }
}

template <typename T>
int64_t scratch_bytes(const RoiPoolOperands& op, int64_t channels) {
  using A = Arithmetic<T>;
  int64_t sums = 0;
  for (int64_t l = 0; l < op.L && sizeof(T) != sizeof(A); ++l) {
    const int64_t size = op.maps[l].H * op.maps[l].W * channels;
    if (size > sums) sums = size;
  }
  return 2 * max_taps(op) * sizeof(AxisTap<A>) + sums * sizeof(A);
}

}  // namespace

int64_t RoiPoolScratchBytes(const RoiPoolOperands& op, int64_t channels) {
  XLA_OPS_RETURN_FOR(op.type, scratch_bytes, op, channels);
}

void RoiPoolForward(const RoiPoolOperands& op, int64_t first, int64_t last, void* y,
                    void* scratch) {
  XLA_OPS_RETURN_FOR(op.type, forward, op, first, last, y, scratch);
}

void RoiPoolBinGradient(const RoiPoolOperands& op, const void* g, int64_t first, int64_t last,
                        void* dshift, void* dmask, void* scratch) {
  XLA_OPS_RETURN_FOR(op.type, bin_gradient, op, g, first, last, dshift, dmask, scratch);
}

void RoiPoolMapGradient(const RoiPoolOperands& op, const void* g, const RoiMapBlock& block,
                        void* scratch) {
  XLA_OPS_RETURN_FOR(op.type, map_gradient, op, g, block, scratch);
}

}  // namespace XLA_OPS_ISA
}  // namespace xla_ops
