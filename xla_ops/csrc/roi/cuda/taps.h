// The bins of RoIs in the kernels: which pixels they read (../axis.h),
// found by few threads for all.
#ifndef XLA_OPS_ROI_CUDA_TAPS_H_
#define XLA_OPS_ROI_CUDA_TAPS_H_

#include "roi/cuda/map.h"

namespace xla_ops {
namespace cuda {

// Taps at the pixels [first, last) alone.
template <typename A>
struct TapList {
  AxisTap<A>* data;
  int64_t first, last;

  __device__ __forceinline__ AxisTap<A>& operator[](int64_t i) { return data[i]; }
};

template <typename A>
__device__ __forceinline__ int64_t add_tap(TapList<A>& taps, int64_t count, AxisTap<A> tap) {
  if (tap.pixel < taps.first || tap.pixel >= taps.last) return count;
  return ::xla_ops::add_tap(taps.data, count, tap);
}

// The pixels [first, last) from the first tap to the last.
template <typename A>
struct TapBounds {
  int64_t first = INT64_MAX, last = 0;
  AxisTap<A> none;

  __device__ __forceinline__ AxisTap<A>& operator[](int64_t) { return none; }
};

template <typename A>
__device__ __forceinline__ int64_t add_tap(TapBounds<A>& taps, int64_t, AxisTap<A> tap) {
  taps.first = tap.pixel < taps.first ? tap.pixel : taps.first;
  taps.last = tap.pixel >= taps.last ? tap.pixel + 1 : taps.last;
  return 0;
}

// One bin, or where shifts differ by class one class of a bin.
struct RoiCell {
  int64_t roi, bin,
      shift;  // numbers of the RoI, of the bin and of the shift among all
  int i, j;
  int64_t first_channel, last_channel;  // of the bin
  bool defined;                         // else it is NaN, and there are no taps
};

__device__ __forceinline__ int64_t shift_classes(const RoiPoolOperands& op) {
  return op.shift ? op.classes : 1;
}

template <typename A>
__device__ __forceinline__ RoiCell roi_cell(const RoiPoolOperands& op, int64_t roi, int i, int j,
                                            int64_t k) {
  const int64_t classes = shift_classes(op);
  RoiCell cell;
  cell.roi = roi;
  cell.i = i;
  cell.j = j;
  cell.bin = (roi * op.h + i) * op.w + j;
  cell.shift = cell.bin * classes + k;
  cell.first_channel = op.C / classes * k;
  cell.last_channel = cell.first_channel + op.C / classes;
  cell.defined = is_finite_box(static_cast<const A*>(op.boxes) + roi * 4);
  if (op.shift) {
    const A* shift = static_cast<const A*>(op.shift) + 2 * cell.shift;
    cell.defined = cell.defined && shift[0] == shift[0] && shift[1] == shift[1];
  }
  return cell;
}

// Taps along axis 0 (rows) or 1 (columns), which has `size` pixels, of a
// defined cell with bin `index` of that axis.
template <typename A, typename Taps>
__device__ __forceinline__ int64_t cell_taps(const RoiPoolOperands& op, int64_t roi,
                                             int64_t shift_number, int axis, int index,
                                             int64_t size, Taps&& taps) {
  const A* box = static_cast<const A*>(op.boxes) + roi * 4;
  const int64_t bins = axis ? op.w : op.h;
  const A extent = box[2 + axis];
  const RoiAxis<A> line{box[axis], extent, extent / static_cast<A>(bins), bins};
  const A shift = op.shift ? static_cast<const A*>(op.shift)[2 * shift_number + axis] : A(0);
  return bin_taps(op.sampling, op.samples, line, index, shift, size, taps);
}

// A bin's taps along one axis, at most, but no more than kMaxWarpTaps.
inline int tap_capacity(const RoiPoolOperands& op) {
  int64_t taps = 0;
  for (int64_t l = 0; l < op.L; ++l) {
    taps = op.maps[l].H > taps ? op.maps[l].H : taps;
    taps = op.maps[l].W > taps ? op.maps[l].W : taps;
  }
  // Samples in order along the axis leave one tap for a pixel.
  if (op.samples > 0 && 2 * op.samples < taps) taps = 2 * op.samples;
  return static_cast<int>(taps < kMaxWarpTaps ? taps : kMaxWarpTaps);
}

// The two ways in which a warp asks for taps, not inlined: few lanes run them,
// and all would keep registers for them.
template <typename A>
__device__ SIMT_NOINLINE int list_taps(const RoiPoolOperands& op, int64_t roi,
                                       int64_t shift_number, int axis, int index, int64_t size,
                                       AxisTap<A>* data, int64_t first, int64_t last) {
  TapList<A> taps{data, first, last};
  return static_cast<int>(cell_taps<A>(op, roi, shift_number, axis, index, size, taps));
}

template <typename A>
__device__ SIMT_NOINLINE PixelRange range_of_taps(const RoiPoolOperands& op, int64_t roi,
                                                  int64_t shift_number, int axis, int index,
                                                  int64_t size) {
  TapBounds<A> bounds;
  cell_taps<A>(op, roi, shift_number, axis, index, size, bounds);
  return {bounds.last > 0 ? bounds.first : 0, bounds.last};
}

// The taps of a warp's cell, in shared memory. Where there may be more than
// fit, they come a piece of the map at a time.
template <typename A>
class WarpTaps {
 public:
  // `list` is the warp's, 2 * capacity long.
  __device__ __forceinline__ WarpTaps(const RoiPoolOperands& op, int capacity, AxisTap<A>* list)
      : op_(op),
        list_(list),
        capacity_(capacity),
        may_be_more_(op.samples == 0 || 2 * op.samples > capacity) {}

