// The forward pass of deform_conv2d in one kernel: samples are multiplied on tensor cores
// where they are made, and never written to memory.
//
// A block computes a square patch of output positions, as wide as one tile of output
// channels can be, because every tile samples anew. Its threads first find the corners of
// the patch's samples of an offset group and a run of taps. Then it walks over tiles of
// samples, 128 bytes of channels of each position: all taps of the same channels first, so
// that the L1 cache holds the lines that neighbours and taps share. While a tile is
// multiplied, the next one's corners are on their way to registers and its weights to shared
// memory.
#include "deform_conv/cuda/tile.h"
#include "simt/simt_matrix.h"

namespace xla_ops {
namespace cuda {
namespace {

// A tile of samples has a row for each position of the patch. Matrix products go 32 bytes deep.
constexpr int kSlices = kRowRuns / 2;

// Channels of a tile of samples.
template <typename T>
constexpr int kDepth = kRowRuns * kRun<T>;

struct ModulatedCorners {
  int32_t pixel[4];
  float weight[4];
};

// How the warps of a block share kWidth output channels of a patch: each computes 32
// positions, and 64 channels where there are enough.
template <int kWidth>
struct Warps {
  static constexpr int kColumns = kWidth > 128 ? 4 : 2;
  static constexpr int kThreads = 2 * kColumns * simt::kWarp;
  static constexpr int kWarpWidth = kWidth / kColumns;
  static constexpr int kTiles = kWarpWidth / 8;  // products side by side
  static constexpr int kBlocksPerProcessor = fused_blocks(kWidth);
};

// Shared memory. Runs of a row are stored in another order in each row, so that warps find
// them in different banks.
template <typename T, int kWidth>
struct Shared {
  ModulatedCorners corners[kCornerTaps][kPatch];
  Words samples[2][kPatch][kRowRuns];
  Words weights[2][kDepth<T>][kWidth / kRun<T>];

  // When all is multiplied, the patch's output takes the place of the weights.
  using Output = Words[kPatch][kWidth / kRun<T>];
  static_assert(sizeof(Output) <= sizeof(weights));
  __device__ __forceinline__ Output& output() { return reinterpret_cast<Output&>(weights); }
};

__device__ __forceinline__ int stored_sample_run(int row, int run) { return run ^ row % 8; }

template <typename T>
__device__ __forceinline__ int stored_weight_run(int row, int run) {
  return run ^ (sizeof(T) == 2 ? row % 8 : row % 4 * 2);
}

// The part of the output that a block computes.
struct Patch {
  int64_t image;
  int row, column;  // first position
  int64_t output;   // first channel

  // Output channels go fastest: blocks that run together sample the same pixels.
  __device__ __forceinline__ Patch(const DeformConvGeometry& g, int width) {
    const unsigned tiles = static_cast<unsigned>((g.K + width - 1) / width);
    const unsigned rows = static_cast<unsigned>((g.P + kSide - 1) / kSide);
    const unsigned columns = static_cast<unsigned>((g.Q + kSide - 1) / kSide);
    unsigned rest = blockIdx.x;
    output = int64_t{rest % tiles} * width;
    rest /= tiles;
    column = static_cast<int>(rest % columns) * kSide;
    rest /= columns;
    row = static_cast<int>(rest % rows) * kSide;
    image = rest / rows;
  }

  // Number of position i of the patch in the output, or -1.
  __device__ __forceinline__ int64_t position(const DeformConvGeometry& g, int i) const {
    const int p = row + i / kSide, q = column + i % kSide;
    return p < g.P && q < g.Q ? (image * g.P + p) * g.Q + q : -1;
  }
};

// Copies a run from memory, of which `left` elements are there; zeros follow.
template <typename T, bool kWholeRuns>
__device__ __forceinline__ Words load_run(const T* from, int64_t left) {
  Words run{};
  if constexpr (kWholeRuns) {
    if (left > 0) run = *reinterpret_cast<const Words*>(from);
  } else {
#pragma unroll
    for (int i = 0; i < kRun<T>; ++i) {
      if (i >= left) continue;
      if constexpr (sizeof(T) == 2) {
        run.word[i / 2] |= uint32_t{from[i].bits} << i % 2 * 16;
      } else {
        run.word[i] = simt::bits_of(from[i]);
      }
    }
  }
  return run;
}

// Number of the kernel that an image is convolved with.
__device__ __forceinline__ int64_t kernel_of(const DeformConvGeometry& g, int64_t image) {
  return image / (g.N / g.kernels);
}

template <typename T, int kWidth, bool kWholeRuns>
struct FusedBlock {
  using W = Warps<kWidth>;
  static constexpr int kThreads = W::kThreads;
  static constexpr int kRuns = kPatch * kRowRuns / kThreads;  // of a thread, in a tile
  static constexpr int kParts = kRuns / kStagedRuns;

