// The backward kernel of deform_conv2d where groups are small (groups.h).
#ifndef XLA_OPS_DEFORM_CONV_CPU_BACKWARD_GROUPS_H_
#define XLA_OPS_DEFORM_CONV_CPU_BACKWARD_GROUPS_H_

#include "deform_conv/cpu/backward_block.h"
#include "deform_conv/cpu/groups.h"
#include "deform_conv/cpu/scratch.h"
#include "simd/lanes.h"

namespace xla_ops {
namespace XLA_OPS_ISA {

// Of blocks of at most so many channels.
template <typename A>
struct GroupSizes {
  int64_t stride;  // of what belongs to the channels
  int64_t run;     // taps handled together: their columns and spread weights stay in cache

  GroupSizes(const DeformConvGeometry& g, int64_t channels) : stride(lane_stride<A>(channels)) {
    const int64_t tap = stride * static_cast<int64_t>(sizeof(A));
    run =
        min(kGroupColumnsBytes / (kGroupRows * tap), kRunWeightsBytes / (g.group_outputs() * tap));
    run = ceil_div(g.taps(), ceil_div(g.taps(), run > 1 ? run : 1));
  }

  int64_t samples() const { return kGroupRows * run; }  // of a tile in a run, at most
};

template <typename A>
struct GroupScratch {
  A* kernel;   // [run][outputs][stride], spread
  A* dkernel;  // the same
  A* g;        // [kGroupRows][outputs][stride], spread
  A* columns;  // [kGroupRows][run][stride], and before that their gradients

  GroupScratch(const DeformConvGeometry& geometry, const GroupSizes<A>& sizes,
               ScratchPieces& scratch) {
    const int64_t outputs = geometry.group_outputs() * sizes.stride;
    kernel = scratch.take<A>(sizes.run * outputs);
    dkernel = scratch.take<A>(sizes.run * outputs);
    g = scratch.take<A>(kGroupRows * outputs);
    columns = scratch.take<A>(kGroupRows * sizes.run * sizes.stride);
  }
};

// All gradients that the channels of a block contribute.
template <typename T, typename A>
void backward_groups(const DeformConvOperands& op, const DeformConvGradients& grad,
                     const GroupSizes<A>& sizes, const GroupScratch<A>& s,
                     const Block<T, A>& block) {
  const DeformConvGeometry& g = op.geometry;
  const int64_t c0 = block.c_begin, channels = block.channels(), outputs = g.group_outputs();
  const int64_t stride = sizes.stride;
  const int64_t weights = g.taps() * g.group_channels() * g.K;
  const T* kernel =
      static_cast<const T*>(op.kernel) + (g.kernels == 1 ? 0 : block.image) * weights;
  A* dkernel = static_cast<A*>(grad.dkernel) + block.image * weights;
  for (int64_t t0 = 0; t0 < g.taps(); t0 += sizes.run) {
    const int64_t t1 = min(t0 + sizes.run, g.taps()), run = t1 - t0;
    spread_kernel<T, A>(g, kernel, c0, channels, t0, t1, stride, s.kernel);
    std::memset(s.dkernel, 0, run * outputs * stride * sizeof(A));
    for (int64_t first = 0; first < g.positions(); first += kGroupRows) {
      const Tile tile(g, first, min(kGroupRows, g.positions() - first));
      spread_gradient<T, A>(g, block.g, tile, c0, channels, stride, s.g);
      multiply_lanes<A>({tile.rows, outputs, run}, channels, {s.g, outputs * stride, stride},
                        {s.kernel, outputs * stride, stride},
                        LaneSums<A>{s.columns, run * stride, stride, false});
      visit_samples<T, A>(op, block, {s.columns, s.columns, run * stride, stride}, 0, channels,
                          tile, t0, t1);
      multiply_lanes<A>({run, tile.rows, outputs}, channels, {s.columns, stride, run * stride},
                        {s.g, stride, outputs * stride},
                        LaneSums<A>{s.dkernel, outputs * stride, stride, true});
    }
    collect_kernel<A>(g, s.dkernel, c0, channels, t0, t1, stride, dkernel);
  }
}

}  // namespace XLA_OPS_ISA
}  // namespace xla_ops

#endif  // XLA_OPS_DEFORM_CONV_CPU_BACKWARD_GROUPS_H_