  // All lanes call it.
  __device__ __forceinline__ void find(const RoiCell& cell, const RoiWindow& window) {
    cell_ = cell;
    height_ = cell.defined ? window.height : 0;
    width_ = cell.defined ? window.width : 0;
    rows_ = {0, height_};
    columns_ = {0, width_};
    pieces_ = false;
    if (may_be_more_ && (height_ > capacity_ || width_ > capacity_)) {
      const int axis = lane() % 2;
      const PixelRange mine =
          range_of_taps<A>(op_, cell.roi, cell.shift, axis, index(axis), axis ? width_ : height_);
      rows_ = range_of(0, mine);
      columns_ = range_of(1, mine);
      pieces_ = rows_.end - rows_.begin > capacity_ || columns_.end - columns_.begin > capacity_;
    }
    if (!pieces_) fill(rows_, columns_);
  }

  // Calls f(rows, their number, columns, their number); all lanes call it.
  template <typename F>
  __device__ __forceinline__ void for_each_piece(F&& f) {
    PixelRange rows = rows_, columns = columns_;
    do {
      if (pieces_) {
        rows.end = least(rows.begin + capacity_, rows_.end);
        columns.end = least(columns.begin + capacity_, columns_.end);
        fill(rows, columns);
      }
      f(list_, row_count_, list_ + capacity_, column_count_);
      columns.begin = columns.end;
      if (columns.begin >= columns_.end) {
        columns.begin = columns_.begin;
        rows.begin = rows.end;
      }
    } while (rows.begin < rows_.end);
  }

 private:
  static __device__ __forceinline__ int lane() { return threadIdx.x % simt::kWarp; }
  static __device__ __forceinline__ int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

  __device__ __forceinline__ int index(int axis) const { return axis ? cell_.j : cell_.i; }

  static __device__ __forceinline__ PixelRange range_of(int lane, PixelRange mine) {
    return {__shfl_sync(simt::kFullMask, mine.begin, lane),
            __shfl_sync(simt::kFullMask, mine.end, lane)};
  }

  __device__ __forceinline__ void fill(PixelRange rows, PixelRange columns) {
    __syncwarp();  // All have read what was there.
    const int axis = lane();
    int count = 0;
    if (axis < 2 && cell_.defined) {
      count = list_taps<A>(op_, cell_.roi, cell_.shift, axis, index(axis), axis ? width_ : height_,
                           list_ + axis * capacity_, axis ? columns.begin : rows.begin,
                           axis ? columns.end : rows.end);
    }
    row_count_ = __shfl_sync(simt::kFullMask, count, 0);
    column_count_ = __shfl_sync(simt::kFullMask, count, 1);
    __syncwarp();
  }

  const RoiPoolOperands& op_;
  AxisTap<A>* const list_;
  const int capacity_;
  const bool may_be_more_;
  RoiCell cell_;
  int64_t height_, width_;
  PixelRange rows_, columns_;  // that taps lie in
  int row_count_ = 0, column_count_ = 0;
  bool pieces_;
};

}  // namespace cuda
}  // namespace xla_ops

#endif  // XLA_OPS_ROI_CUDA_TAPS_H_
