// FFI handlers of RoI pooling, on one map or a pyramid: "roi_pool" is roi_align and
// deform_roi_pool, "ps_roi_pool" the position-sensitive operators.
//
// Operands: L maps, boxes [N,B,4], levels [N,B], map_sizes [N,L,2], then shift and mask
// [N,B,h,w] where there are such, then (backward) the gradient g [N,B,h,w,C]. Results: y
// [N,B,h,w,C]; or the gradients of the maps, shift and mask. Maps are [N,H_l,W_l,C] and
// shift [N,B,h,w,2]; for ps_roi_pool maps are [N,G,H_l,W_l,C] and shift
// [N,B,h,w,classes,2].
#include "roi_pool.h"

#include <algorithm>
#include <new>
#include <string>
#include <string_view>
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
constexpr int64_t kMaxSamples = 1 << 16, kMaxGroups = 1 << 16;

// RoIs that a thread takes at a time.
constexpr int64_t kRoisPerChunk = 4;

// A block of a gradient map: as wide as this at most, whole cache lines.
constexpr int64_t kMaxBlockChannels = 64, kMinBlockChannels = 16;
// A block has no fewer rows without need: every block looks at all RoIs.
constexpr int64_t kMinBlockRows = 8;
// Bytes that the sums of one block may take, for maps in half precision.
constexpr int64_t kBlockBytes = 4 << 20;

// The attributes of a call.
struct Attributes {
  int64_t num_levels;
  bool has_shift, has_mask;
  RoiSampling sampling;
  int64_t samples;
  int64_t group_h, group_w;
  bool grouped;  // ps_roi_pool: maps have an axis of groups, and shift one of classes

  int64_t moving() const { return num_levels + has_shift + has_mask; }
};

struct Call {
  RoiPoolOperands op{};
  std::vector<RoiMap> maps;
  const void* g = nullptr;
};

std::string check_attributes(const Attributes& a) {
  if (a.num_levels < 1) return "num_levels is " + std::to_string(a.num_levels);
  if (a.samples < 0 || a.samples > kMaxSamples) {
    return "samples of a bin along an axis are " + std::to_string(a.samples) + "; expected 0 to " +
           std::to_string(kMaxSamples);
  }
  if (a.group_h < 1 || a.group_h > kMaxGroups || a.group_w < 1 || a.group_w > kMaxGroups) {
    return "there are " + std::to_string(a.group_h) + " x " + std::to_string(a.group_w) +
           " groups; expected 1 to " + std::to_string(kMaxGroups) + " along an axis";
  }
  return "";
}

