#include <numeric>

#include "cases.h"

namespace xla_ops::fuzz {
namespace {

constexpr double kMaxProducts = 2e6;

Case draw_deform_conv(Draw& draw, bool backward) {
  Case call;
  const XLA_FFI_DataType type = draw_float_type(draw), real = real_type(type);
  int64_t N = draw.pick<int64_t>({1, 1, 2, 3, 1, 0, 2, 9});
  int64_t groups = draw.pick<int64_t>({1, 1, 1, 2, 3, 4, 8});
  int64_t G = draw.pick<int64_t>({1, 1, 2, 1, 4, 3, 8});
  int64_t multiple = draw.one_in(3) ? draw.between(1, 300) : draw.between(1, 24);
  int64_t outputs = draw.one_in(3) ? draw.between(1, 300) : draw.between(1, 24);
  int64_t side = draw.one_in(4) ? 40 : 12;
  int64_t H = draw.between(draw.one_in(16) ? 0 : 1, side);
  int64_t W = draw.between(draw.one_in(16) ? 0 : 1, side);
  int64_t P = draw.between(draw.one_in(16) ? 0 : 1, side);
  int64_t Q = draw.between(draw.one_in(16) ? 0 : 1, side);
  side = draw.one_in(8) ? 9 : 3;
  int64_t R = draw.between(draw.one_in(16) ? 0 : 1, side);
  int64_t S = draw.between(draw.one_in(16) ? 0 : 1, side);
  const auto positive = [](int64_t n) { return n > 0 ? n : 1; };
  const auto products = [&] {
    const double C = static_cast<double>(std::lcm(groups, G)) * multiple;
    const double samples = double(positive(N) * positive(P * Q)) * positive(R * S);
    const double weights = C * outputs * positive(R * S) * positive(N);
    return samples * C * outputs + 30 * (samples * G + weights + C * positive(N) * H * W);
  };
  shrink(products, kMaxProducts, {&multiple, &outputs, &H, &W, &P, &Q, &R, &S});
  int64_t C = std::lcm(groups, G) * multiple, K = groups * outputs;
  if (draw.one_in(32)) C = 0;
  if (draw.one_in(32)) K = 0;
  draw_ghost(draw, {&N, &P, &Q, &R, &S, &C, &K, &H, &W}, {&N, &P, &Q, &R, &S, &C, &K, &H, &W},
             &call);

  const bool modulated = !draw.one_in(2);
  const int64_t kernels = draw.one_in(3) ? N : 1;
  int64_t taps;
  if (__builtin_mul_overflow(R, S, &taps)) taps = INT64_MAX;
  const double reach = draw.pick({0.5, 0.0, 2.0, 30.0});
  const Shape offset = {N, P, Q, G, taps, 2}, mask = {N, P, Q, G, taps}, y = {N, P, Q, K};
  call.operands = {operand(type, {N, H, W, C}, draw_content(draw, 0, 1)),
                   operand(real, offset, draw_content(draw, 0, reach)),
                   operand(type, {kernels, R, S, C / groups, K}, draw_content(draw, 0, 1))};
  if (modulated) call.operands.push_back(operand(real, mask, draw_content(draw, 0.5, 0.3)));
  if (backward) {
    call.operands.push_back(operand(type, y, draw_content(draw, 0, 1)));
    call.results = {result(type, {N, H, W, C}), result(real, offset),
                    result(real, {N, R, S, C / groups, K})};
    if (modulated) call.results.push_back(result(real, mask));
  } else {
    call.results = {result(type, y)};
  }
  for (const char* name : {"stride_h", "stride_w", "dilation_h", "dilation_w"}) {
    const int64_t value = draw.one_in(16) ? (int64_t{1} << 31) - 1 : draw.between(1, 4);
    call.attributes.push_back(integer_attribute(name, value));
  }
  for (const char* name : {"pad_top", "pad_left"}) {
    call.attributes.push_back(integer_attribute(name, draw.between(-2, 5)));
  }
  call.attributes.push_back(integer_attribute("groups", groups));
  return call;
}

}  // namespace

Case draw_deform_conv_forward(Draw& draw) { return draw_deform_conv(draw, false); }
Case draw_deform_conv_backward(Draw& draw) { return draw_deform_conv(draw, true); }

}  // namespace xla_ops::fuzz
