// FFI handlers of roi_pool: quantised max pooling, on one map or a pyramid.
//
// Operands: L maps [N,H_l,W_l,C], boxes [N,B,4], levels [N,B], map_sizes [N,L,2], then
// (backward) the gradient g [N,B,h,w,C]. Results: y [N,B,h,w,C]; or the gradients of the
// maps.
#include "max_roi_pool.h"

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

// Keeps a pixel's number inside int32.
constexpr int64_t kMaxPixels = int64_t{1} << 31;

// RoIs that a thread takes at a time.
constexpr int64_t kRoisPerChunk = 4;

// A block of a gradient map: as wide as this at most, whole cache lines.
constexpr int64_t kMaxBlockChannels = 64, kMinBlockChannels = 16;
// Bytes that the sums of one block should not exceed.
constexpr int64_t kBlockBytes = 4 << 20;

struct Call {
  MaxRoiPoolOperands op{};
  std::vector<RoiMap> maps;
  const void* g = nullptr;
};

// Fills `call` from the operands. Returns what is wrong, or "".
std::string decode(const ffi::RemainingArgs& args, int64_t num_levels, bool backward,
                   const Shape& output, Call* call) {
  if (num_levels < 1 || static_cast<size_t>(num_levels) > args.size()) {
    return "num_levels is " + std::to_string(num_levels);
  }
  const size_t expected = num_levels + 3 + (backward ? 1 : 0);
  if (args.size() != expected) {
    return std::to_string(args.size()) + " operands; expected " + std::to_string(expected);
  }
  std::vector<ffi::AnyBuffer> buffers;
  for (size_t i = 0; i < args.size(); ++i) {
    auto buffer = args.get<ffi::AnyBuffer>(i);
    if (!buffer) return "operand " + std::to_string(i) + " is not a buffer";
    buffers.push_back(*buffer);
  }

  MaxRoiPoolOperands& op = call->op;
  const ffi::DataType dtype = buffers[0].element_type();
  const auto type = element_type(dtype);
  if (!type) return "`features` has an element type that no kernel knows";
  op.type = *type;
  const ffi::AnyBuffer &boxes = buffers[num_levels], &levels = buffers[num_levels + 1],
                       &map_sizes = buffers[num_levels + 2];

  const Shape pooled = backward ? shape_of(buffers.back()) : output;
  if (pooled.size() != 5) return "the result has shape " + shape_text(pooled);
  op.N = pooled[0], op.B = pooled[1], op.h = pooled[2], op.w = pooled[3], op.C = pooled[4];
  op.L = num_levels;

  std::string error;
  for (int64_t l = 0; l < num_levels && error.empty(); ++l) {
    const Shape shape = shape_of(buffers[l]);
    if (shape.size() != 4 || shape[1] > kMaxRoiMapSide || shape[2] > kMaxRoiMapSide ||
        shape[1] * shape[2] >= kMaxPixels) {
      return "a map has shape " + shape_text(shape);
    }
    error = check_buffer("features", buffers[l], {op.N, shape[1], shape[2], op.C}, dtype);
    call->maps.push_back({shape[1], shape[2], buffers[l].untyped_data(), nullptr});
  }
  if (error.empty()) {
    error = check_buffer("boxes", boxes, {op.N, op.B, 4}, real_type(*type));
  }
  if (error.empty()) error = check_buffer("levels", levels, {op.N, op.B}, ffi::DataType::S32);
  if (error.empty()) {
    error = check_buffer("map_sizes", map_sizes, {op.N, op.L, 2}, ffi::DataType::S32);
  }
  if (error.empty() && backward) error = check_buffer("g", buffers.back(), pooled, dtype);

  op.maps = call->maps.data();
  op.boxes = boxes.untyped_data();
  op.levels = static_cast<const int32_t*>(levels.untyped_data());
  op.map_sizes = static_cast<const int32_t*>(map_sizes.untyped_data());
  call->g = backward ? buffers.back().untyped_data() : nullptr;
  return error;
}

ffi::Error MaxRoiPoolFwdImpl(ffi::ThreadPool pool, ffi::RemainingArgs args,
                             ffi::Result<ffi::AnyBuffer> y, int64_t num_levels) {
  Call call;
  std::string error = decode(args, num_levels, false, shape_of(*y), &call);
  if (error.empty() && y->element_type() != args.get<ffi::AnyBuffer>(0)->element_type()) {
    error = "the result has an element type that does not go with the features";
  }
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
  Call call;
  std::string error = decode(args, num_levels, true, {}, &call);
  if (error.empty() && results.size() != static_cast<size_t>(num_levels)) {
    error = std::to_string(results.size()) + " results; expected " + std::to_string(num_levels);
  }
  const MaxRoiPoolOperands& op = call.op;
  for (int64_t l = 0; l < num_levels && error.empty(); ++l) {
    auto result = results.get<ffi::AnyBuffer>(l);
    if (!result) {
      error = "result " + std::to_string(l) + " is not a buffer";
      break;
    }
    RoiMap& map = call.maps[l];
    error = check_buffer("gradient", **result, {op.N, map.H, map.W, op.C},
                         args.get<ffi::AnyBuffer>(l)->element_type());
    map.gradient = (*result)->untyped_data();
  }
  if (!error.empty()) return ffi::Error::InvalidArgument("roi_pool: " + error);
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
