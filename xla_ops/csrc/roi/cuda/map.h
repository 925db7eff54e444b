// Maps of a pyramid as kernels see them.
#ifndef XLA_OPS_ROI_CUDA_MAP_H_
#define XLA_OPS_ROI_CUDA_MAP_H_

#include "roi/cuda/pool_kernels.h"
#include "roi/tuning.h"
#include "simt/element.h"
#include "simt/simt.h"

namespace xla_ops {
namespace cuda {

struct RoiLevels {
  RoiMap map[kMaxRoiLevels];
};

inline RoiLevels roi_levels(const RoiMap* maps, int64_t count) {
  RoiLevels levels{};
  for (int64_t l = 0; l < count; ++l) levels.map[l] = maps[l];
  return levels;
}

// The part of one image's map that a RoI reads.
struct RoiWindow {
  int level;  // of the map
  int64_t height,
      width;  // of the part that counts; 0 where the RoI's level is no map's
};

__device__ __forceinline__ int64_t clamp_size(int64_t value, int64_t most) {
  return value < 0 ? 0 : value > most ? most : value;
}

// `level` is a map's.
__device__ __forceinline__ RoiWindow map_window(const RoiLevels& levels, const int32_t* map_sizes,
                                                int64_t image, int level, int64_t num_levels) {
  const int32_t* size = map_sizes + (image * num_levels + level) * 2;
  return {level, clamp_size(size[0], levels.map[level].H),
          clamp_size(size[1], levels.map[level].W)};
}

__device__ __forceinline__ RoiWindow roi_window(const RoiLevels& levels, const int32_t* map_sizes,
                                                int64_t image, int level, int64_t num_levels) {
  if (level < 0 || level >= num_levels) return {0, 0, 0};
  return map_window(levels, map_sizes, image, level, num_levels);
}

template <typename A>
__device__ __forceinline__ bool is_finite_box(const A* box) {
  // A sum of zeros, or NaN.
  return (box[0] - box[0]) + (box[1] - box[1]) + (box[2] - box[2]) + (box[3] - box[3]) == A(0);
}

// Warps of a block that work on their own.
constexpr int kRoiWarps = kRoiThreads / simt::kWarp;
static_assert(kRoiWarps == kTileSide, "a warp has a row of a tile");

inline int64_t blocks_of_warps(int64_t warps) { return (warps + kRoiWarps - 1) / kRoiWarps; }

}  // namespace cuda
}  // namespace xla_ops

// return function<T, V>(...) for the elements of that type and the widest run
// that divides `channels`.
#define XLA_OPS_RETURN_FOR_ROI_RUNS(type, channels, function, ...)                                \
  switch (type) {                                                                                 \
    case ElementType::kF32:                                                                       \
      return (channels) % 4 == 0 ? function<float, 4>(__VA_ARGS__)                                \
                                 : function<float, 1>(__VA_ARGS__);                               \
    case ElementType::kF64:                                                                       \
      return (channels) % 2 == 0 ? function<double, 2>(__VA_ARGS__)                               \
                                 : function<double, 1>(__VA_ARGS__);                              \
    case ElementType::kBF16:                                                                      \
      return (channels) % 8 == 0 ? function<Bf16, 8>(__VA_ARGS__)                                 \
                                 : function<Bf16, 1>(__VA_ARGS__);                                \
    case ElementType::kF16:                                                                       \
      return (channels) % 8 == 0 ? function<F16, 8>(__VA_ARGS__) : function<F16, 1>(__VA_ARGS__); \
  }                                                                                               \
  return "unknown element type"

#endif  // XLA_OPS_ROI_CUDA_MAP_H_
