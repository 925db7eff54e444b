// FFI handlers of RoI pooling: roi_align and deform_roi_pool, on one map or a pyramid.
//
// Operands: L maps [N,H_l,W_l,C], boxes [N,B,4], levels [N,B], map_sizes [N,L,2], then
// shift [N,B,h,w,2] and mask [N,B,h,w] where there are such, then (backward) the
// gradient g [N,B,h,w,C]. Results: y [N,B,h,w,C]; or the gradients of the maps, shift
// and mask.
#include "roi_pool.h"

#include <algorithm>
#include <new>
#include <string>
#include <vector>

#include "../geometry.h"
#include "buffers.h"
#include "parallel.h"
#include "registry.h"
#include "xla/ffi/api/ffi.h"

namespace xla_ops {
namespace {

namespace ffi = ::xla::ffi;

// Far beyond any use; keeps products of sizes inside int64.
constexpr int64_t kMaxSamplingRatio = 1 << 16;

// RoIs that a thread takes at a time.
constexpr int64_t kRoisPerChunk = 4;

// A block of a gradient map: as wide as this at most, whole cache lines.
constexpr int64_t kMaxBlockChannels = 64, kMinBlockChannels = 16;
// Bytes that the sums of one block may take, for maps in half precision.
constexpr int64_t kBlockBytes = 4 << 20;

struct Call {
  RoiPoolOperands op{};
  std::vector<RoiMap> maps;
  const void* g = nullptr;
};

// Fills `call` from the operands. Returns what is wrong, or "".
std::string decode(const ffi::RemainingArgs& args, int64_t num_levels, int64_t has_shift,
                   int64_t has_mask, int64_t sampling_ratio, bool backward, const Shape& output,
                   Call* call) {
  if (num_levels < 1) return "num_levels is " + std::to_string(num_levels);
  if (sampling_ratio < 0 || sampling_ratio > kMaxSamplingRatio) {
    return "`sampling_ratio` is " + std::to_string(sampling_ratio) + "; expected 0 to " +
           std::to_string(kMaxSamplingRatio);
  }
  const size_t expected =
      num_levels + 3 + (has_shift ? 1 : 0) + (has_mask ? 1 : 0) + (backward ? 1 : 0);
  if (args.size() != expected) {
    return std::to_string(args.size()) + " operands; expected " + std::to_string(expected);
  }
  std::vector<ffi::AnyBuffer> buffers;
  for (size_t i = 0; i < args.size(); ++i) {
    auto buffer = args.get<ffi::AnyBuffer>(i);
    if (!buffer) return "operand " + std::to_string(i) + " is not a buffer";
    buffers.push_back(*buffer);
  }

  RoiPoolOperands& op = call->op;
  const ffi::DataType dtype = buffers[0].element_type();
  const auto type = element_type(dtype);
  if (!type) return "`features` has an element type that no kernel knows";
  op.type = *type;
  const ffi::DataType real = real_type(*type);

  size_t next = num_levels;
  const ffi::AnyBuffer* boxes = &buffers[next++];
  const ffi::AnyBuffer* levels = &buffers[next++];
  const ffi::AnyBuffer* map_sizes = &buffers[next++];
  const ffi::AnyBuffer* shift = has_shift ? &buffers[next++] : nullptr;
  const ffi::AnyBuffer* mask = has_mask ? &buffers[next++] : nullptr;
  const ffi::AnyBuffer* g = backward ? &buffers[next++] : nullptr;

  const Shape pooled = g ? shape_of(*g) : output;
  if (pooled.size() != 5) return "the result has shape " + shape_text(pooled);
  op.N = pooled[0], op.B = pooled[1], op.h = pooled[2], op.w = pooled[3], op.C = pooled[4];
  op.L = num_levels;
  op.sampling_ratio = sampling_ratio;

  std::string error;
  for (int64_t l = 0; l < num_levels && error.empty(); ++l) {
    const Shape shape = shape_of(buffers[l]);
    if (shape.size() != 4) return "a map has shape " + shape_text(shape);
    error = check_buffer("features", buffers[l], {op.N, shape[1], shape[2], op.C}, dtype);
    call->maps.push_back({shape[1], shape[2], buffers[l].untyped_data(), nullptr});
  }
  if (error.empty()) error = check_buffer("boxes", *boxes, {op.N, op.B, 4}, real);
  if (error.empty()) error = check_buffer("levels", *levels, {op.N, op.B}, ffi::DataType::S32);
  if (error.empty()) {
    error = check_buffer("map_sizes", *map_sizes, {op.N, op.L, 2}, ffi::DataType::S32);
  }
  if (error.empty() && shift) {
    error = check_buffer("shift", *shift, {op.N, op.B, op.h, op.w, 2}, real);
  }
  if (error.empty() && mask) error = check_buffer("mask", *mask, {op.N, op.B, op.h, op.w}, real);
  if (error.empty() && g) error = check_buffer("g", *g, pooled, dtype);

  op.maps = call->maps.data();
  op.boxes = boxes->untyped_data();
  op.levels = static_cast<const int32_t*>(levels->untyped_data());
  op.map_sizes = static_cast<const int32_t*>(map_sizes->untyped_data());
  op.shift = shift ? shift->untyped_data() : nullptr;
  op.mask = mask ? mask->untyped_data() : nullptr;
  call->g = g ? g->untyped_data() : nullptr;
  return error;
}

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

ffi::Error RoiPoolFwdImpl(ffi::ThreadPool pool, ffi::RemainingArgs args,
                          ffi::Result<ffi::AnyBuffer> y, int64_t num_levels, int64_t has_shift,
                          int64_t has_mask, int64_t sampling_ratio) {
  Call call;
  const std::string error =
      decode(args, num_levels, has_shift, has_mask, sampling_ratio, false, shape_of(*y), &call);
  if (!error.empty()) return ffi::Error::InvalidArgument("roi_pool: " + error);
  const RoiPoolOperands& op = call.op;
  const int64_t rois = op.N * op.B;
  const auto pool_rois = XLA_OPS_PICK(RoiPoolForward);
  return for_each_chunk(
      pool, (rois + kRoisPerChunk - 1) / kRoisPerChunk, XLA_OPS_PICK(RoiPoolScratchBytes)(op, 0),
      [&](int64_t chunk, void* scratch) {
        const int64_t first = chunk * kRoisPerChunk;
        pool_rois(op, first, std::min(first + kRoisPerChunk, rois), y->untyped_data(), scratch);
      });
}

// The blocks that own the gradient maps, the largest maps first.
std::vector<RoiMapBlock> map_blocks(const RoiPoolOperands& op, int64_t threads,
                                    int64_t* channels) {
  int64_t pixels = 1;
  for (int64_t l = 0; l < op.L; ++l) pixels = std::max(pixels, op.maps[l].H * op.maps[l].W);
  int64_t width = kMaxBlockChannels;
  const bool has_sums = op.type == ElementType::kBF16 || op.type == ElementType::kF16;
  const auto too_wide = [&] {
    return op.N * op.L * ((op.C + width - 1) / width) < 4 * threads ||
           (has_sums && pixels * width * int64_t{sizeof(float)} > kBlockBytes);
  };
  while (width > kMinBlockChannels && too_wide()) width /= 2;
  *channels = width;
  std::vector<RoiMapBlock> blocks;
  for (int64_t l = 0; l < op.L; ++l) {
    for (int64_t n = 0; n < op.N; ++n) {
      for (int64_t c = 0; c < op.C; c += width) {
        blocks.push_back({n, l, c, std::min(c + width, op.C)});
      }
    }
  }
  std::stable_sort(blocks.begin(), blocks.end(), [&](const RoiMapBlock& a, const RoiMapBlock& b) {
    return op.maps[a.level].H * op.maps[a.level].W > op.maps[b.level].H * op.maps[b.level].W;
  });
  return blocks;
}

ffi::Error RoiPoolBwdImpl(ffi::ThreadPool pool, ffi::RemainingArgs args,
                          ffi::RemainingRets results, int64_t num_levels, int64_t has_shift,
                          int64_t has_mask, int64_t sampling_ratio) {
  Call call;
  std::string error =
      decode(args, num_levels, has_shift, has_mask, sampling_ratio, true, {}, &call);
  const size_t expected = num_levels + (has_shift ? 1 : 0) + (has_mask ? 1 : 0);
  if (error.empty() && results.size() != expected) error = "wrong number of results";
  for (size_t i = 0; i < expected && error.empty(); ++i) {
    auto result = results.get<ffi::AnyBuffer>(i);
    auto operand = args.get<ffi::AnyBuffer>(i < size_t(num_levels) ? i : i + 3);
    if (!result || !operand) return ffi::Error::InvalidArgument("roi_pool: not a buffer");
    error = check_buffer("gradient", **result, shape_of(*operand), operand->element_type());
  }
  if (!error.empty()) return ffi::Error::InvalidArgument("roi_pool: " + error);

  const auto data = [&](size_t i) { return (*results.get<ffi::AnyBuffer>(i))->untyped_data(); };
  size_t next = 0;
  for (RoiMap& map : call.maps) map.gradient = data(next++);
  void* dshift = has_shift ? data(next++) : nullptr;
  void* dmask = has_mask ? data(next++) : nullptr;

  const RoiPoolOperands& op = call.op;
  if (dshift || dmask) {
    const int64_t rois = op.N * op.B;
    const auto bin_gradient = XLA_OPS_PICK(RoiPoolBinGradient);
    ffi::Error failed = for_each_chunk(
        pool, (rois + kRoisPerChunk - 1) / kRoisPerChunk, XLA_OPS_PICK(RoiPoolScratchBytes)(op, 0),
        [&](int64_t chunk, void* scratch) {
          const int64_t first = chunk * kRoisPerChunk;
          bin_gradient(op, call.g, first, std::min(first + kRoisPerChunk, rois), dshift, dmask,
                       scratch);
        });
    if (failed.failure()) return failed;
  }
  int64_t channels = 0;
  const std::vector<RoiMapBlock> blocks = map_blocks(op, pool.num_threads(), &channels);
  const auto map_gradient = XLA_OPS_PICK(RoiPoolMapGradient);
  return for_each_chunk(
      pool, static_cast<int64_t>(blocks.size()), XLA_OPS_PICK(RoiPoolScratchBytes)(op, channels),
      [&](int64_t chunk, void* scratch) { map_gradient(op, call.g, blocks[chunk], scratch); });
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(RoiPoolFwd, RoiPoolFwdImpl,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .RemainingArgs()
                                  .Ret<ffi::AnyBuffer>()
                                  .Attr<int64_t>("num_levels")
                                  .Attr<int64_t>("has_shift")
                                  .Attr<int64_t>("has_mask")
                                  .Attr<int64_t>("sampling_ratio"));
XLA_OPS_REGISTER("dcn_jax.roi_pool.fwd", RoiPoolFwd);

XLA_FFI_DEFINE_HANDLER_SYMBOL(RoiPoolBwd, RoiPoolBwdImpl,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .RemainingArgs()
                                  .RemainingRets()
                                  .Attr<int64_t>("num_levels")
                                  .Attr<int64_t>("has_shift")
                                  .Attr<int64_t>("has_mask")
                                  .Attr<int64_t>("sampling_ratio"));
XLA_OPS_REGISTER("dcn_jax.roi_pool.bwd", RoiPoolBwd);

}  // namespace
}  // namespace xla_ops
