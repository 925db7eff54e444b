// RoI pooling along one axis: which pixels a bin reads, with which weights. The mean
// over a bin's grid of samples, or of whole pixels, is separable, so that a bin is the
// sum of row weight * column weight * pixel, and a pixel that several samples read is
// read once. Shared by the CPU and the CUDA kernels.

#ifndef XLA_OPS_ROI_AXIS_H_
#define XLA_OPS_ROI_AXIS_H_

#include <cstdint>

#include "inline.h"
#include "roi/bin.h"

namespace xla_ops {

// What a bin is the mean of.
enum class RoiSampling {
  kGrid,    // bilinear samples: axis_taps()
  kParts,   // bilinear samples of deform_ps_roi_pool: part_taps()
  kPixels,  // whole pixels: pixel_taps()
};

// One axis of a RoI: `bins` bins, each `bin` long.
template <typename A>
struct RoiAxis {
  A start, extent, bin;
  int64_t bins;
};

// A pixel of an axis, its weight in a bin, and the derivative of the weight with respect
// to the bin's position.
template <typename A>
struct AxisTap {
  int64_t pixel;
  A weight;
  A slope;
};

// floor(v) for |v| < 2^62; the caller has checked the range.
template <typename T>
XLA_OPS_INLINE int64_t floor_index(T v) {
  const int64_t i = static_cast<int64_t>(v);
  return i - (v < static_cast<T>(i) ? 1 : 0);
}

// Samples that a bin visits at most along an axis of `size` pixels. Adaptive ones
// (sampling_ratio 0) that lie on the map are at least half a pixel apart, or are one.
XLA_OPS_INLINE int64_t max_axis_samples(int64_t sampling_ratio, int64_t size) {
  return sampling_ratio > 0 ? sampling_ratio : 2 * size + 6;
}

XLA_OPS_INLINE int64_t max_axis_taps(int64_t sampling_ratio, int64_t size) {
  return 2 * max_axis_samples(sampling_ratio, size);
}

// `taps` below is an array, or anything else with an add_tap() that returns the number of
// its taps and with taps[i].
//
// Adds a tap, or adds to the tap of that pixel: samples are in order along the axis, so
// it is one of the last three.
template <typename A>
XLA_OPS_INLINE int64_t add_tap(AxisTap<A>* taps, int64_t count, AxisTap<A> tap) {
  for (int64_t k = count - 1; k >= 0 && k >= count - 3; --k) {
    if (taps[k].pixel == tap.pixel) {
      taps[k].weight += tap.weight;
      taps[k].slope += tap.slope;
      return count;
    }
  }
  taps[count] = tap;
  return count + 1;
}

// Taps of a bin of roi_align, deform_roi_pool or ps_roi_align that begins at `start`
// (finite or infinite) and is `extent` long, on an axis of `size` pixels. Returns their number, at
// most max_axis_taps().
//
// A sample at -1 <= position <= size counts and is moved to [0, size - 1], as in
// RoIAlign; the others count as 0, so the divisor is the number of all samples. The
// slope is the right-hand one at pixels, and 0 where the sample was moved.
template <typename A, typename Taps>
XLA_OPS_INLINE int64_t axis_taps(A start, A extent, int64_t sampling_ratio, int64_t size,
                                 Taps&& taps) {
  A count = static_cast<A>(sampling_ratio), first = A(0);
  int64_t visited = sampling_ratio;
  if (sampling_ratio == 0) {
    count = extent > A(0) ? __builtin_ceil(extent) : A(0);
    if (!(count > A(0))) return 0;
    // One before the first sample on the map.
    first = __builtin_floor((A(-1) - start) / (extent / count) - A(0.5));
    first = first < A(0) ? A(0) : first > count ? count : first;
    const A most = static_cast<A>(max_axis_samples(0, size));
    visited = static_cast<int64_t>(count - first < most ? count - first : most);
  }
  const A share = A(1) / count;
  int64_t taps_count = 0;
  for (int64_t k = 0; k < visited; ++k) {
    const A sample = first + static_cast<A>(k);
    const A position = start + (sample + A(0.5)) * extent / count;
    const bool inside = position >= A(-1) && position <= static_cast<A>(size) && size > 0;
    if (!inside) continue;
    const int64_t low = floor_index(position);
    if (low < 0 || low + 1 >= size) {
      taps_count = add_tap(taps, taps_count, AxisTap<A>{low < 0 ? 0 : size - 1, share, A(0)});
    } else {
      const A fraction = position - static_cast<A>(low);
      taps_count = add_tap(taps, taps_count, AxisTap<A>{low, (A(1) - fraction) * share, -share});
      taps_count = add_tap(taps, taps_count, AxisTap<A>{low + 1, fraction * share, share});
    }
  }
  return taps_count;
}

// Taps of a bin of deform_ps_roi_pool that begins at `start`, as above: `samples`
// bilinear samples from the bin's very beginning. Returns at most 2 * samples.
//
// A sample at -0.5 <= position <= size - 0.5 counts and is moved to [0, size - 1]; the
// divisor is the number of those that count. The slope is 0 at pixels, as in MSRA's
// code, which takes the pixels beside a sample by floor and ceil.
template <typename A, typename Taps>
XLA_OPS_INLINE int64_t part_taps(A start, A extent, int64_t samples, int64_t size, Taps&& taps) {
  const A last = static_cast<A>(size - 1);
  int64_t counted = 0, count = 0;
  for (int64_t k = 0; k < samples; ++k) {
    const A position = start + static_cast<A>(k) * extent / static_cast<A>(samples);
    const bool inside = position >= A(-0.5) && position <= last + A(0.5) && size > 0;
    if (!inside) continue;
    ++counted;
    const A moved = position < A(0) ? A(0) : position > last ? last : position;
    const int64_t low = static_cast<int64_t>(moved);
    const A fraction = moved - static_cast<A>(low);
    if (fraction == A(0)) {
      count = add_tap(taps, count, AxisTap<A>{low, A(1), A(0)});
    } else {
      count = add_tap(taps, count, AxisTap<A>{low, A(1) - fraction, A(-1)});
      count = add_tap(taps, count, AxisTap<A>{low + 1, fraction, A(1)});
    }
  }
  for (int64_t k = 0; k < count; ++k) {
    taps[k].weight /= static_cast<A>(counted);
    taps[k].slope /= static_cast<A>(counted);
  }
  return count;
}

// Taps of bin `index` of ps_roi_pool: the mean of the touched_pixels(). Returns at most
// `size`.
template <typename A, typename Taps>
XLA_OPS_INLINE int64_t pixel_taps(A start, A extent, int64_t bins, int64_t index, int64_t size,
                                  Taps&& taps) {
  const PixelRange range = touched_pixels(start, extent, index, bins, size);
  const A share = A(1) / static_cast<A>(range.end - range.begin);
  int64_t count = 0;
  for (int64_t pixel = range.begin; pixel < range.end; ++pixel) {
    count = add_tap(taps, count, AxisTap<A>{pixel, share, A(0)});
  }
  return count;
}

// Taps of bin `index` of an axis of a RoI that is moved by `shift`.
template <typename A, typename Taps>
XLA_OPS_INLINE int64_t bin_taps(RoiSampling sampling, int64_t samples, const RoiAxis<A>& axis,
                                int64_t index, A shift, int64_t size, Taps&& taps) {
  const A start = axis.start + static_cast<A>(index) * axis.bin + shift;
  switch (sampling) {
    case RoiSampling::kGrid:
      return axis_taps(start, axis.bin, samples, size, taps);
    case RoiSampling::kParts:
      return part_taps(start, axis.bin, samples, size, taps);
    case RoiSampling::kPixels:
      return pixel_taps(axis.start, axis.extent, axis.bins, index, size, taps);
  }
  __builtin_unreachable();
}

}  // namespace xla_ops

#endif  // XLA_OPS_ROI_AXIS_H_
