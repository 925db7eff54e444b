// Samples for the forward pass of deform_conv2d. The threads of a block first find the
// corners of its samples, then read them, 16 bytes of channels at a time.
#include "deform_conv/cuda/tile.h"

namespace xla_ops {
namespace cuda {
namespace {

template <typename A>
struct Sample {
  int32_t pixel[4];
  A weight[4];  // modulation included
};

template <typename T, int V>
__global__ void __launch_bounds__(kThreads)
    columns_kernel(DeformConvGeometry g, Tiling tiling, int lanes, const T* __restrict__ x,
                   const int32_t* __restrict__ first_row, const Arithmetic<T>* __restrict__ offset,
                   const Arithmetic<T>* __restrict__ mask, T* __restrict__ columns) {
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
      const A m = mask ? mask[number] : A(1);
#pragma unroll
      for (int q = 0; q < 4; ++q) {
        sample.pixel[q] = corners.pixel[q];
        sample.weight[q] = corners.weight[q] * m;
      }
    }
    samples[i] = sample;
  }
  __syncthreads();

  const int channels = static_cast<int>(g.offset_group_channels());
  const T* image = x + tile.image * g.H * g.W * g.C;
  for (int i = threadIdx.x / lanes; i < tile.samples(); i += kThreads / lanes) {
    const auto place = tile.place(g, i);
    if (!place.inside) continue;
    const Sample<A> sample = samples[i];
    T* row = columns + tile.position(g, place) * g.taps() * g.C + place.tap * g.group_channels();
    for (int c = threadIdx.x % lanes * V; c < channels; c += lanes * V) {
      const int channel = tile.offset_group * channels + c;
      A sum[V] = {};
#pragma unroll
      for (int q = 0; q < 4; ++q) {
        A value[V] = {};
        if (sample.pixel[q] >= 0) load<V>(image + sample.pixel[q] * g.C + channel, value);
#pragma unroll
        for (int k = 0; k < V; ++k) sum[k] += sample.weight[q] * value[k];
      }
      store<V>(sum, row + column_of(g, channel));
    }
  }
}

template <typename T, int V>
simt::Failure launch_columns(const DeformConvOperands& op, void* columns, cudaStream_t stream) {
  using A = Arithmetic<T>;
  const DeformConvGeometry& g = op.geometry;
  const Tiling tiling = tile(g);
  return simt::launch(columns_kernel<T, V>, tiling.blocks, kThreads,
                      tiling.taps * kPatch * sizeof(Sample<A>), stream, g, tiling,
                      lanes_for(g.offset_group_channels() / V), static_cast<const T*>(op.x),
                      op.first_row, static_cast<const A*>(op.offset),
                      static_cast<const A*>(op.mask), static_cast<T*>(columns));
}

}  // namespace

simt::Failure sample_columns(const DeformConvOperands& op, void* columns, cudaStream_t stream) {
  XLA_OPS_RETURN_FOR_RUNS(op.type, op.geometry, launch_columns, op, columns, stream);
}

}  // namespace cuda
}  // namespace xla_ops