  const DeformConvGeometry& g;
  Shared<T, kWidth>& shared;
  const Patch patch;
  const T* image;    // x
  const T* weights;  // [R*S, C, K] of this image, from the patch's first output channel on
  const int width;   // C
  const int channels;

  // The tile that is fetched.
  int64_t first_channel;  // of the offset group
  int first_tap;          // of those whose corners are at hand
  int tap, channel;       // counted from there
  Words corner[kStagedRuns][4];

  __device__ __forceinline__ FusedBlock(const DeformConvGeometry& geometry,
                                        Shared<T, kWidth>& shared_memory, const T* x,
                                        const T* kernel)
      : g(geometry),
        shared(shared_memory),
        patch(geometry, kWidth),
        image(x + patch.image * g.H * g.W * g.C),
        weights(kernel + kernel_of(g, patch.image) * g.taps() * g.C * g.K + patch.output),
        width(static_cast<int>(g.C)),
        channels(static_cast<int>(g.offset_group_channels())) {}

  __device__ __forceinline__ void find_all_corners(int taps, int offset_group, const float* offset,
                                                   const float* mask) {
    for (int i = threadIdx.x; i < taps * kPatch; i += kThreads) {
      ModulatedCorners sample{{-1, -1, -1, -1}, {}};
      const int64_t position = patch.position(g, i % kPatch);
      if (position >= 0) {
        const int t = first_tap + i / kPatch;
        const int64_t number = sample_number(g, position, offset_group, t);
        const auto corners = find_corners(g, 0, patch.row + i % kPatch / kSide,
                                          patch.column + i % kSide, t, offset + 2 * number);
        const float m = mask ? mask[number] : 1.0f;
#pragma unroll
        for (int q = 0; q < 4; ++q) {
          sample.pixel[q] = corners.pixel[q];
          sample.weight[q] = corners.weight[q] * m;
        }
      }
      shared.corners[i / kPatch][i % kPatch] = sample;
    }
  }

  // Starts to bring the weights of the tile that is fetched.
  __device__ __forceinline__ void fetch_weights(int stage) {
    constexpr int kRowsAtOnce = kThreads * kRun<T> / kWidth;
    const int run = threadIdx.x % (kWidth / kRun<T>), first = threadIdx.x / (kWidth / kRun<T>);
    const int64_t left = g.K - patch.output - run * kRun<T>;
    const T* from = weights + ((first_tap + tap) * g.C + first_channel + channel + first) * g.K +
                    run * kRun<T>;
#pragma unroll
    for (int row = 0; row < kDepth<T>; row += kRowsAtOnce) {
      Words* to = &shared.weights[stage][row + first][stored_weight_run<T>(row + first, run)];
      const bool exists = channel + row + first < channels;
      if constexpr (kWholeRuns) {
        simt::start_copy(to, exists && left > 0 ? from : weights, exists && left > 0);
      } else {
        *to = load_run<T, false>(from, exists ? left : 0);
      }
      from += kRowsAtOnce * g.K;
    }
  }

  // Position of staged run i of a part; all runs of a thread are at the same channels.
  __device__ __forceinline__ static int row_of(int part, int i) {
    return ((part * kStagedRuns + i) * kThreads + static_cast<int>(threadIdx.x)) / kRowRuns;
  }
  __device__ __forceinline__ static int run_of_thread() { return threadIdx.x % kRowRuns; }

  __device__ __forceinline__ void fetch_corners(int part) {
    const int at = channel + run_of_thread() * kRun<T>;
    const T* from = image + first_channel + at;
#pragma unroll
    for (int i = 0; i < kStagedRuns; ++i) {
      const ModulatedCorners& sample = shared.corners[tap][row_of(part, i)];
#pragma unroll
      for (int q = 0; q < 4; ++q) {
        const int32_t pixel = sample.pixel[q];
        corner[i][q] = pixel < 0
                           ? Words{}
                           : load_run<T, kWholeRuns>(from + int64_t{pixel} * width, channels - at);
      }
    }
  }

