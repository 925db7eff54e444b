// Patches of output positions as blocks of threads, and where their samples lie.
#ifndef XLA_OPS_DEFORM_CONV_CUDA_TILE_H_
#define XLA_OPS_DEFORM_CONV_CUDA_TILE_H_

#include <type_traits>

#include "deform_conv/bilinear.h"
#include "deform_conv/cuda/kernels.h"
#include "deform_conv/tuning.h"
#include "simt/element.h"
#include "simt/simt.h"

namespace xla_ops {
namespace cuda {

// See columns_gradient_type().
template <typename T>
using ColumnsGradient = std::conditional_t<std::is_same_v<T, F16>, float, T>;

// Output positions of a block.
constexpr int kPatch = kSide * kSide;

struct Tiling {
  int patch_rows, patch_columns;  // patches of an image
  int taps;                       // of a run
  int runs;                       // of an offset group
  int slab;                       // channels of an offset group that a block takes
  int slabs;                      // of an offset group
  unsigned blocks_of_slab;
  int64_t blocks;
};

// Slabs are whole runs of `least` channels, and all channels where that is 0.
inline Tiling tile(const DeformConvGeometry& g, int least = 0) {
  Tiling t;
  t.patch_rows = static_cast<int>((g.P + kSide - 1) / kSide);
  t.patch_columns = static_cast<int>((g.Q + kSide - 1) / kSide);
  const int64_t patches = g.N * t.patch_rows * t.patch_columns * g.G;
  int64_t taps = g.taps() * patches / kManyBlocks;
  taps = taps < 1 ? 1 : taps;
  taps = taps < g.taps() ? taps : g.taps();
  t.taps = static_cast<int>(taps < kMaxTaps ? taps : kMaxTaps);
  t.runs = static_cast<int>((g.taps() + t.taps - 1) / t.taps);
  t.blocks = patches * t.runs;
  t.slab = static_cast<int>(g.offset_group_channels());
  t.slabs = 1;
  if (least > 0 && t.slab > 0 && t.blocks > 0 && t.blocks < kManyBlocks) {
    const int runs = (t.slab + least - 1) / least;
    const int64_t wanted = (kManyBlocks + t.blocks - 1) / t.blocks;
    t.slab = static_cast<int>((runs + wanted - 1) / wanted) * least;
    t.slabs = static_cast<int>((g.offset_group_channels() + t.slab - 1) / t.slab);
  }
  t.blocks_of_slab = static_cast<unsigned>(t.blocks);
  t.blocks *= t.slabs;
  return t;
}

// The patch of a block.
struct Tile {
  int64_t image;
  int row, column;  // first position
  int offset_group;
  int tap, taps;  // first tap, number of taps
  int slab;       // first channel of the offset group

  // Runs and groups go fastest: blocks that run together read the same pixels.
  __device__ __forceinline__ Tile(const DeformConvGeometry& g, const Tiling& t) {
    unsigned rest = blockIdx.x;
    slab = static_cast<int>(rest / t.blocks_of_slab) * t.slab;
    rest %= t.blocks_of_slab;
    tap = static_cast<int>(rest % t.runs) * t.taps;
    taps = static_cast<int>(g.taps()) - tap;
    taps = taps < t.taps ? taps : t.taps;
    rest /= t.runs;
    offset_group = static_cast<int>(rest % static_cast<unsigned>(g.G));
    rest /= static_cast<unsigned>(g.G);
    column = static_cast<int>(rest % t.patch_columns) * kSide;
    rest /= t.patch_columns;
    row = static_cast<int>(rest % t.patch_rows) * kSide;
    image = rest / t.patch_rows;
  }

  __device__ __forceinline__ int samples() const { return taps * kPatch; }