// Fills `call` from the operands. Returns what is wrong, or "".
std::string decode(const ffi::RemainingArgs& args, const Attributes& a, bool backward,
                   const Shape& output, Call* call) {
  std::string error = check_attributes(a);
  if (error.empty() && static_cast<size_t>(a.num_levels) > args.size()) {
    error = "num_levels is " + std::to_string(a.num_levels);
  }
  if (!error.empty()) return error;
  const size_t expected = a.moving() + 3 + (backward ? 1 : 0);
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

  size_t next = a.num_levels;
  const ffi::AnyBuffer* boxes = &buffers[next++];
  const ffi::AnyBuffer* levels = &buffers[next++];
  const ffi::AnyBuffer* map_sizes = &buffers[next++];
  const ffi::AnyBuffer* shift = a.has_shift ? &buffers[next++] : nullptr;
  const ffi::AnyBuffer* mask = a.has_mask ? &buffers[next++] : nullptr;
  const ffi::AnyBuffer* g = backward ? &buffers[next++] : nullptr;

  const Shape pooled = g ? shape_of(*g) : output;
  if (pooled.size() != 5) return "the result has shape " + shape_text(pooled);
  op.N = pooled[0], op.B = pooled[1], op.h = pooled[2], op.w = pooled[3], op.C = pooled[4];
  op.L = a.num_levels;
  op.group_h = a.group_h, op.group_w = a.group_w;
  op.sampling = a.sampling, op.samples = a.samples;

  for (int64_t l = 0; l < op.L && error.empty(); ++l) {
    const Shape shape = shape_of(buffers[l]);
    const size_t rank = a.grouped ? 5 : 4;
    if (shape.size() != rank || shape[rank - 3] < 1 || shape[rank - 2] < 1) {
      return "a map has shape " + shape_text(shape);
    }
    const int64_t H = shape[rank - 3], W = shape[rank - 2];
    if (H > kMaxRoiMapSide || W > kMaxRoiMapSide) {
      return "a map of shape " + shape_text(shape) + " is too large";
    }
    Shape wanted{op.N, H, W, op.C};
    if (a.grouped) wanted.insert(wanted.begin() + 1, op.group_h * op.group_w);
    error = check_buffer("features", buffers[l], wanted, dtype);
    call->maps.push_back({H, W, buffers[l].untyped_data(), nullptr});
  }
  if (error.empty()) error = check_buffer("boxes", *boxes, {op.N, op.B, 4}, real);
  if (error.empty()) error = check_buffer("levels", *levels, {op.N, op.B}, ffi::DataType::S32);
  if (error.empty()) {
    error = check_buffer("map_sizes", *map_sizes, {op.N, op.L, 2}, ffi::DataType::S32);
  }
  op.classes = 1;
  if (error.empty() && shift) {
    const Shape shape = shape_of(*shift);
    Shape wanted{op.N, op.B, op.h, op.w, 2};
    if (a.grouped) {
      if (shape.size() == 6) op.classes = shape[4];
      if (op.classes < 1 || op.C % op.classes != 0) {
        return "`shift` has " + std::to_string(op.classes) + " classes for " +
               std::to_string(op.C) + " channels";
      }
      wanted.insert(wanted.end() - 1, op.classes);
    }
    error = check_buffer("shift", *shift, wanted, real);
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

ffi::Error forward(ffi::ThreadPool& pool, const ffi::RemainingArgs& args,
                   ffi::Result<ffi::AnyBuffer> y, const Attributes& attributes) {
  Call call;
  std::string error = decode(args, attributes, false, shape_of(*y), &call);
  if (error.empty() && y->element_type() != args.get<ffi::AnyBuffer>(0)->element_type()) {
    error = "the result has an element type that does not go with the features";
  }
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
  const int64_t wanted = 4 * threads, most_bands = ceil_div(all_rows, op.L * kMinBlockRows);
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
                    const ffi::RemainingRets& results, const Attributes& attributes) {
  Call call;
  std::string error = decode(args, attributes, true, {}, &call);
  // Of all operands but boxes, levels, map_sizes and g.
  if (error.empty() && results.size() != args.size() - 4) error = "wrong number of results";
  const size_t num_levels = attributes.num_levels;
  for (size_t i = 0; i < results.size() && error.empty(); ++i) {
    auto result = results.get<ffi::AnyBuffer>(i);
    auto operand = args.get<ffi::AnyBuffer>(i < num_levels ? i : i + 3);
    if (!result || !operand) return ffi::Error::InvalidArgument("roi_pool: not a buffer");
    error = check_buffer("gradient", **result, shape_of(*operand), operand->element_type());
  }
  if (!error.empty()) return ffi::Error::InvalidArgument("roi_pool: " + error);
  const RoiPoolOperands& op = call.op;
  if (op.N == 0 || op.B == 0 || op.h == 0 || op.w == 0 || op.C == 0) {
    for (size_t i = 0; i < results.size(); ++i) {
      fill_with_zeros(**results.get<ffi::AnyBuffer>(i));
    }
    return ffi::Error::Success();
  }

  const auto data = [&](size_t i) { return (*results.get<ffi::AnyBuffer>(i))->untyped_data(); };
  size_t next = 0;
  for (RoiMap& map : call.maps) map.gradient = data(next++);
  void* dshift = attributes.has_shift ? data(next++) : nullptr;
  void* dmask = attributes.has_mask ? data(next++) : nullptr;

  if (dshift || dmask) {
    const int64_t rois = op.N * op.B;
    const auto bin_gradient = XLA_OPS_PICK(RoiPoolBinGradient);
    ffi::Error failed = for_each_chunk(
        pool, (rois + kRoisPerChunk - 1) / kRoisPerChunk,
        XLA_OPS_PICK(RoiPoolScratchBytes)(op, 0, 0), [&](int64_t chunk, void* scratch) {
          const int64_t first = chunk * kRoisPerChunk;
          bin_gradient(op, call.g, first, std::min(first + kRoisPerChunk, rois), dshift, dmask,
                       scratch);
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

Attributes plain(int64_t num_levels, int64_t has_shift, int64_t has_mask, int64_t sampling_ratio) {
  return {num_levels, has_shift != 0, has_mask != 0, RoiSampling::kGrid, sampling_ratio, 1,
          1,          false};
}

ffi::Error RoiPoolFwdImpl(ffi::ThreadPool pool, ffi::RemainingArgs args,
                          ffi::Result<ffi::AnyBuffer> y, int64_t num_levels, int64_t has_shift,
                          int64_t has_mask, int64_t sampling_ratio) {
  return forward(pool, args, y, plain(num_levels, has_shift, has_mask, sampling_ratio));
}

ffi::Error RoiPoolBwdImpl(ffi::ThreadPool pool, ffi::RemainingArgs args,
                          ffi::RemainingRets results, int64_t num_levels, int64_t has_shift,
                          int64_t has_mask, int64_t sampling_ratio) {
  return backward(pool, args, results, plain(num_levels, has_shift, has_mask, sampling_ratio));
}

// Returns what is wrong, or "".
std::string position_sensitive(int64_t num_levels, int64_t has_shift, int64_t has_mask,
                               std::string_view sampling, int64_t samples, int64_t group_h,
                               int64_t group_w, Attributes* attributes) {
  RoiSampling kind = RoiSampling::kGrid;
  if (sampling == "parts") {
    kind = RoiSampling::kParts;
  } else if (sampling == "pixels") {
    kind = RoiSampling::kPixels;
  } else if (sampling != "grid") {
    return "`sampling` is " + std::string(sampling) + "; expected grid, parts or pixels";
  }
  if (kind == RoiSampling::kParts && samples == 0) return "a bin has no samples";
  *attributes = {num_levels, has_shift != 0, has_mask != 0, kind, samples, group_h, group_w, true};
  return "";
}

ffi::Error PsRoiPoolFwdImpl(ffi::ThreadPool pool, ffi::RemainingArgs args,
                            ffi::Result<ffi::AnyBuffer> y, int64_t num_levels, int64_t has_shift,
                            int64_t has_mask, std::string_view sampling, int64_t samples,
                            int64_t group_h, int64_t group_w) {
  Attributes attributes;
  const std::string error = position_sensitive(num_levels, has_shift, has_mask, sampling, samples,
                                               group_h, group_w, &attributes);
  if (!error.empty()) return ffi::Error::InvalidArgument("ps_roi_pool: " + error);
  return forward(pool, args, y, attributes);
}

ffi::Error PsRoiPoolBwdImpl(ffi::ThreadPool pool, ffi::RemainingArgs args,
                            ffi::RemainingRets results, int64_t num_levels, int64_t has_shift,
                            int64_t has_mask, std::string_view sampling, int64_t samples,
                            int64_t group_h, int64_t group_w) {
  Attributes attributes;
  const std::string error = position_sensitive(num_levels, has_shift, has_mask, sampling, samples,
                                               group_h, group_w, &attributes);
  if (!error.empty()) return ffi::Error::InvalidArgument("ps_roi_pool: " + error);
  return backward(pool, args, results, attributes);
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

XLA_FFI_DEFINE_HANDLER_SYMBOL(PsRoiPoolFwd, PsRoiPoolFwdImpl,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .RemainingArgs()
                                  .Ret<ffi::AnyBuffer>()
                                  .Attr<int64_t>("num_levels")
                                  .Attr<int64_t>("has_shift")
                                  .Attr<int64_t>("has_mask")
                                  .Attr<std::string_view>("sampling")
                                  .Attr<int64_t>("samples")
                                  .Attr<int64_t>("group_h")
                                  .Attr<int64_t>("group_w"));
XLA_OPS_REGISTER("dcn_jax.ps_roi_pool.fwd", PsRoiPoolFwd);

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

XLA_FFI_DEFINE_HANDLER_SYMBOL(PsRoiPoolBwd, PsRoiPoolBwdImpl,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .RemainingArgs()
                                  .RemainingRets()
                                  .Attr<int64_t>("num_levels")
                                  .Attr<int64_t>("has_shift")
                                  .Attr<int64_t>("has_mask")
                                  .Attr<std::string_view>("sampling")
                                  .Attr<int64_t>("samples")
                                  .Attr<int64_t>("group_h")
                                  .Attr<int64_t>("group_w"));
XLA_OPS_REGISTER("dcn_jax.ps_roi_pool.bwd", PsRoiPoolBwd);

}  // namespace
}  // namespace xla_ops
