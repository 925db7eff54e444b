#include <utility>

#include "cases.h"

namespace xla_ops::fuzz {
namespace {

XLA_FFI_DataType draw_type(Draw& draw) {
  return draw.pick({XLA_FFI_DataType_F32, XLA_FFI_DataType_F64, XLA_FFI_DataType_F16,
                    XLA_FFI_DataType_BF16, XLA_FFI_DataType_S32, XLA_FFI_DataType_S64,
                    XLA_FFI_DataType_PRED, XLA_FFI_DataType_S8, XLA_FFI_DataType_C64,
                    XLA_FFI_DataType_C128});
}

void mutate_shape(Draw& draw, Shape* shape) {
  if (shape->empty() || draw.one_in(6)) {
    if (draw.one_in(2)) {
      shape->insert(shape->begin() + draw.between(0, shape->size()), draw.pick<int64_t>({1, 2}));
    } else if (!shape->empty()) {
      shape->erase(shape->begin() + draw.between(0, shape->size() - 1));
    }
    return;
  }
  int64_t& size = (*shape)[draw.between(0, shape->size() - 1)];
  switch (draw.between(0, 5)) {
    case 0:
      size += size < INT64_MAX ? 1 : 0;
      break;
    case 1:
      size -= size > 0 ? 1 : 0;
      break;
    case 2:
      size = 0;
      break;
    case 3:
      size += size < INT64_MAX / 2 ? size : 0;
      break;
    case 4:
      std::swap(size, (*shape)[draw.between(0, shape->size() - 1)]);
      break;
    default:
      size = draw.between(0, 40);
  }
}

void mutate_tensors(Draw& draw, std::vector<Tensor>* tensors) {
  if (tensors->empty()) return;
  const int64_t i = draw.between(0, tensors->size() - 1);
  switch (draw.between(0, 7)) {
    case 0:
      tensors->erase(tensors->begin() + i);
      break;
    case 1:
      tensors->insert(tensors->begin() + i, (*tensors)[i]);
      break;
    case 2:
      (*tensors)[i].type = draw_type(draw);
      break;
    case 3:
      std::swap((*tensors)[i], (*tensors)[draw.between(0, tensors->size() - 1)]);
      break;
    default:
      mutate_shape(draw, &(*tensors)[i].shape);
  }
}

void mutate_attributes(Draw& draw, std::vector<Attribute>* attributes) {
  if (attributes->empty()) return;
  const int64_t i = draw.between(0, attributes->size() - 1);
  switch (draw.between(0, 9)) {
    case 0:
      attributes->erase(attributes->begin() + i);
      break;
    case 1:
      (*attributes)[i].type = draw_type(draw);
      break;
    case 2:
      (*attributes)[i].name += "x";
      break;
    case 3:
      (*attributes)[i].is_text = !(*attributes)[i].is_text;
      break;
    default:
      (*attributes)[i].text = draw.pick({"", "grid", "parts", "pixels", "gridx"});
      (*attributes)[i].integer = draw_hostile_integer(draw);
  }
}

}  // namespace

void mutate(Draw& draw, Case* call) {
  for (int64_t times = draw.one_in(4) ? draw.between(1, 4) : 1; times > 0; --times) {
    switch (draw.between(0, 3)) {
      case 0:
      case 1:
        mutate_attributes(draw, &call->attributes);
        break;
      case 2:
        mutate_tensors(draw, &call->operands);
        break;
      default:
        mutate_tensors(draw, &call->results);
    }
  }
}

}  // namespace xla_ops::fuzz
