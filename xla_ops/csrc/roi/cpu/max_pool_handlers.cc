// FFI handlers of roi_pool: quantised max pooling, on one map or a pyramid. Operands and
// results as in ../max_pool_decode.h.
#include <algorithm>
#include <vector>

#include "ffi/registry.h"
#include "roi/cpu/chunks.h"
#include "roi/cpu/max_pool_kernels.h"
#include "roi/max_pool_decode.h"
#include "xla/ffi/api/ffi.h"

namespace xla_ops {
namespace {

namespace ffi = ::xla::ffi;

constexpr char kOperation[] = "roi_pool";

ffi::Error MaxRoiPoolFwdImpl(ffi::ThreadPool pool, ffi::RemainingArgs args,
                             ffi::Result<ffi::AnyBuffer> y, int64_t num_levels) {
  Checks checks(kOperation);
  MaxRoiPoolCall call;
  if (!decode_max_roi_pool(checks, args, num_levels, &*y, &call)) return checks.error();
  if (is_empty(*y)) return ffi::Error::Success();
  const MaxRoiPoolOperands& op = call.op;
  const MaxRoiPoolKernels& kernels = max_roi_pool_kernels(op.type);
  return for_each_run_of_rois(pool, op, 0, [&](int64_t first, int64_t last, void*) {
    kernels.pool(op, first, last, y->untyped_data());
  });
}

// The blocks that own the gradient maps, the largest maps first.
std::vector<RoiMapBlock> map_blocks(const MaxRoiPoolOperands& op, int64_t threads) {
  int64_t pixels = 1;
  for (int64_t l = 0; l < op.L; ++l) pixels = std::max(pixels, op.maps[l].H * op.maps[l].W);
  int64_t width = kMaxBlockChannels;
  const auto too_wide = [&] {
    return op.N * op.L * ((op.C + width - 1) / width) < kBlocksOfThread * threads ||
           pixels * width * int64_t{sizeof(float)} > kBlockBytes;
  };
  while (width > kMinBlockChannels && too_wide()) width /= 2;
  std::vector<RoiMapBlock> blocks;
  for (int64_t l = 0; l < op.L; ++l) {
    for (int64_t n = 0; n < op.N; ++n) {
      for (int64_t c = 0; c < op.C;) {
        // A narrow rest costs little more in the last block than alone.
        const int64_t end = op.C - c < width + kMinBlockChannels ? op.C : c + width;
        blocks.push_back({n, l, 0, 0, op.maps[l].H, c, end});
        c = end;
      }
    }
  }
  sort_largest_first(op, &blocks);
  return blocks;
}

ffi::Error MaxRoiPoolBwdImpl(ffi::ThreadPool pool, ffi::RemainingArgs args,
                             ffi::RemainingRets results, int64_t num_levels) {
  Checks checks(kOperation);
  MaxRoiPoolCall call;
  if (!decode_max_roi_pool_gradients(checks, args, results, 0, num_levels, &call)) {
    return checks.error();
  }
  const MaxRoiPoolOperands& op = call.op;
  if (adds_nothing(op)) {
    fill_with_zeros(results);
    return ffi::Error::Success();
  }

  const MaxRoiPoolKernels& kernels = max_roi_pool_kernels(op.type);
  return for_each_block(
      pool, op, map_blocks(op, pool.num_threads()),
      [&](int64_t pixels, int64_t channels) {
        return kernels.scratch_bytes(op, pixels, channels);
      },
      [&](const RoiMapBlock& block, void* scratch) {
        kernels.map_gradient(op, call.g, block, scratch);
      });
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    MaxRoiPoolFwd, MaxRoiPoolFwdImpl,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().RemainingArgs().Ret<ffi::AnyBuffer>().Attr<int64_t>(
        "num_levels"));
XLA_OPS_REGISTER("dcn_jax.max_roi_pool.fwd", MaxRoiPoolFwd);

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    MaxRoiPoolBwd, MaxRoiPoolBwdImpl,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().RemainingArgs().RemainingRets().Attr<int64_t>(
        "num_levels"));
XLA_OPS_REGISTER("dcn_jax.max_roi_pool.bwd", MaxRoiPoolBwd);

}  // namespace
}  // namespace xla_ops
