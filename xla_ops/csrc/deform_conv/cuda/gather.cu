// The gradient of x of deform_conv2d without atomics. Which pixel a corner reads, and with
// which weight, does not depend on the channel: the corners are listed, sorted by pixel
// (by XLA), and a warp for each pixel adds up what its corners give, in their order.
#include "deform_conv/cuda/tile.h"

namespace xla_ops {
namespace cuda {
namespace {

// Rows of the lists: (image, offset group).
__device__ __forceinline__ int64_t samples_of_row(const DeformConvGeometry& g) {
  return g.P * g.Q * g.taps();
}

// The number of a row's first pixel.
__device__ __forceinline__ int64_t first_pixel(const DeformConvGeometry& g, bool joint,
                                               int64_t row) {
  return joint ? row * (g.H * g.W + 1) : 0;
}

template <typename A, typename Pixel>
__global__ void __launch_bounds__(kThreads)
    list_kernel(DeformConvGeometry g, bool joint, int64_t samples,
                const int32_t* __restrict__ first_row, const A* __restrict__ offset,
                Pixel* __restrict__ pixel) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= samples) return;
  const int64_t row = i / samples_of_row(g);
  const int sample = static_cast<int>(i - row * samples_of_row(g));
  const int taps = static_cast<int>(g.taps()), width = static_cast<int>(g.Q);
  const int position = sample / taps, tap = sample % taps;
  const int64_t image = row / g.G;
  const int group = static_cast<int>(row % g.G);
  const int64_t number = sample_number(g, image * g.P * g.Q + position, group, tap);
  const auto corners = find_corners(g, first_row[image], position / width, position % width, tap,
                                    offset + 2 * number);
  const int64_t first = first_pixel(g, joint, row);
  Run<Pixel, 4> run;
#pragma unroll
  for (int q = 0; q < 4; ++q) {
    const int64_t place = corners.pixel[q] < 0 ? g.H * g.W : corners.pixel[q];
    run.element[q] = static_cast<Pixel>(first + place);
  }
  *reinterpret_cast<Run<Pixel, 4>*>(pixel + 4 * i) = run;
}

// Where the corners of each pixel begin in the sorted list of its row.
template <typename Pixel>
__global__ void __launch_bounds__(kThreads)
    starts_kernel(DeformConvGeometry g, bool joint, int64_t count, const Pixel* __restrict__ pixel,
                  int32_t* __restrict__ starts) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= count) return;
  const int64_t row = i / (g.H * g.W + 1);
  const uint32_t wanted =
      static_cast<uint32_t>(first_pixel(g, joint, row) + i - row * (g.H * g.W + 1));
  const int length = static_cast<int>(4 * samples_of_row(g));
  const Pixel* list = pixel + row * length;
  int low = 0, high = length;
  while (low < high) {
    const int middle = low + (high - low) / 2;
    if (list[middle] < wanted) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  starts[i] = low;
}

constexpr int kWarps = kThreads / simt::kWarp;

// Lanes that share a corner with `runs` runs of channels: a power of two from 4 to 32.
inline int lanes_for(int64_t runs) {
  int lanes = 4;
  while (lanes < simt::kWarp && lanes < runs) lanes *= 2;
  return lanes;
}

// A warp for each pixel and slab of lanes * V channels of an offset group; a block has
// neighbouring pixels. Where `lanes` is less than a warp, the corners are dealt out among
// groups of lanes. D is the type of the columns' gradient, X that of dx.
template <typename D, typename X, int V>
__global__ void __launch_bounds__(kThreads, kGatherBlocks)
    gather_kernel(DeformConvGeometry g, int lanes, int slabs, int parts,
                  const int32_t* __restrict__ first_row, const Arithmetic<D>* __restrict__ offset,
                  const Arithmetic<D>* __restrict__ mask, const D* __restrict__ dcolumns,
                  const int32_t* __restrict__ number, const int32_t* __restrict__ starts,
                  X* __restrict__ dx) {
  using A = Arithmetic<D>;
  unsigned rest = blockIdx.x;
  const int pixel = static_cast<int>(rest % parts) * kWarps + threadIdx.x / simt::kWarp;
  rest /= parts;
  const int slab = static_cast<int>(rest % slabs);
  rest /= slabs;
  const int group = static_cast<int>(rest % static_cast<unsigned>(g.G));
  const int64_t image = rest / static_cast<unsigned>(g.G);
  if (pixel >= g.H * g.W) return;

  const int lane = threadIdx.x % simt::kWarp;
  const int ways = simt::kWarp / lanes, way = lane / lanes;
  const int channels = static_cast<int>(g.offset_group_channels());
  const int taps = static_cast<int>(g.taps()), width = static_cast<int>(g.Q);
  const int c = (slab * lanes + lane % lanes) * V;
  const int channel = group * channels + c;
  const D* column = dcolumns + image * g.P * g.Q * taps * g.C + column_of(g, channel);

  const int64_t row = image * g.G + group;
  const int begin = starts[row * (g.H * g.W + 1) + pixel];
  const int end = starts[row * (g.H * g.W + 1) + pixel + 1];
  const int32_t* list = number + row * 4 * samples_of_row(g);
  A sum[V] = {};
  for (int first = begin; first < end; first += simt::kWarp) {
    // Each lane finds the weight and the place of one corner, for all lanes.
    A weight = 0;
    int64_t place = -1;
    if (first + lane < end) {
      const int corner = list[first + lane];
      const int position = corner / 4 / taps, tap = corner / 4 % taps;
      const int64_t sample = sample_number(g, image * g.P * g.Q + position, group, tap);
      const auto corners = find_corners(g, first_row[image], position / width, position % width,
                                        tap, offset + 2 * sample);
      const int q = corner % 4;
      weight = q < 2 ? (q == 0 ? corners.weight[0] : corners.weight[1])
                     : (q == 2 ? corners.weight[2] : corners.weight[3]);
      weight *= mask ? mask[sample] : A(1);
      place = int64_t{position} * taps * g.C + tap * g.group_channels();
    }
    const int left = end - first < simt::kWarp ? end - first : simt::kWarp;
#pragma unroll 4
    for (int i = 0; i < left; i += ways) {
      const A w = __shfl_sync(simt::kFullMask, weight, i + way);
      const int64_t at = __shfl_sync(simt::kFullMask, place, i + way);
      if (at < 0 || c >= channels) continue;
      A d[V];
      load<V>(column + at, d);
#pragma unroll
      for (int k = 0; k < V; ++k) sum[k] += w * d[k];
    }
  }
  for (int step = lanes; step < simt::kWarp; step *= 2) {
#pragma unroll
    for (int k = 0; k < V; ++k) sum[k] += __shfl_xor_sync(simt::kFullMask, sum[k], step);
  }
  if (way == 0 && c < channels) {
    store<V>(sum, dx + (image * g.H * g.W + pixel) * g.C + channel);
  }
}

