// XLA FFI handlers of deform_conv2d: check the operands, plan, run the kernels of
// kernels.h on the thread pool.
#include <algorithm>
#include <cstring>
#include <exception>
#include <optional>
#include <string>

#include "deform_conv/cpu/kernels.h"
#include "deform_conv/decode.h"
#include "deform_conv/tuning.h"
#include "ffi/buffers.h"
#include "ffi/checks.h"
#include "ffi/parallel.h"
#include "ffi/registry.h"
#include "xla/ffi/api/ffi.h"

namespace xla_ops {
namespace {

namespace ffi = xla::ffi;

constexpr char kOperation[] = "deform_conv2d";

// Checks the operands that both directions have, and fills `op`.
bool decode_operands(Checks& checks, const DeformConvAttributes& attributes,
                     const ffi::AnyBuffer& x, const ffi::AnyBuffer& offset,
                     const ffi::AnyBuffer& kernel, const std::optional<ffi::AnyBuffer>& mask,
                     DeformConvOperands* op) {
  DeformConvGeometry& g = op->geometry;
  static_cast<DeformConvAttributes&>(g) = attributes;
  g.modulated = mask.has_value();
  op->x = x.untyped_data();
  op->offset = offset.untyped_data();
  op->kernel = kernel.untyped_data();
  op->mask = mask ? mask->untyped_data() : nullptr;
  return decode_type(checks, x, &op->type) &&
         decode_sizes(checks, shape_of(x), shape_of(offset), shape_of(kernel), &g) &&
         checks.buffer("offset", offset, shape_of(offset), real_type(op->type)) &&
         checks.buffer("kernel", kernel, shape_of(kernel), x.element_type()) &&
         (!mask || checks.buffer("mask", *mask, mask_shape(g), real_type(op->type)));
}

bool has_work(const DeformConvGeometry& g) {
  return g.N > 0 && g.positions() > 0 && g.taps() > 0 && g.C > 0 && g.K > 0;
}

// A pixel of zeros of any type.
class ZeroPixel {
 public:
  explicit ZeroPixel(const DeformConvGeometry& g) : memory_(g.C * sizeof(double)) {
    std::memset(memory_.data(), 0, g.C * sizeof(double));
  }
  const void* data() const { return memory_.data(); }

