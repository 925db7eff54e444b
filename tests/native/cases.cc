#include "cases.h"

#include <cstring>
#include <utility>

namespace xla_ops::fuzz {
namespace {

struct Operator {
  const char* target;
  DrawCall draw;
};

constexpr Operator kOperators[] = {
    {"dcn_jax.deform_conv2d.fwd", draw_deform_conv_forward},
    {"dcn_jax.deform_conv2d.bwd", draw_deform_conv_backward},
    {"dcn_jax.max_roi_pool.fwd", draw_max_roi_pool_forward},
    {"dcn_jax.max_roi_pool.bwd", draw_max_roi_pool_backward},
    {"dcn_jax.nms", draw_nms},
    {"dcn_jax.ps_roi_pool.fwd", draw_ps_roi_pool_forward},
    {"dcn_jax.ps_roi_pool.bwd", draw_ps_roi_pool_backward},
    {"dcn_jax.roi_pool.fwd", draw_roi_pool_forward},
    {"dcn_jax.roi_pool.bwd", draw_roi_pool_backward},
};
constexpr int64_t kOperatorCount = sizeof(kOperators) / sizeof(kOperators[0]);

std::string shape_text(const Shape& shape) {
  std::string text;
  for (int64_t size : shape) text += (text.empty() ? "" : ", ") + std::to_string(size);
  return "(" + text + ")";
}

const char* type_name(XLA_FFI_DataType type) {
  switch (type) {
    case XLA_FFI_DataType_PRED:
      return "bool";
    case XLA_FFI_DataType_S8:
      return "int8";
    case XLA_FFI_DataType_S32:
      return "int32";
    case XLA_FFI_DataType_S64:
      return "int64";
    case XLA_FFI_DataType_F16:
      return "float16";
    case XLA_FFI_DataType_F32:
      return "float32";
    case XLA_FFI_DataType_F64:
      return "float64";
    case XLA_FFI_DataType_BF16:
      return "bfloat16";
    default:
      return "another type";
  }
}

std::string tensor_text(const char* what, size_t number, const Tensor& tensor) {
  return std::string("  ") + what + " " + std::to_string(number) + ": " + type_name(tensor.type) +
         " " + shape_text(tensor.shape);
}

}  // namespace

Case draw_case(Draw& draw) {
  const Operator& drawn = kOperators[draw.between(0, kOperatorCount - 1)];
  Case call = drawn.draw(draw);
  call.target = drawn.target;
  for (std::vector<Tensor>* tensors : {&call.operands, &call.results}) {
    for (Tensor& tensor : *tensors) {
      tensor.null_if_empty = draw.one_in(2);
      if (draw.one_in(4)) tensor.misplaced = draw.between(0, 3);
    }
  }
  if (draw.one_in(4)) {
    mutate(draw, &call);
    call.fits = false;
  }
  return call;
}

std::vector<std::string> known_targets() {
  std::vector<std::string> names;
  for (const Operator& known : kOperators) names.push_back(known.target);
  return names;
}

std::string describe(const Case& call) {
  std::string text = call.target + "\n";
  for (size_t i = 0; i < call.operands.size(); ++i) {
    const Content& content = call.operands[i].content;
    text +=
        tensor_text("operand", i, call.operands[i]) + " = " + std::to_string(content.center) +
        " + " + std::to_string(content.scale) + " * normal" + (content.whole ? ", rounded" : "") +
        (content.one_special ? ", 1 of " + std::to_string(content.one_special) + " is special\n"
                             : "\n");
  }
  for (size_t i = 0; i < call.results.size(); ++i) {
    text += tensor_text("result", i, call.results[i]) + "\n";
  }
  for (const Attribute& attribute : call.attributes) {
    if (attribute.is_text) {
      text += "  " + attribute.name + ": " + attribute.text + "\n";
      continue;
    }
    double real;
    std::memcpy(&real, &attribute.integer, sizeof(real));
    text += "  " + attribute.name + ": " + type_name(attribute.type) + " " +
            (attribute.type == XLA_FFI_DataType_F64 ? std::to_string(real)
                                                    : std::to_string(attribute.integer)) +
            "\n";
  }
  return text + (call.fits ? "  has to be accepted\n" : "  may be refused\n");
}

int64_t count_elements(const Shape& shape) {
  int64_t count = 1;
  for (int64_t size : shape) {
    if (size == 0) return 0;
  }
  for (int64_t size : shape) {
    if (size > kMaxElements / count) return kMaxElements + 1;
    count *= size;
  }
  return count;
}

int64_t element_bytes(XLA_FFI_DataType type) {
  switch (type) {
    case XLA_FFI_DataType_PRED:
    case XLA_FFI_DataType_S8:
      return 1;
    case XLA_FFI_DataType_F16:
    case XLA_FFI_DataType_BF16:
      return 2;
    case XLA_FFI_DataType_S32:
    case XLA_FFI_DataType_F32:
      return 4;
    case XLA_FFI_DataType_C128:
      return 16;
    default:
      return 8;
  }
}

bool is_floating(XLA_FFI_DataType type) {
  return type == XLA_FFI_DataType_F16 || type == XLA_FFI_DataType_BF16 ||
         type == XLA_FFI_DataType_F32 || type == XLA_FFI_DataType_F64;
}

XLA_FFI_DataType draw_float_type(Draw& draw) {
  return draw.pick(
      {XLA_FFI_DataType_F32, XLA_FFI_DataType_F64, XLA_FFI_DataType_BF16, XLA_FFI_DataType_F16});
}

XLA_FFI_DataType real_type(XLA_FFI_DataType type) {
  return type == XLA_FFI_DataType_F64 ? XLA_FFI_DataType_F64 : XLA_FFI_DataType_F32;
}

Content draw_content(Draw& draw, double center, double scale) {
  Content content{center, scale};
  content.whole = draw.one_in(4);
  if (draw.one_in(8)) content.scale = draw.pick({0.0, 1e-3, 1e4, 1e9, 1e30, 1e-40});
  if (draw.one_in(3)) content.one_special = draw.pick<int64_t>({100, 30, 5, 1});
  content.seed = draw.bits(4);
  return content;
}

Tensor operand(XLA_FFI_DataType type, Shape shape, Content content) {
  return {type, std::move(shape), content};
}

Tensor result(XLA_FFI_DataType type, Shape shape) { return {type, std::move(shape)}; }

Attribute integer_attribute(std::string name, int64_t value) {
  return {std::move(name), XLA_FFI_DataType_S64, value};
}

Attribute real_attribute(std::string name, double value) {
  Attribute attribute{std::move(name), XLA_FFI_DataType_F64, 0};
  std::memcpy(&attribute.integer, &value, sizeof(value));
  return attribute;
}

Attribute text_attribute(std::string name, std::string value) {
  return {std::move(name), XLA_FFI_DataType_INVALID, 0, true, std::move(value)};
}

void shrink(const std::function<double()>& cost, double limit, std::vector<int64_t*> sizes) {
  while (cost() > limit) {
    int64_t* largest = sizes[0];
    for (int64_t* size : sizes) {
      if (*size > *largest) largest = size;
    }
    if (*largest <= 1) return;
    *largest /= 2;
  }
}

void draw_ghost(Draw& draw, std::vector<int64_t*> zeroed, std::vector<int64_t*> huge, Case* call) {
  if (!draw.one_in(24)) return;
  for (int64_t times = draw.between(1, 3); times > 0; --times) {
    *huge[draw.between(0, huge.size() - 1)] =
        draw.pick<int64_t>({int64_t{1} << 31, (int64_t{1} << 31) - 1, int64_t{1} << 16,
                            int64_t{1} << 20, int64_t{1} << 40, INT64_MAX, int64_t{1} << 62});
  }
  *zeroed[draw.between(0, zeroed.size() - 1)] = 0;
  call->fits = false;
}

int64_t draw_hostile_integer(Draw& draw) {
  constexpr int64_t kOne = 1;
  return draw.pick<int64_t>({0, -1, INT64_MAX, INT64_MIN, (kOne << 31) - 1, kOne << 31, kOne << 32,
                             -(kOne << 31), kOne << 62, INT64_MAX - 1, INT64_MIN + 1, 5, 2,
                             kOne << 16, (kOne << 16) + 1, -2, 1000});
}

}  // namespace xla_ops::fuzz
