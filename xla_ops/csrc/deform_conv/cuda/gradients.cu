// Gradients of offset and mask of deform_conv2d, and the columns for the kernel's gradient,
// in one visit of the samples. A few lanes of a warp share a sample: each multiplies its
// channels of the columns' gradient with the four corners, then the lanes add up. All samples
// take the same channels first, as in columns.cu.
#include "deform_conv/cuda/tile.h"

namespace xla_ops {
namespace cuda {
namespace {

template <typename A>
struct Sample {
  int32_t pixel[4];
  A ly, lx, mask;
  A dot[4];  // of each corner with the columns' gradient
};

// Adds each of the four values over L neighbouring lanes. At first lanes halve the values
// between them: fewer shuffles than four separate sums. Returns value number summed_value().
template <int L, typename A>
__device__ __forceinline__ A sum_over_lanes(const A value[4]) {
  static_assert(L >= 4 && (L & (L - 1)) == 0);
  const int lane = threadIdx.x;
  constexpr int kHalf = L / 2, kQuarter = L / 4;
  const bool low = lane & kHalf, odd = lane & kQuarter;
  A first = low ? value[2] : value[0], second = low ? value[3] : value[1];
  first += __shfl_xor_sync(simt::kFullMask, low ? value[0] : value[2], kHalf);
  second += __shfl_xor_sync(simt::kFullMask, low ? value[1] : value[3], kHalf);
  A sum = odd ? second : first;
  sum += __shfl_xor_sync(simt::kFullMask, odd ? first : second, kQuarter);
#pragma unroll
  for (int step = kQuarter / 2; step > 0; step /= 2) {
    sum += __shfl_xor_sync(simt::kFullMask, sum, step);
  }
  return sum;
}

template <int L>
__device__ __forceinline__ int summed_value() {
  return threadIdx.x % L / (L / 4);
}

template <typename T, int L, int V>
__global__ void __launch_bounds__(kThreads, kVisitBlocks)
    visit_kernel(DeformConvGeometry g, Tiling tiling, const T* __restrict__ x,
                 const int32_t* __restrict__ first_row, const Arithmetic<T>* __restrict__ offset,
                 const Arithmetic<T>* __restrict__ mask,
                 const ColumnsGradient<T>* __restrict__ dcolumns, T* __restrict__ columns,
                 Arithmetic<T>* __restrict__ doffset, Arithmetic<T>* __restrict__ dmask,
                 Arithmetic<T>* __restrict__ dx) {
  using A = Arithmetic<T>;
  Sample<A>* samples = simt::dynamic_shared<Sample<A>>();
  const Tile tile(g, tiling);

  for (int i = threadIdx.x; i < tile.samples(); i += kThreads) {
    Sample<A> sample{{-1, -1, -1, -1}, {}, {}, {}, {}};
    const auto place = tile.place(g, i);
    if (place.inside) {
      const int64_t number =
          sample_number(g, tile.position(g, place), tile.offset_group, place.tap);
      const auto corners = find_corners(g, first_row[tile.image], place.row, place.column,
                                        place.tap, offset + 2 * number);
#pragma unroll
      for (int q = 0; q < 4; ++q) sample.pixel[q] = corners.pixel[q];
      sample.ly = corners.ly;
      sample.lx = corners.lx;
      sample.mask = mask ? mask[number] : A(1);
    }
    samples[i] = sample;
  }
  __syncthreads();

  const int channels = static_cast<int>(g.offset_group_channels()), width = static_cast<int>(g.C);
  const int64_t image = tile.image * g.H * g.W * g.C + tile.offset_group * channels;
  const int64_t row = g.taps() * g.C, first = tile.image * g.P * g.Q * row;
  int position[kPlaces<L>];
#pragma unroll
  for (int s = 0; s < kPlaces<L>; ++s) position[s] = position_of_thread<L>(g, tile, s);
  // Warps stay whole for the sums: lanes without channels take part.
  for (int slab = 0; slab < channels; slab += L * V) {
    const int c = slab + threadIdx.x % L * V;
    const int64_t column =
        first + (c < channels ? column_of(g, tile.offset_group * channels + c) : 0);
    for (int tap = 0; tap < tile.taps; ++tap) {
      const int64_t at = column + (tile.tap + tap) * g.group_channels();
      Held<ColumnsGradient<T>, V> gradient[kPlaces<L>];
      Held<T, V> corner[kPlaces<L>][4];
#pragma unroll
      for (int s = 0; s < kPlaces<L>; ++s) {
        gradient[s] = {};
        if (position[s] < 0 || c >= channels) continue;
        gradient[s] = *reinterpret_cast<const Held<ColumnsGradient<T>, V>*>(dcolumns + at +
                                                                            position[s] * row);
        load_corners<V, T>(x + image + c, samples[tap * kPatch + place_of_thread<L>(s)].pixel,
                           width, corner[s]);
      }
#pragma unroll
      for (int s = 0; s < kPlaces<L>; ++s) {
        Sample<A>& sample = samples[tap * kPatch + place_of_thread<L>(s)];
        A dot[4] = {};
        if (position[s] >= 0 && c < channels) {
          const A ly = sample.ly, lx = sample.lx, hy = A(1) - ly, hx = A(1) - lx;
          // Corners outside the map count as 0, so their weights do not matter, unless NaN.
          const A weight[4] = {hy * hx, hy * lx, ly * hx, ly * lx};
          A sum[V] = {};
#pragma unroll
          for (int q = 0; q < 4; ++q) {
            const A share = weight[q] * sample.mask;
#pragma unroll
            for (int k = 0; k < V; ++k) {
              const A value = element_of<T>(corner[s][q], k);
              sum[k] += share * value;
              dot[q] += element_of<ColumnsGradient<T>>(gradient[s], k) * value;
            }
            if (dx && sample.pixel[q] >= 0) {
              A shares[V];
#pragma unroll
              for (int k = 0; k < V; ++k)
                shares[k] = share * element_of<ColumnsGradient<T>>(gradient[s], k);
              simt::atomic_add<V>(dx + image + int64_t{sample.pixel[q]} * width + c, shares);
            }
          }
          store<V>(sum, columns + at + position[s] * row);
        }
        const A total = sum_over_lanes<L>(dot);
        if (threadIdx.x % (L / 4) == 0) sample.dot[summed_value<L>()] += total;
      }
    }
  }
  __syncthreads();

  for (int i = threadIdx.x; i < tile.samples(); i += kThreads) {
    const auto place = tile.place(g, i);
    if (!place.inside) continue;
    const Sample<A>& sample = samples[i];
    const int64_t number = sample_number(g, tile.position(g, place), tile.offset_group, place.tap);
    const A* dot = sample.dot;
    const A shift[2] = {sample.mask * derivative_y(sample.lx, dot),
                        sample.mask * derivative_x(sample.ly, dot)};
    store<2>(shift, doffset + 2 * number);
    if (dmask) {
      dmask[number] = (A(1) - sample.ly) * ((A(1) - sample.lx) * dot[0] + sample.lx * dot[1]) +
                      sample.ly * ((A(1) - sample.lx) * dot[2] + sample.lx * dot[3]);
    }
  }
}

template <typename T, int L, int V>
simt::Failure launch_with_lanes(const DeformConvOperands& op, const DeformConvGradients& grad,
                                cudaStream_t stream) {
  using A = Arithmetic<T>;
  const DeformConvGeometry& g = op.geometry;
  if (grad.dx) {
    const simt::Failure failure =
        simt::set_zero(grad.dx, g.N * g.H * g.W * g.C * sizeof(A), stream);
    if (failure) return failure;
  }
  const Tiling tiling = tile(g);
  return simt::launch(
      visit_kernel<T, L, V>, tiling.blocks, kThreads, tiling.taps * kPatch * sizeof(Sample<A>),
      stream, g, tiling, static_cast<const T*>(op.x), op.first_row,
      static_cast<const A*>(op.offset), static_cast<const A*>(op.mask),
      static_cast<const ColumnsGradient<T>*>(grad.dcolumns), static_cast<T*>(grad.columns),
      static_cast<A*>(grad.doffset), static_cast<A*>(grad.dmask), static_cast<A*>(grad.dx));
}

template <typename T, int V>
simt::Failure launch_visit(const DeformConvOperands& op, const DeformConvGradients& grad,
                           cudaStream_t stream) {
  XLA_OPS_RETURN_FOR_LANES(op.geometry, T, V, launch_with_lanes, op, grad, stream);
}

}  // namespace

simt::Failure visit_samples(const DeformConvOperands& op, const DeformConvGradients& grad,
                            cudaStream_t stream) {
  XLA_OPS_RETURN_FOR_RUNS(op.type, op.geometry, launch_visit, op, grad, stream);
}

}  // namespace cuda
}  // namespace xla_ops