int64_t blocks_for(int64_t threads) { return (threads + kThreads - 1) / kThreads; }

template <typename A, typename Pixel>
simt::Failure launch_list(const DeformConvOperands& op, bool joint, void* pixel,
                          cudaStream_t stream) {
  const DeformConvGeometry& g = op.geometry;
  const int64_t samples = g.N * g.G * g.P * g.Q * g.taps();
  return simt::launch(list_kernel<A, Pixel>, blocks_for(samples), kThreads, 0, stream, g, joint,
                      samples, op.first_row, static_cast<const A*>(op.offset),
                      static_cast<Pixel*>(pixel));
}

template <typename Pixel>
simt::Failure launch_starts(const DeformConvGeometry& g, bool joint, const void* pixel,
                            int32_t* starts, cudaStream_t stream) {
  const int64_t count = g.N * g.G * (g.H * g.W + 1);
  return simt::launch(starts_kernel<Pixel>, blocks_for(count), kThreads, 0, stream, g, joint,
                      count, static_cast<const Pixel*>(pixel), starts);
}

template <typename D, typename X, int V>
simt::Failure launch_gather(const DeformConvOperands& op, const void* dcolumns,
                            const int32_t* number, const int32_t* starts, void* dx,
                            cudaStream_t stream) {
  using A = Arithmetic<D>;
  const DeformConvGeometry& g = op.geometry;
  const int64_t runs = g.offset_group_channels() / V;
  const int lanes = lanes_for(runs);
  const int slabs = static_cast<int>((runs + lanes - 1) / lanes);
  const int parts = static_cast<int>((g.H * g.W + kWarps - 1) / kWarps);
  return simt::launch(gather_kernel<D, X, V>, g.N * g.G * slabs * parts, kThreads, 0, stream, g,
                      lanes, slabs, parts, op.first_row, static_cast<const A*>(op.offset),
                      static_cast<const A*>(op.mask), static_cast<const D*>(dcolumns), number,
                      starts, static_cast<X*>(dx));
}

template <typename D, typename X>
simt::Failure gather(const DeformConvOperands& op, const void* dcolumns, const int32_t* number,
                     const int32_t* starts, void* dx, cudaStream_t stream) {
  return divides_channels(kRun<D>, op.geometry)
             ? launch_gather<D, X, kRun<D>>(op, dcolumns, number, starts, dx, stream)
             : launch_gather<D, X, 1>(op, dcolumns, number, starts, dx, stream);
}

}  // namespace

simt::Failure list_corners(const DeformConvOperands& op, const DeformConvList& list, void* pixel,
                           cudaStream_t stream) {
  if (op.type == ElementType::kF64) {
    return list.narrow ? launch_list<double, uint16_t>(op, list.joint, pixel, stream)
                       : launch_list<double, uint32_t>(op, list.joint, pixel, stream);
  }
  return list.narrow ? launch_list<float, uint16_t>(op, list.joint, pixel, stream)
                     : launch_list<float, uint32_t>(op, list.joint, pixel, stream);
}

simt::Failure gather_input_gradient(const DeformConvOperands& op, const void* dcolumns,
                                    const DeformConvCorners& corners, int32_t* starts,
                                    ElementType type, void* dx, cudaStream_t stream) {
  const DeformConvList& list = corners.list;
  const simt::Failure failure =
      list.narrow
          ? launch_starts<uint16_t>(op.geometry, list.joint, corners.pixel, starts, stream)
          : launch_starts<uint32_t>(op.geometry, list.joint, corners.pixel, starts, stream);
  if (failure) return failure;
  const int32_t* number = corners.number;
  switch (op.type) {
    case ElementType::kF64:
      return gather<double, double>(op, dcolumns, number, starts, dx, stream);
    case ElementType::kF32:
      return type == ElementType::kF16
                 ? gather<float, F16>(op, dcolumns, number, starts, dx, stream)
                 : gather<float, float>(op, dcolumns, number, starts, dx, stream);
    case ElementType::kBF16:
      return type == ElementType::kBF16
                 ? gather<Bf16, Bf16>(op, dcolumns, number, starts, dx, stream)
                 : gather<Bf16, float>(op, dcolumns, number, starts, dx, stream);
    case ElementType::kF16:
      break;  // columns_gradient_type() is never float16.
  }
  return "unknown element type";
}

}  // namespace cuda
}  // namespace xla_ops