  __device__ __forceinline__ void store_samples(int part, int stage) {
    const int run = run_of_thread();
    const int left = channels - channel - run * kRun<T>;
#pragma unroll
    for (int i = 0; i < kStagedRuns; ++i) {
      const int row = row_of(part, i);
      const ModulatedCorners& sample = shared.corners[tap][row];
      float value[kRun<T>] = {};
#pragma unroll
      for (int q = 0; q < 4; ++q) {
        const float weight = sample.weight[q];
#pragma unroll
        for (int k = 0; k < kRun<T>; ++k) value[k] += weight * element_of<T>(corner[i][q], k);
      }
      // The weight may be infinite; what is not there is zero all the same.
#pragma unroll
      for (int k = 0; k < kRun<T>; ++k) value[k] = (kWholeRuns ? 0 : k) < left ? value[k] : 0;
      Words words;
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        if constexpr (sizeof(T) == 2) {
          words.word[k] = to_word<T>(value[2 * k], value[2 * k + 1]);
        } else {
          words.word[k] = simt::to_tf32(value[k]);
        }
      }
      shared.samples[stage][row][stored_sample_run(row, run)] = words;
    }
  }

  // Output (m, n) of the warp: rows 16 m + ..., and columns of product n. Products of TF32
  // take every fourth column each: then weights of four products lie side by side.
  __device__ __forceinline__ void multiply(int stage, int slice,
                                           float sum[2][W::kTiles][4]) const {
    const int lane = threadIdx.x % simt::kWarp, warp = threadIdx.x / simt::kWarp;
    uint32_t a[2][4];
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      const int row = warp / W::kColumns * 32 + m * 16 + lane % 16;
      simt::load_matrices(
          &shared.samples[stage][row][stored_sample_run(row, 2 * slice + lane / 16)], a[m]);
    }
    const int first_run = warp % W::kColumns * (W::kWarpWidth / kRun<T>);
    if constexpr (sizeof(T) == 2) {
      const int row = slice * 16 + lane % 16;
#pragma unroll
      for (int n = 0; n < W::kTiles; n += 2) {
        uint32_t b[4];
        simt::load_matrices_transposed(
            &shared.weights[stage][row][stored_weight_run<T>(row, first_run + n + lane / 16)], b);
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          simt::multiply_add<T>(a[m], b, sum[m][n]);
          simt::multiply_add<T>(a[m], b + 2, sum[m][n + 1]);
        }
      }
    } else {
      const int row = slice * 8 + lane % 4;
#pragma unroll
      for (int n = 0; n < W::kTiles; n += 4) {
        const int run = stored_weight_run<T>(row, first_run + 2 * n + lane / 4);
        const Words low = shared.weights[stage][row][run];
        const Words high = shared.weights[stage][row + 4][run];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const uint32_t b[2] = {simt::to_tf32(simt::float_of(low.word[i])),
                                 simt::to_tf32(simt::float_of(high.word[i]))};
#pragma unroll
          for (int m = 0; m < 2; ++m) simt::multiply_add<T>(a[m], b, sum[m][n + i]);
        }
      }
    }
  }

  // Adds the products of an offset group with taps [first_tap, first_tap + taps).
  __device__ __forceinline__ void add_products(int taps, float sum[2][W::kTiles][4]) {
    tap = channel = 0;
    int filled = 0;  // slices of the tile that is multiplied
    for (int stage = 1;; stage ^= 1) {
      // Stage `stage` is multiplied, if filled, the other one filled.
      const bool more = channel < channels;
      if (filled > 0) {
        if constexpr (kWholeRuns) simt::wait_copies();
        __syncthreads();
      }
      if (more) fetch_weights(stage ^ 1);
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        if (more) fetch_corners(part);
#pragma unroll
        for (int slice = part * kSlices / kParts; slice < (part + 1) * kSlices / kParts; ++slice) {
          if (slice < filled) multiply(stage, slice, sum);
        }
        if (more) store_samples(part, stage ^ 1);
      }
      if (!more) return;
      const int left = channels - channel;
      filled = left < kDepth<T> ? (left + 2 * kRun<T> - 1) / (2 * kRun<T>) : kSlices;
      if (++tap == taps) {
        tap = 0;
        channel += kDepth<T>;
      }
    }
  }

  __device__ __forceinline__ void write(const float sum[2][W::kTiles][4], T* y) const {
    const int lane = threadIdx.x % simt::kWarp, warp = threadIdx.x / simt::kWarp;
    const int first_run = warp % W::kColumns * (W::kWarpWidth / kRun<T>);
    auto& output = shared.output();
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = warp / W::kColumns * 32 + m * 16 + half * 8 + lane / 4;
#pragma unroll
        for (int n = 0; n < W::kTiles; n += sizeof(T) == 2 ? 1 : 4) {
          if constexpr (sizeof(T) == 2) {
            output[row][stored_sample_run(row, first_run + n)].word[lane % 4] =
                to_word<T>(sum[m][n][2 * half], sum[m][n][2 * half + 1]);
          } else {
#pragma unroll
            for (int side = 0; side < 2; ++side) {
              Words words;
#pragma unroll
              for (int i = 0; i < 4; ++i) {
                words.word[i] = simt::bits_of(sum[m][n + i][2 * half + side]);
              }
              output[row][stored_sample_run(row, first_run + 2 * n + lane % 4 * 2 + side)] = words;
            }
          }
        }
      }
    }
    __syncthreads();
    constexpr int kRowsAtOnce = kThreads * kRun<T> / kWidth;
    const int run = threadIdx.x % (kWidth / kRun<T>);
    const int64_t k = patch.output + run * kRun<T>;
    for (int row = threadIdx.x / (kWidth / kRun<T>); row < kPatch; row += kRowsAtOnce) {
      const int64_t position = patch.position(g, row);
      if (position < 0 || k >= g.K) continue;
      const Words words = output[row][stored_sample_run(row, run)];
      T* to = y + position * g.K + k;
      if constexpr (kWholeRuns) {
        *reinterpret_cast<Words*>(to) = words;
      } else {
        for (int i = 0; i < kRun<T> && k + i < g.K; ++i) {
          to[i] = from_real<T>(element_of<T>(words, i));
        }
      }
    }
  }
};

