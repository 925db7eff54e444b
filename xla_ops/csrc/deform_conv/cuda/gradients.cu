// Gradients of offset and mask of deform_conv2d, and the columns for the kernel's gradient,
// in one visit of the samples. A few lanes of a warp share a sample: each multiplies its
// channels of the columns' gradient with the four corners, then the lanes add up.
#include "deform_conv/cuda/tile.h"

namespace xla_ops {
namespace cuda {
namespace {

template <typename A>
struct Sample {
  int32_t pixel[4];
  A ly, lx, mask;
};

// Adds each of the four values over groups of `lanes` neighbours; all get the sums. At
// first lanes halve the values between them: fewer shuffles than four separate sums.
template <typename A>
__device__ __forceinline__ void sum_over_lanes(int lanes, A value[4]) {
  const int lane = threadIdx.x % simt::kWarp;
  const int half = lanes / 2, quarter = lanes / 4;
  const bool low = lane & half, odd = lane & quarter;
  A first = low ? value[2] : value[0], second = low ? value[3] : value[1];
  first += __shfl_xor_sync(simt::kFullMask, low ? value[0] : value[2], half);
  second += __shfl_xor_sync(simt::kFullMask, low ? value[1] : value[3], half);
  A sum = odd ? second : first;
  sum += __shfl_xor_sync(simt::kFullMask, odd ? first : second, quarter);
  for (int step = lanes / 8; step > 0; step /= 2) {
    sum += __shfl_xor_sync(simt::kFullMask, sum, step);
  }
  const int begin = lane / lanes * lanes;
#pragma unroll
  for (int q = 0; q < 4; ++q) {
    value[q] = __shfl_sync(simt::kFullMask, sum, begin + q / 2 * half + q % 2 * quarter);
  }
}

template <typename T, int V>
__global__ void __launch_bounds__(kThreads)
    visit_kernel(DeformConvGeometry g, Tiling tiling, int lanes, const T* __restrict__ x,
                 const int32_t* __restrict__ first_row, const Arithmetic<T>* __restrict__ offset,
                 const Arithmetic<T>* __restrict__ mask,
                 const ColumnsGradient<T>* __restrict__ dcolumns, T* __restrict__ columns,
                 Arithmetic<T>* __restrict__ doffset, Arithmetic<T>* __restrict__ dmask,
                 Arithmetic<T>* __restrict__ dx) {
  using A = Arithmetic<T>;
  Sample<A>* samples = simt::dynamic_shared<Sample<A>>();
  const Tile tile(g, tiling);

  for (int i = threadIdx.x; i < tile.samples(); i += kThreads) {
    Sample<A> sample{};
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

  const int channels = static_cast<int>(g.offset_group_channels());
  const int64_t image = tile.image * g.H * g.W * g.C;
  for (int i = threadIdx.x / lanes; i < tile.samples(); i += kThreads / lanes) {
    const auto place = tile.place(g, i);
    const Sample<A> sample = samples[i];
    const A hy = A(1) - sample.ly, hx = A(1) - sample.lx;
    // Corners outside the map count as 0, so their weights do not matter, unless NaN.
    const A weight[4] = {hy * hx, hy * sample.lx, sample.ly * hx, sample.ly * sample.lx};
    A dot[4] = {};
    // Warps stay whole for the sums: no jump over samples outside the output.
    const int end = place.inside ? channels : 0;
    const int64_t row = tile.position(g, place) * g.taps() * g.C + place.tap * g.group_channels();
    for (int c = threadIdx.x % lanes * V; c < end; c += lanes * V) {
      const int channel = tile.offset_group * channels + c;
      const int64_t at = row + column_of(g, channel);
      A d[V], sum[V] = {};
      load<V>(dcolumns + at, d);
#pragma unroll
      for (int q = 0; q < 4; ++q) {
        A value[V] = {};
        const int64_t pixel = image + sample.pixel[q] * g.C + channel;
        if (sample.pixel[q] >= 0) load<V>(x + pixel, value);
#pragma unroll
        for (int k = 0; k < V; ++k) {
          sum[k] += weight[q] * sample.mask * value[k];
          dot[q] += d[k] * value[k];
        }
        if (dx && sample.pixel[q] >= 0) {
          A share[V];
#pragma unroll
          for (int k = 0; k < V; ++k) share[k] = weight[q] * sample.mask * d[k];
          simt::atomic_add<V>(dx + pixel, share);
        }
      }
      store<V>(sum, columns + at);
    }
    sum_over_lanes(lanes, dot);
    if (place.inside && threadIdx.x % lanes == 0) {
      const int64_t number =
          sample_number(g, tile.position(g, place), tile.offset_group, place.tap);
      const A shift[2] = {sample.mask * derivative_y(sample.lx, dot),
                          sample.mask * derivative_x(sample.ly, dot)};
      store<2>(shift, doffset + 2 * number);
      if (dmask) {
        dmask[number] = hy * (hx * dot[0] + sample.lx * dot[1]) +
                        sample.ly * (hx * dot[2] + sample.lx * dot[3]);
      }
    }
  }
}

template <typename T, int V>
simt::Failure launch_visit(const DeformConvOperands& op, const DeformConvGradients& grad,
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
      visit_kernel<T, V>, tiling.blocks, kThreads, tiling.taps * kPatch * sizeof(Sample<A>),
      stream, g, tiling, lanes_for(g.offset_group_channels() / V), static_cast<const T*>(op.x),
      op.first_row, static_cast<const A*>(op.offset), static_cast<const A*>(op.mask),
      static_cast<const ColumnsGradient<T>*>(grad.dcolumns), static_cast<T*>(grad.columns),
      static_cast<A*>(grad.doffset), static_cast<A*>(grad.dmask), static_cast<A*>(grad.dx));
}

}  // namespace

simt::Failure visit_samples(const DeformConvOperands& op, const DeformConvGradients& grad,
                            cudaStream_t stream) {
  XLA_OPS_RETURN_FOR_RUNS(op.type, op.geometry, launch_visit, op, grad, stream);
}

}  // namespace cuda
}  // namespace xla_ops
