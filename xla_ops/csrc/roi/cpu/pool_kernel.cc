// Kernels of RoI pooling: a RoI's bins are sums over rows and columns of the map
// (../axis.h), vectorised over channels.
#include "roi/cpu/pool_kernels.h"
#include "roi/cpu/window.h"
#include "roi/tuning.h"
#include "simd/dispatch.h"
#include "simd/vector.h"

namespace xla_ops {
namespace XLA_OPS_ISA {
namespace {

template <typename A>
struct Taps {
  AxisTap<A>* data;
  int64_t count;
};

// Taps of one bin along one axis, at most.
int64_t max_taps(const RoiPoolOperands& op) {
  int64_t size = 0;
  for (int64_t l = 0; l < op.L; ++l) {
    if (op.maps[l].H > size) size = op.maps[l].H;
    if (op.maps[l].W > size) size = op.maps[l].W;
  }
  return op.sampling == RoiSampling::kPixels ? size : max_axis_taps(op.samples, size);
}

// Where a RoI's columns do not move with its rows, their taps are kept while the rows
// pass, unless they are very many.
bool keeps_columns(const RoiPoolOperands& op) {
  return op.shift == nullptr && op.w * max_taps(op) <= kMaxKeptTaps;
}

// Scratch of for_each_cell().
template <typename A>
int64_t taps_bytes(const RoiPoolOperands& op) {
  const int64_t kept = keeps_columns(op) ? op.w : 1;
  return (1 + kept) * max_taps(op) * sizeof(AxisTap<A>) + kept * sizeof(Taps<A>);
}

// Taps of bin `index` of an axis of a RoI. Not inlined: it is called from many places.
template <typename A>
__attribute__((noinline)) int64_t find_taps(const RoiPoolOperands& op, const RoiAxis<A>& axis,
                                            int64_t index, A shift, int64_t size,
                                            AxisTap<A>* taps) {
  return bin_taps(op.sampling, op.samples, axis, index, shift, size, taps);
}

// Runs f(lanes, unroll, i) over channels: kBlockVectors vectors at a time, then one, then less.
template <typename A, typename F>
XLA_OPS_ALWAYS_INLINE void for_each_unrolled(int64_t begin, int64_t end, F&& f) {
  constexpr int L = kLanes<A>;
  int64_t c = begin;
  for (; c + kBlockVectors * L <= end; c += kBlockVectors * L)
    f(Width<L>(), Width<kBlockVectors>(), c);
  for_each_vector<L>(c, end, [&](auto lanes, int64_t i) { f(lanes, Width<1>(), i); });
}

// Bins of one channel class of a RoI that a loop visits, and rows of the map.
struct Part {
  int64_t first_i, last_i, first_j, last_j;
  int64_t first_row, last_row;
};

Part whole(const RoiPoolOperands& op, const RoiWindow& window) {
  return {0, op.h, 0, op.w, 0, window.height};
}

// The bins that read a block.
Part part_of(const RoiPoolOperands& op, const RoiMapBlock& block) {
  const int64_t i = block.group / op.group_w, j = block.group % op.group_w;
  const auto first = [](int64_t group, int64_t bins, int64_t groups) {
    return (group * bins + groups - 1) / groups;
  };
  return {first(i, op.h, op.group_h),
          first(i + 1, op.h, op.group_h),
          first(j, op.w, op.group_w),
          first(j + 1, op.w, op.group_w),
          block.first_row,
          block.last_row};
}

// A bin, or where shifts differ by class one class of a bin.
template <typename A>
struct Cell {
  int64_t bin;                          // of all RoIs
  int64_t shift;                        // its number among all shifts
  int64_t group;                        // that it reads
  int64_t first_channel, last_channel;  // of the bin
  bool defined;                         // else it is NaN, and there are no taps
  Taps<A> rows, columns;
};

template <typename A>
Taps<A> within(Taps<A> taps, int64_t first, int64_t last) {
  int64_t count = 0;
  for (int64_t k = 0; k < taps.count; ++k) {
    const AxisTap<A> tap = taps.data[k];
    taps.data[count] = tap;
    count += tap.pixel >= first && tap.pixel < last;
  }
  return {taps.data, count};
}

// Calls f(cell) for the bins in `part` of RoI `roi` (of the N*B), which reads `window`.
// Only taps in the rows of `part` are there.
template <typename A, typename F>
XLA_OPS_ALWAYS_INLINE void for_each_cell(const RoiPoolOperands& op, const RoiWindow& window,
                                         const Part& part, int64_t roi, void* scratch, F&& f) {
  const A* box = static_cast<const A*>(op.boxes) + roi * 4;
  const A* shifts = static_cast<const A*>(op.shift);
  const bool finite = is_finite_box(box);
  const RoiAxis<A> vertical{box[0], box[2], box[2] / static_cast<A>(op.h), op.h};
  const RoiAxis<A> horizontal{box[1], box[3], box[3] / static_cast<A>(op.w), op.w};
  const bool clipped = part.first_row > 0 || part.last_row < window.height;
  const bool keep = keeps_columns(op);
  const int64_t capacity = max_taps(op), classes = shifts ? op.classes : 1;
  AxisTap<A>* const row_taps = static_cast<AxisTap<A>*>(scratch);
  AxisTap<A>* const column_taps = row_taps + capacity;
  Taps<A>* const kept = reinterpret_cast<Taps<A>*>(column_taps + (keep ? op.w : 1) * capacity);
  for (int64_t j = 0; keep && j < op.w; ++j) kept[j] = {column_taps + j * capacity, -1};
  Cell<A> cell{};
  for (int64_t i = part.first_i; i < part.last_i; ++i) {
    cell.rows = {row_taps, -1};
    for (int64_t j = part.first_j; j < part.last_j; ++j) {
      cell.bin = (roi * op.h + i) * op.w + j;
      if (op.group_h > 1 || op.group_w > 1) {
        cell.group = i * op.group_h / op.h * op.group_w + j * op.group_w / op.w;
      }
      for (int64_t k = 0; k < classes; ++k) {
        cell.shift = cell.bin * classes + k;
        cell.first_channel = op.C / classes * k;
        cell.last_channel = cell.first_channel + op.C / classes;
        const A dy = shifts ? shifts[2 * cell.shift] : A(0);
        const A dx = shifts ? shifts[2 * cell.shift + 1] : A(0);
        cell.defined = finite && dy == dy && dx == dx;
        if (!cell.defined) {
          cell.rows.count = 0;
        } else if (shifts || cell.rows.count < 0) {
          cell.rows.count = find_taps(op, vertical, i, dy, window.height, row_taps);
          if (clipped) cell.rows = within(cell.rows, part.first_row, part.last_row);
        }
        if (cell.rows.count == 0) {
          cell.columns = {column_taps, 0};
        } else {
          cell.columns = keep ? kept[j] : Taps<A>{column_taps, -1};
          if (cell.columns.count < 0) {
            cell.columns.count = find_taps(op, horizontal, j, dx, window.width, cell.columns.data);
            if (keep) kept[j] = cell.columns;
          }
        }
        f(cell);
      }
    }
  }
}

// Calls f(cell, its plane [H,W,C], window) for all bins of the RoIs [first, last).
template <typename T, typename F>
XLA_OPS_ALWAYS_INLINE void for_each_roi_cell(const RoiPoolOperands& op, int64_t first,
                                             int64_t last, void* scratch, F&& f) {
  for (int64_t roi = first; roi < last; ++roi) {
    const RoiWindow window = window_of_roi(op, roi);
    const RoiMap& map = map_of_roi(op, roi);
    const int64_t plane = map.H * map.W * op.C;
    // The groups' planes [H,W,C] lie one behind the other.
    const T* planes =
        static_cast<const T*>(map.pixels) + roi / op.B * op.group_h * op.group_w * plane;
    for_each_cell<Arithmetic<T>>(
        op, window, whole(op, window), roi, scratch,
        [&](const auto& cell) { f(cell, planes + cell.group * plane, window); });
  }
}

template <typename T>
void forward(const RoiPoolOperands& op, int64_t first, int64_t last, void* y, void* scratch) {
  using A = Arithmetic<T>;
  const A* mask = static_cast<const A*>(op.mask);
  for_each_roi_cell<T>(
      op, first, last, scratch,
      [&](const Cell<A>& cell, const T* pixels, const RoiWindow& window) {
        const Taps<A> rows = cell.rows, columns = cell.columns;
        const A factor = cell.defined ? (mask ? mask[cell.bin] : A(1)) : A(__builtin_nan(""));
        T* out = static_cast<T*>(y) + cell.bin * op.C;
        for_each_unrolled<A>(
            cell.first_channel, cell.last_channel, [&](auto lanes, auto unroll, int64_t c) {
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

template <typename T>
void bin_gradient(const RoiPoolOperands& op, const void* gradient, int64_t first, int64_t last,
                  void* shift_gradient, void* mask_gradient, void* scratch) {
  using A = Arithmetic<T>;
  A* dshift = static_cast<A*>(shift_gradient);
  A* dmask = static_cast<A*>(mask_gradient);
  const A* mask = static_cast<const A*>(op.mask);
  for_each_roi_cell<T>(
      op, first, last, scratch,
      [&](const Cell<A>& cell, const T* pixels, const RoiWindow& window) {
        const Taps<A> rows = cell.rows, columns = cell.columns;
        const T* g = static_cast<const T*>(gradient) + cell.bin * op.C;
        // Products of g with the pooled value and with its derivatives.
        A value = A(0), dy = A(0), dx = A(0);
        for_each_unrolled<A>(
            cell.first_channel, cell.last_channel, [&](auto lanes, auto unroll, int64_t c) {
              constexpr int L = decltype(lanes)::value, U = decltype(unroll)::value;
              Vec<A, L> values = {}, along_y = {}, along_x = {};
              Vec<A, L> weight[U];
#pragma GCC unroll 4
              for (int u = 0; u < U; ++u) weight[u] = load<L>(g + c + u * L);
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
        const A factor = mask ? mask[cell.bin] : A(1);
        if (dshift) {
          dshift[2 * cell.shift] = cell.defined ? factor * dy : A(0);
          dshift[2 * cell.shift + 1] = cell.defined ? factor * dx : A(0);
        }
        if (dmask) dmask[cell.bin] = (cell.first_channel ? dmask[cell.bin] : A(0)) + value;
      });
}

// Adds to `sums`, whose pixels are `stride` apart and begin with the block's channels.
template <typename T>
void add_map_gradient(const RoiPoolOperands& op, const T* g, const RoiMapBlock& block,
                      Arithmetic<T>* sums, int64_t stride, void* scratch) {
  using A = Arithmetic<T>;
  const A* mask = static_cast<const A*>(op.mask);
  const RoiWindow window = window_of(op, block.image, block.level);
  const Part part = part_of(op, block);
  for (int64_t roi = block.image * op.B; roi < (block.image + 1) * op.B; ++roi) {
    if (op.levels[roi] != block.level) continue;
    for_each_cell<A>(op, window, part, roi, scratch, [&](const Cell<A>& cell) {
      const Taps<A> rows = cell.rows, columns = cell.columns;
      if (rows.count == 0 || columns.count == 0) return;
      const A factor = mask ? mask[cell.bin] : A(1);
      const int64_t first = clamp(cell.first_channel, block.first_channel, block.last_channel);
      const int64_t last = clamp(cell.last_channel, block.first_channel, block.last_channel);
      for_each_unrolled<A>(first, last, [&](auto lanes, auto unroll, int64_t c) {
        constexpr int L = decltype(lanes)::value, U = decltype(unroll)::value;
        Vec<A, L> gradient[U];
        const T* in = g + cell.bin * op.C + c;
#pragma GCC unroll 4
        for (int u = 0; u < U; ++u) gradient[u] = factor * load<L>(in + u * L);
        for (int64_t r = 0; r < rows.count; ++r) {
          A* line = sums + (rows.data[r].pixel - block.first_row) * window.row * stride +
                    (c - block.first_channel);
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

int64_t sums_stride(int64_t channels) { return channels + kSumsPadding; }

template <typename T>
void map_gradient(const RoiPoolOperands& op, const void* g, const RoiMapBlock& block,
                  void* scratch) {
  using A = Arithmetic<T>;
  constexpr bool in_place = sizeof(T) == sizeof(A);
  const RoiMap& map = op.maps[block.level];
  const int64_t channels = block.last_channel - block.first_channel;
  const int64_t pixels = (block.last_row - block.first_row) * map.W;
  const int64_t plane = block.image * op.group_h * op.group_w + block.group;
  T* gradient = static_cast<T*>(map.gradient) + (plane * map.H + block.first_row) * map.W * op.C +
                block.first_channel;
  A* sums;
  if constexpr (in_place) {
    sums = gradient;
  } else {
    sums = reinterpret_cast<A*>(static_cast<char*>(scratch) + taps_bytes<A>(op));
  }
  const int64_t stride = in_place ? op.C : sums_stride(channels);
  for (int64_t k = 0; k < pixels; ++k) {
    std::memset(sums + k * stride, 0, channels * sizeof(A));
  }
  add_map_gradient<T>(op, static_cast<const T*>(g), block, sums, stride, scratch);
  if constexpr (!in_place) {
    store_sums(sums, stride, pixels, channels, gradient, op.C);
  }
}

template <typename T>
int64_t scratch_bytes(const RoiPoolOperands& op, int64_t pixels, int64_t channels) {
  using A = Arithmetic<T>;
  const bool in_place = sizeof(T) == sizeof(A);
  return taps_bytes<A>(op) + (in_place ? 0 : pixels * sums_stride(channels) * sizeof(A));
}

template <typename T>
constexpr RoiPoolKernels kKernels = {scratch_bytes<T>, forward<T>, bin_gradient<T>,
                                     map_gradient<T>, kBlockVectors * kLanes<Arithmetic<T>>};

}  // namespace
}  // namespace XLA_OPS_ISA

XLA_OPS_EXPORT(RoiPoolKernels, roi_pool_kernels, kKernels<float>, kKernels<double>, kKernels<Bf16>,
               kKernels<F16>);

}  // namespace xla_ops