template <typename T, int kWidth, bool kWholeRuns>
__global__ void __launch_bounds__(Warps<kWidth>::kThreads, Warps<kWidth>::kBlocksPerProcessor)
    fused_kernel(DeformConvGeometry g, const T* __restrict__ x, const float* __restrict__ offset,
                 const float* __restrict__ mask, const T* __restrict__ kernel, T* __restrict__ y) {
  using Block = FusedBlock<T, kWidth, kWholeRuns>;
  auto& shared = *simt::dynamic_shared<Shared<T, kWidth>>();
  Block block(g, shared, x, kernel);
  float sum[2][Warps<kWidth>::kTiles][4] = {};
  const int all_taps = static_cast<int>(g.taps());
  for (int offset_group = 0; offset_group < g.G; ++offset_group) {
    block.first_channel = int64_t{offset_group} * block.channels;
    for (int first = 0; first < all_taps; first += kCornerTaps) {
      const int taps = all_taps - first < kCornerTaps ? all_taps - first : kCornerTaps;
      block.first_tap = first;
      block.find_all_corners(taps, offset_group, offset, mask);
      __syncthreads();
      block.add_products(taps, sum);
    }
  }
  __syncthreads();
  block.write(sum, y);
}

int64_t blocks_of(const DeformConvGeometry& g, int width) {
  return g.N * ((g.P + kSide - 1) / kSide) * ((g.Q + kSide - 1) / kSide) *
         ((g.K + width - 1) / width);
}

template <typename T, int kWidth, bool kWholeRuns>
simt::Failure launch_fused(const DeformConvOperands& op, const void* kernel, void* y,
                           cudaStream_t stream) {
  const auto fused = fused_kernel<T, kWidth, kWholeRuns>;
  const simt::Failure failure =
      simt::prefer_blocks(fused, Warps<kWidth>::kBlocksPerProcessor, sizeof(Shared<T, kWidth>));
  if (failure) return failure;
  return simt::launch(fused, blocks_of(op.geometry, kWidth), Warps<kWidth>::kThreads,
                      sizeof(Shared<T, kWidth>), stream, op.geometry, static_cast<const T*>(op.x),
                      static_cast<const float*>(op.offset), static_cast<const float*>(op.mask),
                      static_cast<const T*>(kernel), static_cast<T*>(y));
}

template <typename T>
simt::Failure choose_width(const DeformConvOperands& op, const void* kernel, void* y,
                           cudaStream_t stream) {
  const DeformConvGeometry& g = op.geometry;
  if (g.offset_group_channels() % kRun<T> != 0 || g.K % kRun<T> != 0) {
    return launch_fused<T, 64, false>(op, kernel, y, stream);
  }
  if (g.K > 128 && blocks_of(g, 256) >= kBlocksWanted) {
    return launch_fused<T, 256, true>(op, kernel, y, stream);
  }
  if (g.K > 64 && blocks_of(g, 128) >= kBlocksWanted) {
    return launch_fused<T, 128, true>(op, kernel, y, stream);
  }
  return launch_fused<T, 64, true>(op, kernel, y, stream);
}

}  // namespace

simt::Failure convolve_fused(const DeformConvOperands& op, const void* kernel, void* y,
                             cudaStream_t stream) {
  switch (op.type) {
    case ElementType::kF32:
      return choose_width<float>(op, kernel, y, stream);
    case ElementType::kBF16:
      return choose_width<Bf16>(op, kernel, y, stream);
    case ElementType::kF16:
      return choose_width<F16>(op, kernel, y, stream);
    default:
      return "there are no tensor cores for this element type";
  }
}

}  // namespace cuda
}  // namespace xla_ops
