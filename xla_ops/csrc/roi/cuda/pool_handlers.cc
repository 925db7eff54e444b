// XLA FFI handlers of RoI pooling: check the operands, launch. The same calls as the
// CPU's (../pool_decode.h), but the backward ones have one more result, which is scratch:
// where each RoI reads, [N,B,4] int32.
#include <optional>

#include "ffi/cuda_result.h"
#include "ffi/cuda_stream.h"
#include "ffi/registry.h"
#include "roi/cuda/pool_kernels.h"
#include "roi/pool_decode.h"
#include "xla/ffi/api/ffi.h"

namespace xla_ops {
namespace cuda {
namespace {

namespace ffi = ::xla::ffi;

constexpr char kOperation[] = "roi_pool";

// What the kernels cannot do.
bool check_sizes(Checks& checks, const RoiPoolCall& call) {
  const RoiPoolOperands& op = call.op;
  return checks.require(op.L <= kMaxRoiLevels, op.L, " maps; the kernels take ", kMaxRoiLevels) &&
         checks.require(op.h * op.w * op.classes <= kMaxRoiCells, "a RoI has too many bins");
}

ffi::Error forward(cudaStream_t stream, const ffi::RemainingArgs& args,
                   ffi::Result<ffi::AnyBuffer> y, const RoiPoolSettings& settings) {
  Checks checks(kOperation);
  RoiPoolCall call;
  if (!(decode_roi_pool(checks, args, settings, &*y, &call) && check_sizes(checks, call))) {
    return checks.error();
  }
  return result_of(kOperation, pool_rois(call.op, y->untyped_data(), stream));
}

ffi::Error backward(cudaStream_t stream, const ffi::RemainingArgs& args,
                    const ffi::RemainingRets& results, const RoiPoolSettings& settings) {
  Checks checks(kOperation);
  RoiPoolCall call;
  const RoiPoolOperands& op = call.op;
  std::optional<ffi::AnyBuffer> reach;
  if (!(decode_roi_pool_gradients(checks, args, results, 1, settings, &call) &&
        check_sizes(checks, call) && checks.take(results, results.size() - 1, &reach) &&
        checks.buffer("reach", *reach, {op.N, op.B, 4}, ffi::DataType::S32))) {
    return checks.error();
  }
  simt::Failure failure = nullptr;
  if (call.dshift || call.dmask) {
    failure = roi_bin_gradient(op, call.g, call.dshift, call.dmask, stream);
  }
  if (!failure) {
    failure = roi_map_gradient(op, call.g, static_cast<int32_t*>(reach->untyped_data()), stream);
  }
  return result_of(kOperation, failure);
}

// Attributes is RoiPoolAttributes or PsRoiPoolAttributes.
template <typename Attributes>
ffi::Error forward_impl(cudaStream_t stream, ffi::RemainingArgs args,
                        ffi::Result<ffi::AnyBuffer> y, Attributes attributes) {
  Checks checks(kOperation);
  RoiPoolSettings settings;
  if (!decode_settings(checks, attributes, &settings)) return checks.error();
  return forward(stream, args, y, settings);
}

template <typename Attributes>
ffi::Error backward_impl(cudaStream_t stream, ffi::RemainingArgs args, ffi::RemainingRets results,
                         Attributes attributes) {
  Checks checks(kOperation);
  RoiPoolSettings settings;
  if (!decode_settings(checks, attributes, &settings)) return checks.error();
  return backward(stream, args, results, settings);
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(RoiPoolFwd, forward_impl<RoiPoolAttributes>,
                              ffi::Ffi::Bind()
                                  .Ctx<Stream>()
                                  .RemainingArgs()
                                  .Ret<ffi::AnyBuffer>()
                                  .Attrs<RoiPoolAttributes>(),
                              {ffi::Traits::kCmdBufferCompatible});
XLA_OPS_REGISTER("dcn_jax.roi_pool.fwd", RoiPoolFwd);

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    RoiPoolBwd, backward_impl<RoiPoolAttributes>,
    ffi::Ffi::Bind().Ctx<Stream>().RemainingArgs().RemainingRets().Attrs<RoiPoolAttributes>(),
    {ffi::Traits::kCmdBufferCompatible});
XLA_OPS_REGISTER("dcn_jax.roi_pool.bwd", RoiPoolBwd);

XLA_FFI_DEFINE_HANDLER_SYMBOL(PsRoiPoolFwd, forward_impl<PsRoiPoolAttributes>,
                              ffi::Ffi::Bind()
                                  .Ctx<Stream>()
                                  .RemainingArgs()
                                  .Ret<ffi::AnyBuffer>()
                                  .Attrs<PsRoiPoolAttributes>(),
                              {ffi::Traits::kCmdBufferCompatible});
XLA_OPS_REGISTER("dcn_jax.ps_roi_pool.fwd", PsRoiPoolFwd);

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    PsRoiPoolBwd, backward_impl<PsRoiPoolAttributes>,
    ffi::Ffi::Bind().Ctx<Stream>().RemainingArgs().RemainingRets().Attrs<PsRoiPoolAttributes>(),
    {ffi::Traits::kCmdBufferCompatible});
XLA_OPS_REGISTER("dcn_jax.ps_roi_pool.bwd", PsRoiPoolBwd);

}  // namespace
}  // namespace cuda
}  // namespace xla_ops