  // Sample number i of the patch.
  struct Place {
    int row, column, tap;
    bool inside;  // of the output
  };
  __device__ __forceinline__ Place place(const DeformConvGeometry& g, int i) const {
    Place p;
    p.row = row + i % kPatch / kSide;
    p.column = column + i % kSide;
    p.tap = tap + i / kPatch;
    p.inside = p.row < g.P && p.column < g.Q;
    return p;
  }
  __device__ __forceinline__ int64_t position(const DeformConvGeometry& g, const Place& p) const {
    return (image * g.P + p.row) * g.Q + p.column;
  }
};

// L lanes share a sample, and each thread has so many places of the patch, the same ones for
// every tap.
template <int L>
constexpr int kPlaces = kPatch * L / kThreads;

template <int L>
__device__ __forceinline__ int place_of_thread(int s) {
  static_assert(kPlaces<L> * kThreads == kPatch * L && simt::kWarp % L == 0);
  return static_cast<int>(threadIdx.x) / L + s * (kThreads / L);
}

// Number of that place in the output of its image, or -1 outside.
template <int L>
__device__ __forceinline__ int position_of_thread(const DeformConvGeometry& g, const Tile& tile,
                                                  int s) {
  const auto place = tile.place(g, place_of_thread<L>(s));
  return place.inside ? place.row * static_cast<int>(g.Q) + place.column : -1;
}

// Runs of V channels of four pixels, zeros for those outside the map (-1). `map` points to
// the channels of the first pixel of `width`.
template <int V, typename T>
__device__ __forceinline__ void load_corners(const T* map, const int32_t pixel[4], int width,
                                             Held<T, V> corner[4]) {
#pragma unroll
  for (int q = 0; q < 4; ++q) {
    corner[q] = Held<T, V>{};
    if (pixel[q] >= 0) {
      corner[q] = *reinterpret_cast<const Held<T, V>*>(map + int64_t{pixel[q]} * width);
    }
  }
}

// Number of a sample in mask, and of its pair in offset.
__device__ __forceinline__ int64_t sample_number(const DeformConvGeometry& g, int64_t position,
                                                 int offset_group, int tap) {
  return (position * g.G + offset_group) * g.taps() + tap;
}

// Corners of the sample of one tap at (row, column) of a chunk; `offset` is its pair.
template <typename A>
__device__ __forceinline__ Corners<A, int32_t> find_corners(const DeformConvGeometry& g,
                                                            int64_t first_row, int row, int column,
                                                            int tap, const A* offset) {
  A shift[2];
  load<2>(offset, shift);
  const int kernel_width = static_cast<int>(g.S);
  const int64_t y = (first_row + row) * g.stride_h - g.pad_top + tap / kernel_width * g.dilation_h;
  const int64_t x = column * g.stride_w - g.pad_left + tap % kernel_width * g.dilation_w;
  return zero_padded_corners<A, int32_t, A>(static_cast<A>(y) + shift[0],
                                            static_cast<A>(x) + shift[1],
                                            static_cast<int32_t>(g.H), static_cast<int32_t>(g.W));
}

// Channel c of tap 0 within the columns of a position.
__device__ __forceinline__ int64_t column_of(const DeformConvGeometry& g, int c) {
  if (g.groups == 1) return c;
  const int width = static_cast<int>(g.group_channels());
  return int64_t{c / width} * g.taps() * width + c % width;
}

// Whether runs of V channels lie in one group each, and begin at whole runs.
inline bool divides_channels(int V, const DeformConvGeometry& g) {
  return g.group_channels() % V == 0 && g.offset_group_channels() % V == 0;
}

}  // namespace cuda
}  // namespace xla_ops

// return function<T, L, V>(...) with the lanes that an offset group keeps busy.
#define XLA_OPS_RETURN_FOR_LANES(geometry, T, V, function, ...) \
  return (geometry).offset_group_channels() > kFewLanes * V     \
             ? function<T, kLanes, V>(__VA_ARGS__)              \
             : function<T, kFewLanes, V>(__VA_ARGS__)

// return function<T, V>(op, ...) for the elements of `op` and the widest run that fits.
#define XLA_OPS_RETURN_FOR_RUNS(type, geometry, function, ...)                 \
  switch (type) {                                                              \
    case ElementType::kF32:                                                    \
      return divides_channels(4, geometry) ? function<float, 4>(__VA_ARGS__)   \
                                           : function<float, 1>(__VA_ARGS__);  \
    case ElementType::kF64:                                                    \
      return divides_channels(2, geometry) ? function<double, 2>(__VA_ARGS__)  \
                                           : function<double, 1>(__VA_ARGS__); \
    case ElementType::kBF16:                                                   \
      return divides_channels(8, geometry) ? function<Bf16, 8>(__VA_ARGS__)    \
                                           : function<Bf16, 1>(__VA_ARGS__);   \
    case ElementType::kF16:                                                    \
      return divides_channels(8, geometry) ? function<F16, 8>(__VA_ARGS__)     \
                                           : function<F16, 1>(__VA_ARGS__);    \
  }                                                                            \
  return "unknown element type"

#endif  // XLA_OPS_DEFORM_CONV_CUDA_TILE_H_
