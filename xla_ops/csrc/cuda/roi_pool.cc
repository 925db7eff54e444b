// XLA FFI handlers of RoI pooling: check the operands, launch. The same calls as the
// CPU's (../roi_pool_ffi.h), but the backward ones have one more result, which is scratch:
// where each RoI reads, [N,B,4] int32.
#include "roi_pool.h"

#include <string>
#include <string_view>

#include "ffi_stream.h"
#include "registry.h"
#include "result.h"
#include "roi_pool_ffi.h"
#include "xla/ffi/api/ffi.h"

namespace xla_ops {
namespace cuda {
namespace {

namespace ffi = ::xla::ffi;

constexpr char kOperation[] = "roi_pool";

// What the kernels cannot do, or "".
std::string check_sizes(const RoiPoolCall& call) {
  if (call.maps.size() > kMaxRoiLevels) {
    return std::to_string(call.maps.size()) + " maps; the kernels take " +
           std::to_string(kMaxRoiLevels);
  }
  return call.op.h * call.op.w * call.op.classes > kMaxRoiCells ? "a RoI has too many bins" : "";
}

ffi::Error forward(cudaStream_t stream, const ffi::RemainingArgs& args,
                   ffi::Result<ffi::AnyBuffer> y, const RoiPoolAttributes& attributes) {
  RoiPoolCall call;
  std::string error = decode_roi_pool(args, attributes, &*y, &call);
  if (error.empty()) error = check_sizes(call);
  if (!error.empty()) return result_of(kOperation, error, nullptr);
  return result_of(kOperation, "", pool_rois(call.op, y->untyped_data(), stream));
}

ffi::Error backward(cudaStream_t stream, const ffi::RemainingArgs& args,
                    const ffi::RemainingRets& results, const RoiPoolAttributes& attributes) {
  RoiPoolCall call;
  std::string error = decode_roi_pool_gradients(args, results, 1, attributes, &call);
  if (error.empty()) error = check_sizes(call);
  if (!error.empty()) return result_of(kOperation, error, nullptr);
  const RoiPoolOperands& op = call.op;
  auto reach = results.get<ffi::AnyBuffer>(results.size() - 1);
  if (!reach) return reach.error();
  error = check_buffer("reach", **reach, {op.N, op.B, 4}, ffi::DataType::S32);
  if (!error.empty()) return result_of(kOperation, error, nullptr);
  if (call.dshift || call.dmask) {
    const simt::Failure failure = roi_bin_gradient(op, call.g, call.dshift, call.dmask, stream);
    if (failure) return result_of(kOperation, "", failure);
  }
  return result_of(
      kOperation, "",
      roi_map_gradient(op, call.g, static_cast<int32_t*>((*reach)->untyped_data()), stream));
}

ffi::Error RoiPoolFwdImpl(cudaStream_t stream, ffi::RemainingArgs args,
                          ffi::Result<ffi::AnyBuffer> y, int64_t num_levels, int64_t has_shift,
                          int64_t has_mask, int64_t sampling_ratio) {
  return forward(stream, args, y,
                 roi_pool_attributes(num_levels, has_shift, has_mask, sampling_ratio));
}

ffi::Error RoiPoolBwdImpl(cudaStream_t stream, ffi::RemainingArgs args, ffi::RemainingRets results,
                          int64_t num_levels, int64_t has_shift, int64_t has_mask,
                          int64_t sampling_ratio) {
  return backward(stream, args, results,
                  roi_pool_attributes(num_levels, has_shift, has_mask, sampling_ratio));
}

ffi::Error PsRoiPoolFwdImpl(cudaStream_t stream, ffi::RemainingArgs args,
                            ffi::Result<ffi::AnyBuffer> y, int64_t num_levels, int64_t has_shift,
                            int64_t has_mask, std::string_view sampling, int64_t samples,
                            int64_t group_h, int64_t group_w) {
  RoiPoolAttributes attributes;
  const std::string error = ps_roi_pool_attributes(num_levels, has_shift, has_mask, sampling,
                                                   samples, group_h, group_w, &attributes);
  return error.empty() ? forward(stream, args, y, attributes)
                       : result_of(kOperation, error, nullptr);
}

ffi::Error PsRoiPoolBwdImpl(cudaStream_t stream, ffi::RemainingArgs args,
                            ffi::RemainingRets results, int64_t num_levels, int64_t has_shift,
                            int64_t has_mask, std::string_view sampling, int64_t samples,
                            int64_t group_h, int64_t group_w) {
  RoiPoolAttributes attributes;
  const std::string error = ps_roi_pool_attributes(num_levels, has_shift, has_mask, sampling,
                                                   samples, group_h, group_w, &attributes);
  return error.empty() ? backward(stream, args, results, attributes)
                       : result_of(kOperation, error, nullptr);
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    RoiPoolFwd, RoiPoolFwdImpl,
    bind_roi_pool_attributes(ffi::Ffi::Bind().Ctx<Stream>().RemainingArgs().Ret<ffi::AnyBuffer>()),
    {ffi::Traits::kCmdBufferCompatible});
XLA_OPS_REGISTER("dcn_jax.roi_pool.fwd", RoiPoolFwd);

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    RoiPoolBwd, RoiPoolBwdImpl,
    bind_roi_pool_attributes(ffi::Ffi::Bind().Ctx<Stream>().RemainingArgs().RemainingRets()),
    {ffi::Traits::kCmdBufferCompatible});
XLA_OPS_REGISTER("dcn_jax.roi_pool.bwd", RoiPoolBwd);

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    PsRoiPoolFwd, PsRoiPoolFwdImpl,
    bind_ps_roi_pool_attributes(
        ffi::Ffi::Bind().Ctx<Stream>().RemainingArgs().Ret<ffi::AnyBuffer>()),
    {ffi::Traits::kCmdBufferCompatible});
XLA_OPS_REGISTER("dcn_jax.ps_roi_pool.fwd", PsRoiPoolFwd);

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    PsRoiPoolBwd, PsRoiPoolBwdImpl,
    bind_ps_roi_pool_attributes(ffi::Ffi::Bind().Ctx<Stream>().RemainingArgs().RemainingRets()),
    {ffi::Traits::kCmdBufferCompatible});
XLA_OPS_REGISTER("dcn_jax.ps_roi_pool.bwd", PsRoiPoolBwd);

}  // namespace
}  // namespace cuda
}  // namespace xla_ops
