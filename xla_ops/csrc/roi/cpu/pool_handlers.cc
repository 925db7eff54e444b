// FFI handlers of RoI pooling, on one map or a pyramid: "roi_pool" is roi_align and
// deform_roi_pool, "ps_roi_pool" the position-sensitive operators. Operands and results
// as in ../pool_decode.h.
#include <algorithm>
#include <vector>

#include "ffi/registry.h"
#include "roi/cpu/chunks.h"
#include "roi/cpu/pool_kernels.h"
#include "roi/pool_decode.h"
#include "xla/ffi/api/ffi.h"

namespace xla_ops {
namespace {

namespace ffi = ::xla::ffi;

ffi::Error forward(ffi::ThreadPool& pool, const ffi::RemainingArgs& args,
                   ffi::Result<ffi::AnyBuffer> y, const RoiPoolSettings& settings) {
  Checks checks("roi_pool");
  RoiPoolCall call;
  if (!decode_roi_pool(checks, args, settings, &*y, &call)) return checks.error();
  if (is_empty(*y)) return ffi::Error::Success();
  const RoiPoolOperands& op = call.op;
  const RoiPoolKernels& kernels = roi_pool_kernels(op.type);
  return for_each_run_of_rois(pool, op, kernels.scratch_bytes(op, 0, 0),
                              [&](int64_t first, int64_t last, void* scratch) {
                                kernels.pool(op, first, last, y->untyped_data(), scratch);
                              });
}

// The blocks that own the gradient maps, the largest maps first: enough for all threads.
std::vector<RoiMapBlock> map_blocks(const RoiPoolOperands& op, int64_t most_channels,
                                    int64_t threads) {
  const int64_t groups = op.group_h * op.group_w, planes = op.N * op.L * groups;
  const auto ceil_div = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  int64_t all_rows = 0;
  for (int64_t l = 0; l < op.L; ++l) all_rows += op.maps[l].H;
  // Rows are cut first.
  // `threads` is 0 where XLA has no pool.
  const int64_t wanted = kBlocksOfThread * std::max<int64_t>(threads, 1);
  const int64_t most_bands = ceil_div(all_rows, op.L * kMinBlockRows);
  int64_t width = std::max(most_channels, kMinBlockChannels);
  while (width > kMinBlockChannels && planes * ceil_div(op.C, width) * most_bands < wanted) {
    width /= 2;
  }
  const int64_t columns = planes * ceil_div(op.C, width);
  if (columns == 0) return {};
  const int64_t bands = ceil_div(wanted, columns);
  const bool has_sums = op.type == ElementType::kBF16 || op.type == ElementType::kF16;
  std::vector<RoiMapBlock> blocks;
  for (int64_t l = 0; l < op.L; ++l) {
    const int64_t H = op.maps[l].H, row_bytes = op.maps[l].W * width * int64_t{sizeof(float)};
    int64_t rows = std::max(ceil_div(H, bands), kMinBlockRows);
    if (has_sums) rows = std::max<int64_t>(1, std::min(rows, kBlockBytes / row_bytes));
    for (int64_t n = 0; n < op.N; ++n) {
      for (int64_t group = 0; group < groups; ++group) {
        for (int64_t row = 0; row < H; row += rows) {
          for (int64_t c = 0; c < op.C; c += width) {
            blocks.push_back(
                {n, l, group, row, std::min(row + rows, H), c, std::min(c + width, op.C)});
          }
        }
      }
    }
  }
  sort_largest_first(op, &blocks);
  return blocks;
}

ffi::Error backward(ffi::ThreadPool& pool, const ffi::RemainingArgs& args,
                    const ffi::RemainingRets& results, const RoiPoolSettings& settings) {
  Checks checks("roi_pool");
  RoiPoolCall call;
  if (!decode_roi_pool_gradients(checks, args, results, 0, settings, &call)) {
    return checks.error();
  }
  const RoiPoolOperands& op = call.op;
  if (adds_nothing(op)) {
    fill_with_zeros(results);
    return ffi::Error::Success();
  }

  const RoiPoolKernels& kernels = roi_pool_kernels(op.type);
  if (call.dshift || call.dmask) {
    ffi::Error failed = for_each_run_of_rois(
        pool, op, kernels.scratch_bytes(op, 0, 0),
        [&](int64_t first, int64_t last, void* scratch) {
          kernels.bin_gradient(op, call.g, first, last, call.dshift, call.dmask, scratch);
        });
    if (failed.failure()) return failed;
  }
  return for_each_block(
      pool, op, map_blocks(op, kernels.block_channels, pool.num_threads()),
      [&](int64_t pixels, int64_t channels) {
        return kernels.scratch_bytes(op, pixels, channels);
      },
      [&](const RoiMapBlock& block, void* scratch) {
        kernels.map_gradient(op, call.g, block, scratch);
      });
}

// Attributes is RoiPoolAttributes or PsRoiPoolAttributes.
template <typename Attributes>
ffi::Error forward_impl(ffi::ThreadPool pool, ffi::RemainingArgs args,
                        ffi::Result<ffi::AnyBuffer> y, Attributes attributes) {
  Checks checks("ps_roi_pool");
  RoiPoolSettings settings;
  if (!decode_settings(checks, attributes, &settings)) return checks.error();
  return forward(pool, args, y, settings);
}

template <typename Attributes>
ffi::Error backward_impl(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::RemainingRets results,
                         Attributes attributes) {
  Checks checks("ps_roi_pool");
  RoiPoolSettings settings;
  if (!decode_settings(checks, attributes, &settings)) return checks.error();
  return backward(pool, args, results, settings);
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(RoiPoolFwd, forward_impl<RoiPoolAttributes>,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .RemainingArgs()
                                  .Ret<ffi::AnyBuffer>()
                                  .Attrs<RoiPoolAttributes>());
XLA_OPS_REGISTER("dcn_jax.roi_pool.fwd", RoiPoolFwd);

XLA_FFI_DEFINE_HANDLER_SYMBOL(RoiPoolBwd, backward_impl<RoiPoolAttributes>,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .RemainingArgs()
                                  .RemainingRets()
                                  .Attrs<RoiPoolAttributes>());
XLA_OPS_REGISTER("dcn_jax.roi_pool.bwd", RoiPoolBwd);

XLA_FFI_DEFINE_HANDLER_SYMBOL(PsRoiPoolFwd, forward_impl<PsRoiPoolAttributes>,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .RemainingArgs()
                                  .Ret<ffi::AnyBuffer>()
                                  .Attrs<PsRoiPoolAttributes>());
XLA_OPS_REGISTER("dcn_jax.ps_roi_pool.fwd", PsRoiPoolFwd);

XLA_FFI_DEFINE_HANDLER_SYMBOL(PsRoiPoolBwd, backward_impl<PsRoiPoolAttributes>,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .RemainingArgs()
                                  .RemainingRets()
                                  .Attrs<PsRoiPoolAttributes>());
XLA_OPS_REGISTER("dcn_jax.ps_roi_pool.bwd", PsRoiPoolBwd);

}  // namespace
}  // namespace xla_ops
