// Backward kernel of deform_conv2d. A block of input channels of one image is owned by
// one chunk of work: it alone adds to its slice of dx and dkernel, position after
// position, so the bits do not depend on threads. Per tile of positions the gradient of
// the columns comes first; one pass over the samples then yields the columns for
// dkernel, and everything else.
#include "deform_conv/cpu/backward_block.h"
#include "deform_conv/cpu/backward_dense.h"
#include "deform_conv/cpu/backward_groups.h"
#include "deform_conv/cpu/kernels.h"
#include "simd/dispatch.h"

namespace xla_ops {
namespace XLA_OPS_ISA {
namespace {

// Scratch of a worker. Either way of working has its own.
template <typename T, typename A>
struct BackwardScratch {
  bool in_groups;
  GroupSizes<A> sizes;
  A* outside;
  A* dx;  // [H*W][block channels], where dx is not added to in place
  char* samples;
  ScratchPieces rest;

  BackwardScratch(const DeformConvGeometry& g, int64_t block_channels, void* scratch)
      : in_groups(has_small_groups(g)), sizes(g, block_channels), rest(scratch) {
    outside = rest.take<A>(block_channels);
    dx = rest.take<A>(kAddsInPlace<T> ? 0 : g.H * g.W * block_channels);
    samples = rest.take<char>(
        Samples<A>::bytes(in_groups ? sizes.samples() : DenseScratch<A>::samples(g)));
  }

  GroupScratch<A> groups(const DeformConvGeometry& g) { return {g, sizes, rest}; }
  DenseScratch<A> dense(const DeformConvGeometry& g) { return {g, rest}; }

