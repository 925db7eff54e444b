// FFI handlers of roi_pool: quantised max pooling, on one map or a pyramid. Operands and
// results as in max_roi_pool_ffi.h.
#include "max_roi_pool.h"

#include <algorithm>
#include <new>
#include <string>
#include <vector>

#include "max_roi_pool_ffi.h"
#include "parallel.h"
#include "registry.h"
#include "xla/ffi/api/ffi.h"

namespace xla_ops {
namespace {

namespace ffi = ::xla::ffi;

// RoIs that a thread takes at a time.
constexpr int64_t kRoisPerChunk = 4;

// A block of a gradient map: as wide as this at most, whole cache lines.
constexpr int64_t kMaxBlockChannels = 64, kMinBlockChannels = 16;
// Bytes that the sums of one block should not exceed.
constexpr int64_t kBlockBytes = 4 << 20;

ffi::Error MaxRoiPoolFwdImpl(ffi::ThreadPool pool, ffi::RemainingArgs args,
                             ffi::Result<ffi::AnyBuffer> y, int64_t num_levels) {
  MaxRoiPoolCall call;
  const std::string error = decode_max_roi_pool_forward(args, num_levels, *y, &call);
  if (!error.empty()) return ffi::Error::InvalidArgument("roi_pool: " + error);
  if (is_empty(*y)) return ffi::Error::Success();
  const MaxRoiPoolOperands& op = call.op;
  const int64_t rois = op.N * op.B;
  const auto pool_rois = XLA_OPS_PICK(MaxRoiPoolForward);
  try {
    parallel_for(pool, (rois + kRoisPerChunk - 1) / kRoisPerChunk, [&](int64_t chunk, int64_t) {
      const int64_t first = chunk * kRoisPerChunk;
      pool_rois(op, first, std::min(first + kRoisPerChunk, rois), y->untyped_data());
    });
  } catch (const std::bad_alloc&) {
    return ffi::Error(ffi::ErrorCode::kResourceExhausted, "no memory for roi_pool");
  }
  return ffi::Error::Success();
}

// The blocks that own the gradient maps, the largest maps first.
std::vector<RoiMapBlock> map_blocks(const MaxRoiPoolOperands& op, int64_t threads,
                                    int64_t* channels) {
  int64_t pixels = 1;
  for (int64_t l = 0; l < op.L; ++l) pixels = std::max(pixels, op.maps[l].H * op.maps[l].W);
  int64_t width = kMaxBlockChannels;
  const auto too_wide = [&] {
    return op.N * op.L * ((op.C + width - 1) / width) < 4 * threads ||
           pixels * width * int64_t{sizeof(float)} > kBlockBytes;
  };
  while (width > kMinBlockChannels && too_wide()) width /= 2;
  std::vector<RoiMapBlock> blocks;
  for (int64_t l = 0; l < op.L; ++l) {
    for (int64_t n = 0; n < op.N; ++n) {
      for (int64_t c = 0; c < op.C;) {
        // A narrow rest costs little more in the last block than alone.
        const int64_t end = op.C - c < width + kMinBlockChannels ? op.C : c + width;
        blocks.push_back({n, l, c, end});
        *channels = std::max(*channels, end - c);
        c = end;
      }
    }
  }
  std::stable_sort(blocks.begin(), blocks.end(), [&](const RoiMapBlock& a, const RoiMapBlock& b) {
    return op.maps[a.level].H * op.maps[a.level].W > op.maps[b.level].H * op.maps[b.level].W;
  });
  return blocks;
}

ffi::Error MaxRoiPoolBwdImpl(ffi::ThreadPool pool, ffi::RemainingArgs args,
                             ffi::RemainingRets results, int64_t num_levels) {
  MaxRoiPoolCall call;
  const std::string error = decode_max_roi_pool_gradients(args, results, 0, num_levels, &call);
  if (!error.empty()) return ffi::Error::InvalidArgument("roi_pool: " + error);
  const MaxRoiPoolOperands& op = call.op;
  if (op.N == 0 || op.B == 0 || op.h == 0 || op.w == 0 || op.C == 0) {
    for (size_t i = 0; i < results.size(); ++i) {
      fill_with_zeros(**results.get<ffi::AnyBuffer>(i));
    }
    return ffi::Error::Success();
  }

  int64_t channels = 0;
  const std::vector<RoiMapBlock> blocks = map_blocks(op, pool.num_threads(), &channels);
  const int64_t chunks = static_cast<int64_t>(blocks.size());
  const int64_t bytes = (XLA_OPS_PICK(MaxRoiPoolScratchBytes)(op, channels) + 63) / 64 * 64;
  const auto map_gradient = XLA_OPS_PICK(MaxRoiPoolMapGradient);
  try {
    Scratch scratch(num_workers(pool, chunks) * bytes);
    parallel_for(pool, chunks, [&](int64_t chunk, int64_t worker) {
      map_gradient(op, call.g, blocks[chunk], scratch.as<char>() + worker * bytes);
    });
  } catch (const std::bad_alloc&) {
    return ffi::Error(ffi::ErrorCode::kResourceExhausted, "no memory for roi_pool");
  }
  return ffi::Error::Success();
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
