// FFI handlers of RoI pooling, on one map or a pyramid: "roi_pool" is roi_align and
// deform_roi_pool, "ps_roi_pool" the position-sensitive operators. Operands and results
// as in roi_pool_ffi.h.
#include "roi_pool.h"

#include <algorithm>
#include <new>
#include <string>
#include <string_view>
#include <vector>

#include "parallel.h"
#include "registry.h"
#include "roi_pool_ffi.h"
#include "xla/ffi/api/ffi.h"

namespace xla_ops {
namespace {

namespace ffi = ::xla::ffi;

// RoIs that a thread takes at a time.
constexpr int64_t kRoisPerChunk = 4;

// A block of a gradient map: as wide as this at most, whole cache lines.
constexpr int64_t kMaxBlockChannels = 64, kMinBlockChannels = 16;
// A block has no fewer rows without need: every block looks at all RoIs.
constexpr int64_t kMinBlockRows = 8;
// Bytes that the sums of one block may take, for maps in half precision.
constexpr int64_t kBlockBytes = 4 << 20;

// Calls body(chunk, scratch of the worker) for all chunks.
template <typename Body>
ffi::Error for_each_chunk(ffi::ThreadPool& pool, int64_t chunks, int64_t scratch_bytes,
                          Body&& body) {
  scratch_bytes = (scratch_bytes + 63) / 64 * 64;
  try {
    Scratch scratch(num_workers(pool, chunks) * scratch_bytes);
    parallel_for(pool, chunks, [&](int64_t chunk, int64_t worker) {
      body(chunk, scratch.as<char>() + worker * scratch_bytes);
    });
  } catch (const std::bad_alloc&) {
    return ffi::Error(ffi::ErrorCode::kResourceExhausted, "no memory for RoI pooling");
  }
  return ffi::Error::Success();
}

ffi::Error forward(ffi::ThreadPool& pool, const ffi::RemainingArgs& args,
                   ffi::Result<ffi::AnyBuffer> y, const RoiPoolAttributes& attributes) {
  RoiPoolCall call;
  const std::string error = decode_roi_pool_forward(args, attributes, *y, &call);
  if (!error.empty()) return ffi::Error::InvalidArgument("roi_pool: " + error);
  if (is_empty(*y)) return ffi::Error::Success();
  const RoiPoolOperands& op = call.op;
  const int64_t rois = op.N * op.B;
  const auto pool_rois = XLA_OPS_PICK(RoiPoolForward);
  return for_each_chunk(
      pool, (rois + kRoisPerChunk - 1) / kRoisPerChunk,
      XLA_OPS_PICK(RoiPoolScratchBytes)(op, 0, 0), [&](int64_t chunk, void* scratch) {
        const int64_t first = chunk * kRoisPerChunk;
        pool_rois(op, first, std::min(first + kRoisPerChunk, rois), y->untyped_data(), scratch);
      });
}

// The blocks that own the gradient maps, the largest maps first: enough for all threads.
std::vector<RoiPoolBlock> map_blocks(const RoiPoolOperands& op, int64_t threads) {
  const int64_t groups = op.group_h * op.group_w, planes = op.N * op.L * groups;
  const auto ceil_div = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  int64_t all_rows = 0;
  for (int64_t l = 0; l < op.L; ++l) all_rows += op.maps[l].H;
  // A wide block costs hardly more than a narrow one, so rows are cut first.
  // `threads` is 0 where XLA has no pool.
  const int64_t wanted = 4 * std::max<int64_t>(threads, 1);
  const int64_t most_bands = ceil_div(all_rows, op.L * kMinBlockRows);
  int64_t width = kMaxBlockChannels;
  while (width > kMinBlockChannels && planes * ceil_div(op.C, width) * most_bands < wanted) {
    width /= 2;
  }
  const int64_t columns = planes * ceil_div(op.C, width);
  if (columns == 0) return {};
  const int64_t bands = ceil_div(wanted, columns);
  const bool has_sums = op.type == ElementType::kBF16 || op.type == ElementType::kF16;
  std::vector<RoiPoolBlock> blocks;
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
  const auto pixels = [&](const RoiPoolBlock& block) {
    return (block.last_row - block.first_row) * op.maps[block.level].W;
  };
  std::stable_sort(
      blocks.begin(), blocks.end(),
      [&](const RoiPoolBlock& a, const RoiPoolBlock& b) { return pixels(a) > pixels(b); });
  return blocks;
}

ffi::Error backward(ffi::ThreadPool& pool, const ffi::RemainingArgs& args,
                    const ffi::RemainingRets& results, const RoiPoolAttributes& attributes) {
  RoiPoolCall call;
  const std::string error = decode_roi_pool_gradients(args, results, 0, attributes, &call);
  if (!error.empty()) return ffi::Error::InvalidArgument("roi_pool: " + error);
  const RoiPoolOperands& op = call.op;
  if (op.N == 0 || op.B == 0 || op.h == 0 || op.w == 0 || op.C == 0) {
    for (size_t i = 0; i < results.size(); ++i) {
      fill_with_zeros(**results.get<ffi::AnyBuffer>(i));
    }
    return ffi::Error::Success();
  }

  if (call.dshift || call.dmask) {
    const int64_t rois = op.N * op.B;
    const auto bin_gradient = XLA_OPS_PICK(RoiPoolBinGradient);
    ffi::Error failed = for_each_chunk(
        pool, (rois + kRoisPerChunk - 1) / kRoisPerChunk,
        XLA_OPS_PICK(RoiPoolScratchBytes)(op, 0, 0), [&](int64_t chunk, void* scratch) {
          const int64_t first = chunk * kRoisPerChunk;
          bin_gradient(op, call.g, first, std::min(first + kRoisPerChunk, rois), call.dshift,
                       call.dmask, scratch);
        });
    if (failed.failure()) return failed;
  }
  const std::vector<RoiPoolBlock> blocks = map_blocks(op, pool.num_threads());
  int64_t pixels = 0, channels = 0;
  for (const RoiPoolBlock& b : blocks) {
    pixels = std::max(pixels, (b.last_row - b.first_row) * op.maps[b.level].W);
    channels = std::max(channels, b.last_channel - b.first_channel);
  }
  const auto map_gradient = XLA_OPS_PICK(RoiPoolMapGradient);
  return for_each_chunk(
      pool, static_cast<int64_t>(blocks.size()),
      XLA_OPS_PICK(RoiPoolScratchBytes)(op, pixels, channels),
      [&](int64_t chunk, void* scratch) { map_gradient(op, call.g, blocks[chunk], scratch); });
}

ffi::Error RoiPoolFwdImpl(ffi::ThreadPool pool, ffi::RemainingArgs args,
                          ffi::Result<ffi::AnyBuffer> y, int64_t num_levels, int64_t has_shift,
                          int64_t has_mask, int64_t sampling_ratio) {
  return forward(pool, args, y,
                 roi_pool_attributes(num_levels, has_shift, has_mask, sampling_ratio));
}

ffi::Error RoiPoolBwdImpl(ffi::ThreadPool pool, ffi::RemainingArgs args,
                          ffi::RemainingRets results, int64_t num_levels, int64_t has_shift,
                          int64_t has_mask, int64_t sampling_ratio) {
  return backward(pool, args, results,
                  roi_pool_attributes(num_levels, has_shift, has_mask, sampling_ratio));
}

ffi::Error PsRoiPoolFwdImpl(ffi::ThreadPool pool, ffi::RemainingArgs args,
                            ffi::Result<ffi::AnyBuffer> y, int64_t num_levels, int64_t has_shift,
                            int64_t has_mask, std::string_view sampling, int64_t samples,
                            int64_t group_h, int64_t group_w) {
  RoiPoolAttributes attributes;
  const std::string error = ps_roi_pool_attributes(num_levels, has_shift, has_mask, sampling,
                                                   samples, group_h, group_w, &attributes);
  if (!error.empty()) return ffi::Error::InvalidArgument("ps_roi_pool: " + error);
  return forward(pool, args, y, attributes);
}

ffi::Error PsRoiPoolBwdImpl(ffi::ThreadPool pool, ffi::RemainingArgs args,
                            ffi::RemainingRets results, int64_t num_levels, int64_t has_shift,
                            int64_t has_mask, std::string_view sampling, int64_t samples,
                            int64_t group_h, int64_t group_w) {
  RoiPoolAttributes attributes;
  const std::string error = ps_roi_pool_attributes(num_levels, has_shift, has_mask, sampling,
                                                   samples, group_h, group_w, &attributes);
  if (!error.empty()) return ffi::Error::InvalidArgument("ps_roi_pool: " + error);
  return backward(pool, args, results, attributes);
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    RoiPoolFwd, RoiPoolFwdImpl,
    bind_roi_pool_attributes(
        ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().RemainingArgs().Ret<ffi::AnyBuffer>()));
XLA_OPS_REGISTER("dcn_jax.roi_pool.fwd", RoiPoolFwd);

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    RoiPoolBwd, RoiPoolBwdImpl,
    bind_roi_pool_attributes(
        ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().RemainingArgs().RemainingRets()));
XLA_OPS_REGISTER("dcn_jax.roi_pool.bwd", RoiPoolBwd);

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    PsRoiPoolFwd, PsRoiPoolFwdImpl,
    bind_ps_roi_pool_attributes(
        ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().RemainingArgs().Ret<ffi::AnyBuffer>()));
XLA_OPS_REGISTER("dcn_jax.ps_roi_pool.fwd", PsRoiPoolFwd);

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    PsRoiPoolBwd, PsRoiPoolBwdImpl,
    bind_ps_roi_pool_attributes(
        ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().RemainingArgs().RemainingRets()));
XLA_OPS_REGISTER("dcn_jax.ps_roi_pool.bwd", PsRoiPoolBwd);

}  // namespace
}  // namespace xla_ops