  static size_t bytes(const DeformConvGeometry& g, int64_t block_channels) {
    BackwardScratch counted(g, block_channels, nullptr);
    if (counted.in_groups) {
      counted.groups(g);
    } else {
      counted.dense(g);
    }
    return counted.rest.end();
  }
};

template <typename T>
DeformConvBackwardPlan plan_backward(const DeformConvGeometry& g) {
  using A = Arithmetic<T>;
  DeformConvBackwardPlan plan;
  const int64_t channels = g.offset_group_channels();
  int64_t block = kWideBlock;
  auto chunks = [&] { return g.N * g.G * ceil_div(channels, block); };
  const int64_t narrow = has_small_groups(g) ? kNarrowGroupBlock : kNarrowBlock;
  while (block > narrow && chunks() < kManyChunks) block /= 2;
  while (block > kNarrowestBlock && chunks() < kFewChunks) block /= 2;
  plan.blocks_per_offset_group = ceil_div(channels, block);
  plan.block_channels =
      min(channels, round_up(ceil_div(channels, plan.blocks_per_offset_group), kLanes<A>));
  plan.blocks_per_offset_group = ceil_div(channels, plan.block_channels);
  plan.blocks = g.G * plan.blocks_per_offset_group;
  plan.image_slot_bytes = g.positions() * g.G * g.taps() * (g.modulated ? 3 : 2) * sizeof(A);
  plan.worker_bytes = BackwardScratch<T, A>::bytes(g, plan.block_channels);
  // Whole pixels lie together anyway.
  const int64_t copied = plan.block_channels < g.C ? 2 * g.H * g.W * plan.block_channels : 0;
  plan.copy_bytes = round_up(copied * sizeof(A), 64);
  plan.copies = false;
  return plan;
}

template <typename From, typename To>
XLA_OPS_ALWAYS_INLINE void copy_elements(const From* from, int64_t count, To* to) {
  for_each_vector<kLanes<Arithmetic<To>>>(0, count, [&](auto w, int64_t i) {
    constexpr int L = decltype(w)::value;
    store<L>(to + i, load<L>(from + i));
  });
}

template <typename T>
void visit_block(const DeformConvOperands& op, const DeformConvBackwardPlan& plan,
                 const DeformConvGradients& grad, int64_t image, int64_t place, int64_t number,
                 void* scratch) {
  using A = Arithmetic<T>;
  const DeformConvGeometry& g = op.geometry;
  BackwardScratch<T, A> s(g, plan.block_channels, scratch);
  const int64_t slot = number % plan.blocks_per_offset_group;
  const int64_t pixels = g.H * g.W;

  Block<T, A> block;
  block.image = image;
  block.offset_group = number / plan.blocks_per_offset_group;
  const int64_t group_begin = block.offset_group * g.offset_group_channels();
  block.c_begin = group_begin + slot * plan.block_channels;
  block.c_end = min(block.c_begin + plan.block_channels, group_begin + g.offset_group_channels());
  block.g = static_cast<const T*>(grad.g) + image * g.positions() * g.K;
  const T* x = static_cast<const T*>(op.x) + image * pixels * g.C + block.c_begin;
  T* dx = static_cast<T*>(grad.dx) + image * pixels * g.C + block.c_begin;
  A* copy = reinterpret_cast<A*>(static_cast<char*>(scratch) + plan.worker_bytes);
  const bool adds_in_place = kAddsInPlace<T> && !plan.copies;
  const int64_t channels = block.channels(), copy_row = 2 * channels;
  A* sums = plan.copies ? copy + channels : adds_in_place ? reinterpret_cast<A*>(dx) : s.dx;
  const int64_t sums_row = plan.copies ? copy_row : adds_in_place ? g.C : channels;
  block.is_copied = plan.copies;
  block.in_place = {x, sums, g.C, sums_row, static_cast<const T*>(op.zeros), s.outside};
  block.copied = {copy, sums, copy_row, sums_row, static_cast<const A*>(op.zeros), s.outside};
  block.prefetches =
      !plan.copies && pixels * g.C * static_cast<int64_t>(sizeof(A)) > kNearMapBytes;
  block.samples = s.samples;
  block.shares = offset_shares<A>(op, plan, grad, image, place, block.offset_group, slot);

  for (int64_t p = 0; p < pixels; ++p) {
    if (plan.copies) copy_elements(x + p * g.C, channels, copy + p * copy_row);
    std::memset(sums + p * sums_row, 0, channels * sizeof(A));
  }
  std::memset(s.outside, 0, channels * sizeof(A));
  if (s.in_groups) {
    backward_groups<T, A>(op, grad, s.sizes, s.groups(g), block);
  } else {
    backward_dense<T, A>(op, grad, s.dense(g), block);
  }

  if (adds_in_place) return;
  for (int64_t p = 0; p < pixels; ++p) {
    copy_elements(sums + p * sums_row, channels, dx + p * g.C);
  }
}

template <typename T>
void add_partial_sums(const DeformConvOperands& op, const DeformConvBackwardPlan& plan,
                      const DeformConvGradients& grad, int64_t image, int64_t place,
                      int64_t first_position, int64_t last_position) {
  using A = Arithmetic<T>;
  const int64_t taps = op.geometry.G * op.geometry.taps();
  const OffsetShares<A> to = offset_shares<A>(op, plan, grad, image, place, 0, 0);
  for (int64_t slot = 1; slot < plan.blocks_per_offset_group; ++slot) {
    const OffsetShares<A> from = offset_shares<A>(op, plan, grad, image, place, 0, slot);
    for (int64_t at = first_position * taps; at < last_position * taps; ++at) {
      to.doffset[2 * at] += from.doffset[at * from.offset_tap];
      to.doffset[2 * at + 1] += from.doffset[at * from.offset_tap + 1];
      if (to.dmask) to.dmask[at] += from.dmask[at * from.mask_tap];
    }
  }
}

template <typename T>
constexpr DeformConvBackwardKernels kKernels = {plan_backward<T>, visit_block<T>,
                                                add_partial_sums<T>};

}  // namespace
}  // namespace XLA_OPS_ISA

XLA_OPS_EXPORT(DeformConvBackwardKernels, deform_conv_backward_kernels, kKernels<float>,
               kKernels<double>, kKernels<Bf16>, kKernels<F16>);

}  // namespace xla_ops
