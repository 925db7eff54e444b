// XLA FFI handlers of roi_pool: check the operands, launch. The same calls as the CPU's
// (../max_pool_decode.h), but the backward one has two more results, which are scratch:
// where each RoI reads, [N,B,4] int32, and the pixels of the maxima, [N,B,h,w,C] int32.
#include <optional>

#include "ffi/cuda_result.h"
#include "ffi/cuda_stream.h"
#include "ffi/registry.h"
#include "roi/cuda/max_pool_kernels.h"
#include "roi/cuda/pool_kernels.h"
#include "roi/max_pool_decode.h"
#include "xla/ffi/api/ffi.h"

namespace xla_ops {
namespace cuda {
namespace {

namespace ffi = ::xla::ffi;

constexpr char kOperation[] = "roi_pool";

// What the kernels cannot do.
bool check_sizes(Checks& checks, const MaxRoiPoolOperands& op) {
  return checks.require(op.L <= kMaxRoiLevels, op.L, " maps; the kernels take ", kMaxRoiLevels) &&
         checks.require(op.h * op.w <= kMaxRoiCells, "a RoI has too many bins");
}

ffi::Error MaxRoiPoolFwdImpl(cudaStream_t stream, ffi::RemainingArgs args,
                             ffi::Result<ffi::AnyBuffer> y, int64_t num_levels) {
  Checks checks(kOperation);
  MaxRoiPoolCall call;
  if (!(decode_max_roi_pool(checks, args, num_levels, &*y, &call) &&
        check_sizes(checks, call.op))) {
    return checks.error();
  }
  return result_of(kOperation, max_pool_rois(call.op, y->untyped_data(), stream));
}

ffi::Error MaxRoiPoolBwdImpl(cudaStream_t stream, ffi::RemainingArgs args,
                             ffi::RemainingRets results, int64_t num_levels) {
  Checks checks(kOperation);
  MaxRoiPoolCall call;
  const MaxRoiPoolOperands& op = call.op;
  const ffi::DataType s32 = ffi::DataType::S32;
  std::optional<ffi::AnyBuffer> reach, places;
  if (!(decode_max_roi_pool_gradients(checks, args, results, 2, num_levels, &call) &&
        check_sizes(checks, op) && checks.take(results, num_levels, &reach) &&
        checks.take(results, num_levels + 1, &places) &&
        checks.buffer("reach", *reach, {op.N, op.B, 4}, s32) &&
        checks.buffer("places", *places, {op.N, op.B, op.h, op.w, op.C}, s32))) {
    return checks.error();
  }
  return result_of(kOperation,
                   max_roi_map_gradient(op, call.g, static_cast<int32_t*>(reach->untyped_data()),
                                        static_cast<int32_t*>(places->untyped_data()), stream));
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    MaxRoiPoolFwd, MaxRoiPoolFwdImpl,
    ffi::Ffi::Bind().Ctx<Stream>().RemainingArgs().Ret<ffi::AnyBuffer>().Attr<int64_t>(
        "num_levels"),
    {ffi::Traits::kCmdBufferCompatible});
XLA_OPS_REGISTER("dcn_jax.max_roi_pool.fwd", MaxRoiPoolFwd);

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    MaxRoiPoolBwd, MaxRoiPoolBwdImpl,
    ffi::Ffi::Bind().Ctx<Stream>().RemainingArgs().RemainingRets().Attr<int64_t>("num_levels"),
    {ffi::Traits::kCmdBufferCompatible});
XLA_OPS_REGISTER("dcn_jax.max_roi_pool.bwd", MaxRoiPoolBwd);

}  // namespace
}  // namespace cuda
}  // namespace xla_ops
