#include "cases.h"

namespace xla_ops::fuzz {
namespace {

constexpr double kMaxReads = 4e6;

enum class Kind { kMax, kPlain, kPositionSensitive };

// What ps_roi_pool calls its ways to sample a bin.
struct Sampling {
  const char* name;
  bool has_samples, may_adapt;
};

Case draw_pooling(Draw& draw, Kind kind, bool backward) {
  const bool deformable = kind != Kind::kMax, grouped = kind == Kind::kPositionSensitive;
  Case call;
  const XLA_FFI_DataType type = draw_float_type(draw), real = real_type(type);
  int64_t L = draw.one_in(2) ? draw.between(1, 4) : 1;
  int64_t N = draw.pick<int64_t>({1, 1, 2, 3, 0});
  int64_t B = draw.between(draw.one_in(16) ? 0 : 1, 20);
  int64_t h = draw.between(draw.one_in(16) ? 0 : 1, 8);
  int64_t w = draw.between(draw.one_in(16) ? 0 : 1, 8);
  int64_t C = draw.one_in(3) ? draw.between(0, 300) : draw.between(1, 40);
  Sampling sampling{"grid", deformable, true};
  if (grouped) {
    sampling = draw.pick<Sampling>(
        {{"grid", true, true}, {"parts", true, false}, {"pixels", false, true}});
  }
  int64_t samples = sampling.has_samples ? draw.pick<int64_t>({2, 0, 1, 3, 7}) : 0;
  if (samples == 0 && !sampling.may_adapt) samples = 4;
  if (sampling.has_samples && draw.one_in(64)) samples = 1 << 16;
  int64_t group_h = grouped ? draw.pick<int64_t>({1, 2, 3, h, 7}) : 1;
  int64_t group_w = grouped ? draw.pick<int64_t>({1, 2, 3, w, 7}) : 1;
  if (group_h == 0) group_h = 1;
  if (group_w == 0) group_w = 1;
  int64_t height = draw.between(draw.one_in(16) ? 0 : 1, 30);
  int64_t width = draw.between(draw.one_in(16) ? 0 : 1, 30);
  int64_t classes = grouped ? draw.pick<int64_t>({1, 1, 2, 3}) : 1;
  const auto reads = [&] {
    const double area = double(height) * width, grid = double(samples) * samples;
    const double bins = double(N) * B * h * w;
    return bins * C * (samples && grid < area ? grid : area) + bins * samples +
           30 * (N * L * group_h * group_w * area * C + bins * C);
  };
  shrink(reads, kMaxReads, {&B, &h, &w, &C, &height, &width});
  C = C / classes * classes;
  draw_ghost(draw, {&N, &B, &h, &w, &C, &height, &width}, {&N, &B, &h, &w, &C, &height, &width},
             &call);

  for (int64_t l = 0; l < L; ++l) {
    Shape shape = {N, height >> l, width >> l, C};
    if (grouped) shape.insert(shape.begin() + 1, group_h * group_w);
    // Empty maps are refused.
    if (shape[shape.size() - 3] == 0 || shape[shape.size() - 2] == 0) call.fits = false;
    call.operands.push_back(operand(type, shape, draw_content(draw, 0, 1)));
  }
  const double reach = draw.pick({10.0, 3.0, 100.0, 0.0});
  const double map = height < 1000 ? double(height) : 0;
  call.operands.push_back(operand(real, {N, B, 4}, draw_content(draw, map / 4, reach)));
  call.operands.push_back(
      operand(XLA_FFI_DataType_S32, {N, B}, draw_content(draw, L / 2, L > 1 ? 1 : 0.2)));
  call.operands.push_back(
      operand(XLA_FFI_DataType_S32, {N, L, 2}, draw_content(draw, map, map / 3)));
  const bool shift = deformable && draw.one_in(2), mask = deformable && draw.one_in(2);
  if (shift) {
    Shape shape = {N, B, h, w, 2};
    if (grouped) shape.insert(shape.begin() + 4, classes);
    call.operands.push_back(operand(real, shape, draw_content(draw, 0, 2)));
  }
  if (mask) call.operands.push_back(operand(real, {N, B, h, w}, draw_content(draw, 0.5, 0.3)));
  if (backward) {
    for (size_t i = 0; i < call.operands.size(); ++i) {
      if (i >= size_t(L) && i < size_t(L) + 3) continue;
      call.results.push_back(result(call.operands[i].type, call.operands[i].shape));
    }
    call.operands.push_back(operand(type, {N, B, h, w, C}, draw_content(draw, 0, 1)));
  } else {
    call.results = {result(type, {N, B, h, w, C})};
  }
  call.attributes = {integer_attribute("num_levels", L)};
  if (deformable) {
    call.attributes.push_back(integer_attribute("has_shift", shift));
    call.attributes.push_back(integer_attribute("has_mask", mask));
    call.attributes.push_back(integer_attribute(grouped ? "samples" : "sampling_ratio", samples));
  }
  if (grouped) {
    call.attributes.push_back(text_attribute("sampling", sampling.name));
    call.attributes.push_back(integer_attribute("group_h", group_h));
    call.attributes.push_back(integer_attribute("group_w", group_w));
  }
  return call;
}

}  // namespace

Case draw_max_roi_pool_forward(Draw& draw) { return draw_pooling(draw, Kind::kMax, false); }
Case draw_max_roi_pool_backward(Draw& draw) { return draw_pooling(draw, Kind::kMax, true); }
Case draw_roi_pool_forward(Draw& draw) { return draw_pooling(draw, Kind::kPlain, false); }
Case draw_roi_pool_backward(Draw& draw) { return draw_pooling(draw, Kind::kPlain, true); }
Case draw_ps_roi_pool_forward(Draw& draw) {
  return draw_pooling(draw, Kind::kPositionSensitive, false);
}
Case draw_ps_roi_pool_backward(Draw& draw) {
  return draw_pooling(draw, Kind::kPositionSensitive, true);
}

}  // namespace xla_ops::fuzz
