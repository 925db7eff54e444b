#include "cases.h"

namespace xla_ops::fuzz {

Case draw_nms(Draw& draw) {
  Case call;
  const XLA_FFI_DataType real = draw.pick({XLA_FFI_DataType_F32, XLA_FFI_DataType_F64});
  int64_t N = draw.pick<int64_t>({1, 2, 3, 1, 0});
  int64_t B = draw.one_in(3) ? draw.between(0, 400) : draw.between(1, 40);
  int64_t D = draw.one_in(3) ? draw.between(0, 500) : draw.between(1, 40);
  draw_ghost(draw, {&N, &B, &D}, {&N, &B, &D}, &call);
  const double extent = draw.pick({10.0, 100.0, 1.0, 0.0});
  call.operands = {
      operand(real, {N, B, 4}, draw_content(draw, extent / 2, extent)),
      operand(real, {N, B}, draw_content(draw, 0, draw.one_in(4) ? 0 : 1)),
      operand(XLA_FFI_DataType_S32, {N, B}, draw_content(draw, 0, draw.one_in(2) ? 0 : 2)),
      operand(XLA_FFI_DataType_PRED, {N, B}, draw_content(draw, 0, 1))};
  call.results = {result(XLA_FFI_DataType_S32, {N, D}), result(XLA_FFI_DataType_PRED, {N, D})};
  const double threshold =
      draw.pick({0.5, 0.7, 0.0, 1.0, -1.0, 2.0, 1e300, -1e300, __builtin_nan(""), __builtin_inf(),
                 -__builtin_inf(), 1e-320});
  call.attributes = {real_attribute("iou_threshold", threshold)};
  return call;
}

}  // namespace xla_ops::fuzz