 private:
  Scratch memory_;
};

void run_forward(ffi::ThreadPool& pool, DeformConvOperands& op, void* y) {
  const DeformConvGeometry& g = op.geometry;
  const ZeroPixel zeros(g);
  op.zeros = zeros.data();
  const DeformConvForwardKernels& kernels = deform_conv_forward_kernels(op.type);
  const DeformConvForwardPlan plan = kernels.plan(g);

  const int64_t packed_bytes = plan.packed_bytes;
  const bool shared = g.kernels == 1;
  const int64_t images = shared ? g.N : std::clamp<int64_t>(kScratchBytes / packed_bytes, 1, g.N);
  const int64_t copies = shared ? 1 : images;
  const Scratch packed(copies * packed_bytes);
  const Scratch scratch(num_workers(pool, images * plan.tiles) * plan.worker_bytes);
  for (int64_t first = 0; first < g.N; first += images) {
    const int64_t count = std::min(images, g.N - first);
    parallel_for(pool, (shared ? 1 : count) * plan.pack_parts, [&](int64_t i, int64_t) {
      const int64_t copy = i / plan.pack_parts;
      kernels.pack_kernel(op, plan, first + copy, i % plan.pack_parts,
                          packed.as<char>() + copy * packed_bytes);
    });
    parallel_for(pool, count * plan.tiles, [&](int64_t i, int64_t worker) {
      const int64_t image = i / plan.tiles;
      kernels.convolve_tile(op, plan, packed.as<char>() + (shared ? 0 : image) * packed_bytes,
                            first + image, i % plan.tiles, y,
                            scratch.as<char>() + worker * plan.worker_bytes);
    });
  }
}

void run_backward(ffi::ThreadPool& pool, DeformConvOperands& op, DeformConvGradients& grad) {
  const DeformConvGeometry& g = op.geometry;
  const ZeroPixel zeros(g);
  op.zeros = zeros.data();
  const DeformConvBackwardKernels& kernels = deform_conv_backward_kernels(op.type);
  DeformConvBackwardPlan plan = kernels.plan(g);

  const int64_t image_bytes = (plan.blocks_per_offset_group - 1) * plan.image_slot_bytes;
  int64_t images = g.N;
  if (image_bytes > 0) {
    images = std::max(kScratchBytes / image_bytes, (kManyChunks + plan.blocks - 1) / plan.blocks);
    images = std::clamp<int64_t>(images, 1, g.N);
  }
  const Scratch partial(images * image_bytes);
  const int64_t workers = num_workers(pool, images * plan.blocks);
  plan.copies = plan.copy_bytes > 0 && workers * plan.copy_bytes <= kCopyBytes;
  const int64_t worker_bytes = plan.worker_bytes + (plan.copies ? plan.copy_bytes : 0);
  const Scratch scratch(workers * worker_bytes);
  grad.partial = partial.data();
  for (int64_t first = 0; first < g.N; first += images) {
    const int64_t count = std::min(images, g.N - first);
    parallel_for(pool, count * plan.blocks, [&](int64_t i, int64_t worker) {
      const int64_t place = i / plan.blocks;
      kernels.visit_block(op, plan, grad, first + place, place, i % plan.blocks,
                          scratch.as<char>() + worker * worker_bytes);
    });
    if (image_bytes == 0) continue;
    const int64_t parts = (g.positions() + kPartialSumPositions - 1) / kPartialSumPositions;
    parallel_for(pool, count * parts, [&](int64_t i, int64_t) {
      const int64_t place = i / parts, begin = i % parts * kPartialSumPositions;
      kernels.add_partial_sums(op, plan, grad, first + place, place, begin,
                               std::min(begin + kPartialSumPositions, g.positions()));
    });
  }
}

// Calls run(), whose scratch there may be no memory for.
template <typename Run>
ffi::Error result_of(Run&& run) {
  try {
    run();
  } catch (const std::exception& e) {
    return ffi::Error(ffi::ErrorCode::kResourceExhausted,
                      std::string(kOperation) + ": " + e.what());
  }
  return ffi::Error::Success();
}

ffi::Error forward_impl(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::AnyBuffer offset,
                        ffi::AnyBuffer kernel, ffi::RemainingArgs rest,
                        ffi::Result<ffi::AnyBuffer> y, const DeformConvAttributes& attributes) {
  Checks checks(kOperation);
  DeformConvOperands op{};
  std::optional<ffi::AnyBuffer> mask;
  if (!(checks.require(rest.size() <= 1, "expected 3 or 4 operands") &&
        (rest.size() == 0 || checks.take(rest, 0, &mask)) &&
        decode_operands(checks, attributes, x, offset, kernel, mask, &op) &&
        checks.buffer("y", *y, output_shape(op.geometry), x.element_type()))) {
    return checks.error();
  }
  if (!has_work(op.geometry)) {
    fill_with_zeros(*y);
    return ffi::Error::Success();
  }
  return result_of([&] { run_forward(pool, op, y->untyped_data()); });
}

ffi::Error backward_impl(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::AnyBuffer offset,
                         ffi::AnyBuffer kernel, ffi::RemainingArgs rest,
                         ffi::Result<ffi::AnyBuffer> dx, ffi::Result<ffi::AnyBuffer> doffset,
                         ffi::Result<ffi::AnyBuffer> dkernel, ffi::RemainingRets more,
                         const DeformConvAttributes& attributes) {
  Checks checks(kOperation);
  DeformConvOperands op{};
  const DeformConvGeometry& g = op.geometry;
  const bool modulated = rest.size() == 2;
  const ffi::DataType type = x.element_type(), real = offset.element_type();
  std::optional<ffi::AnyBuffer> mask, dmask, g_out;
  if (!(checks.require(rest.size() >= 1 && rest.size() <= 2 && more.size() == rest.size() - 1,
                       "expected 4 operands and 3 results, or with a mask 5 and 4") &&
        checks.take(rest, rest.size() - 1, &g_out) &&
        (!modulated || (checks.take(rest, 0, &mask) && checks.take(more, 0, &dmask))) &&
        decode_operands(checks, attributes, x, offset, kernel, mask, &op) &&
        checks.buffer("g", *g_out, output_shape(g), type) &&
        checks.buffer("dx", *dx, shape_of(x), type) &&
        checks.buffer("doffset", *doffset, shape_of(offset), real) &&
        checks.buffer("dkernel", *dkernel, {g.N, g.R, g.S, g.group_channels(), g.K}, real) &&
        (!modulated || checks.buffer("dmask", *dmask, shape_of(*mask), real)))) {
    return checks.error();
  }
  if (!has_work(g)) {
    fill_with_zeros(*dx);
    fill_with_zeros(*doffset);
    fill_with_zeros(*dkernel);
    if (dmask) fill_with_zeros(*dmask);
    return ffi::Error::Success();
  }
  DeformConvGradients grad{};
  grad.g = g_out->untyped_data();
  grad.dx = dx->untyped_data();
  grad.doffset = doffset->untyped_data();
  grad.dkernel = dkernel->untyped_data();
  grad.dmask = dmask ? dmask->untyped_data() : nullptr;
  return result_of([&] { run_backward(pool, op, grad); });
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(DeformConv2dFwd, forward_impl,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()  // x
                                  .Arg<ffi::AnyBuffer>()  // offset
                                  .Arg<ffi::AnyBuffer>()  // kernel
                                  .RemainingArgs()        // mask
                                  .Ret<ffi::AnyBuffer>()  // y
                                  .Attrs<DeformConvAttributes>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(DeformConv2dBwd, backward_impl,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()  // x
                                  .Arg<ffi::AnyBuffer>()  // offset
                                  .Arg<ffi::AnyBuffer>()  // kernel
                                  .RemainingArgs()        // mask, g
                                  .Ret<ffi::AnyBuffer>()  // dx
                                  .Ret<ffi::AnyBuffer>()  // doffset
                                  .Ret<ffi::AnyBuffer>()  // dkernel
                                  .RemainingRets()        // dmask
                                  .Attrs<DeformConvAttributes>());

XLA_OPS_REGISTER("dcn_jax.deform_conv2d.fwd", DeformConv2dFwd);
XLA_OPS_REGISTER("dcn_jax.deform_conv2d.bwd", DeformConv2dBwd);

}  // namespace
}  // namespace xla_ops
