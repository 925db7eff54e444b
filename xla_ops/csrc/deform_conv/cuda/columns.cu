// Samples for the forward pass of deform_conv2d. The threads of a block first find the
// corners of its samples. Then a few lanes share a sample, and read 16 bytes of channels each
// of its corners, of several samples at once: so many reads are on their way together. All
// samples take the same channels first, whose lines neighbours and taps find in the L1 cache.
#include "deform_conv/cuda/tile.h"

namespace xla_ops {
namespace cuda {
namespace {

template <typename A>
struct Sample {
  int32_t pixel[4];
  A weight[4];  // modulation included
};

template <typename T, int L, int V>
__global__ void __launch_bounds__(kThreads, kColumnsBlocks)
    columns_kernel(DeformConvGeometry g, Tiling tiling, const T* __restrict__ x,
                   const int32_t* __restrict__ first_row, const Arithmetic<T>* __restrict__ offset,
                   const Arithmetic<T>* __restrict__ mask, T* __restrict__ columns) {
  using A = Arithmetic<T>;
  Sample<A>* samples = simt::dynamic_shared<Sample<A>>();
  const Tile tile(g, tiling);
  const int count = tile.samples();

  for (int i = threadIdx.x; i < count; i += kThreads) {
    Sample<A> sample{{-1, -1, -1, -1}, {}};
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
  const int end = tile.slab + tiling.slab < channels ? tile.slab + tiling.slab : channels;
  const T* image = x + tile.image * g.H * g.W * g.C + tile.offset_group * channels;
  const int64_t row = g.taps() * g.C, first = tile.image * g.P * g.Q * row;
  int position[kPlaces<L>];
#pragma unroll
  for (int s = 0; s < kPlaces<L>; ++s) position[s] = position_of_thread<L>(g, tile, s);
  for (int c = tile.slab + threadIdx.x % L * V; c < end; c += L * V) {
    T* const column = columns + first + column_of(g, tile.offset_group * channels + c);
    for (int tap = 0; tap < tile.taps; ++tap) {
      const Sample<A>* sample[kPlaces<L>];
      Held<T, V> corner[kPlaces<L>][4];
#pragma unroll
      for (int s = 0; s < kPlaces<L>; ++s) {
        sample[s] = &samples[tap * kPatch + place_of_thread<L>(s)];
        load_corners<V, T>(image + c, sample[s]->pixel, static_cast<int>(g.C), corner[s]);
      }
#pragma unroll
      for (int s = 0; s < kPlaces<L>; ++s) {
        if (position[s] < 0) continue;
        A sum[V] = {};
#pragma unroll
        for (int q = 0; q < 4; ++q) {
#pragma unroll
          for (int k = 0; k < V; ++k) {
            sum[k] += sample[s]->weight[q] * element_of<T>(corner[s][q], k);
          }
        }
        store<V>(sum, column + position[s] * row + (tile.tap + tap) * g.group_channels());
      }
    }
  }
}

template <typename T, int L, int V>
simt::Failure launch_with_lanes(const DeformConvOperands& op, void* columns, cudaStream_t stream) {
  using A = Arithmetic<T>;
  const DeformConvGeometry& g = op.geometry;
  const Tiling tiling = tile(g, L * V);
  return simt::launch(columns_kernel<T, L, V>, tiling.blocks, kThreads,
                      tiling.taps * kPatch * sizeof(Sample<A>), stream, g, tiling,
                      static_cast<const T*>(op.x), op.first_row, static_cast<const A*>(op.offset),
                      static_cast<const A*>(op.mask), static_cast<T*>(columns));
}

template <typename T, int V>
simt::Failure launch_columns(const DeformConvOperands& op, void* columns, cudaStream_t stream) {
  XLA_OPS_RETURN_FOR_LANES(op.geometry, T, V, launch_with_lanes, op, columns, stream);
}

}  // namespace

simt::Failure sample_columns(const DeformConvOperands& op, void* columns, cudaStream_t stream) {
  XLA_OPS_RETURN_FOR_RUNS(op.type, op.geometry, launch_columns, op, columns, stream);
}

}  // namespace cuda
}  // namespace xla_ops
