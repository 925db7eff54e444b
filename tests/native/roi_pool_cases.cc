#include "cases.h"

namespace xla_ops::fuzz {
namespace {

constexpr double kMaxReads = 4e6;

// Which operands and attributes an operator has.
struct Kind {
  bool deformable;  // shift, mask, and a sampling_ratio
  bool backward;
};

Case draw_pooling(Draw& draw, Kind kind) {
  Case call;
  const XLA_FFI_DataType type = draw_float_type(draw), real = real_type(type);
  int64_t L = draw.one_in(2) ? draw.between(1, 4) : 1;
  int64_t N = draw.pick<int64_t>({1, 1, 2, 3, 0});
  int64_t B = draw.between(draw.one_in(16) ? 0 : 1, 20);
  int64_t h = draw.between(draw.one_in(16) ? 0 : 1, 8);
  int64_t w = draw.between(draw.one_in(16) ? 0 : 1, 8);
  int64_t C = draw.one_in(3) ? draw.between(0, 300) : draw.between(1, 40);
  int64_t samples = kind.deformable ? draw.pick<int64_t>({2, 0, 1, 3, 7}) : 0;
  if (kind.deformable && draw.one_in(64)) samples = 1 << 16;
  int64_t height = draw.between(draw.one_in(16) ? 0 : 1, 30);
  int64_t width = draw.between(draw.one_in(16) ? 0 : 1, 30);
  const auto reads = [&] {
    const double area = double(height) * width, grid = double(samples) * samples;
    const double bins = double(N) * B * h * w;
    return bins * C * (samples && grid < area ? grid : area) + bins * samples +
           30 * (N * L * area * C + bins * C);
  };
  shrink(reads, kMaxReads, {&B, &h, &w, &C, &height, &width});
  draw_ghost(draw, {&N, &B, &h, &w, &C, &height, &width}, {&N, &B, &h, &w, &C, &height, &width},
             &call);

  for (int64_t l = 0; l < L; ++l) {
    call.operands.push_back(
        operand(type, {N, height >> l, width >> l, C}, draw_content(draw, 0, 1)));
  }
  const double reach = draw.pick({10.0, 3.0, 100.0, 0.0});
  const double map = height < 1000 ? double(height) : 0;
  call.operands.push_back(operand(real, {N, B, 4}, draw_content(draw, map / 4, reach)));
  call.operands.push_back(
      operand(XLA_FFI_DataType_S32, {N, B}, draw_content(draw, L / 2, L > 1 ? 1 : 0.2)));
  call.operands.push_back(
      operand(XLA_FFI_DataType_S32, {N, L, 2}, draw_content(draw, map, map / 3)));
  const bool shift = kind.deformable && draw.one_in(2), mask = kind.deformable && draw.one_in(2);
  if (shift) call.operands.push_back(operand(real, {N, B, h, w, 2}, draw_content(draw, 0, 2)));
  if (mask) call.operands.push_back(operand(real, {N, B, h, w}, draw_content(draw, 0.5, 0.3)));
  if (kind.backward) {
    for (size_t i = 0; i < call.operands.size(); ++i) {
      if (i >= size_t(L) && i < size_t(L) + 3) continue;
      call.results.push_back(result(call.operands[i].type, call.operands[i].shape));
    }
    call.operands.push_back(operand(type, {N, B, h, w, C}, draw_content(draw, 0, 1)));
  } else {
    call.results = {result(type, {N, B, h, w, C})};
  }
  call.attributes = {integer_attribute("num_levels", L)};
  if (kind.deformable) {
    call.attributes.push_back(integer_attribute("has_shift", shift));
    call.attributes.push_back(integer_attribute("has_mask", mask));
    call.attributes.push_back(integer_attribute("sampling_ratio", samples));
  }
  return call;
}

}  // namespace

Case draw_roi_pool_forward(Draw& draw) { return draw_pooling(draw, {true, false}); }
Case draw_roi_pool_backward(Draw& draw) { return draw_pooling(draw, {true, true}); }
Case draw_max_roi_pool_forward(Draw& draw) { return draw_pooling(draw, {false, false}); }
Case draw_max_roi_pool_backward(Draw& draw) { return draw_pooling(draw, {false, true}); }

}  // namespace xla_ops::fuzz
