// One call of a handler, drawn from bytes.
//
// A new operator gets a file <operator>_cases.cc with a function that draws a call whose
// operands fit together, and a line in the table of cases.cc.
#ifndef XLA_OPS_TESTS_CASES_H_
#define XLA_OPS_TESTS_CASES_H_

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "draw.h"
#include "xla/ffi/api/c_api.h"

namespace xla_ops::fuzz {

using Shape = std::vector<int64_t>;

// What an operand holds: center + scale * normal, here and there something hostile.
struct Content {
  double center = 0, scale = 1;
  bool whole = false;       // rounded to integers
  int64_t one_special = 0;  // one of so many elements is NaN, infinite, denormal, ...; 0: none
  uint64_t seed = 0;
};

struct Tensor {
  XLA_FFI_DataType type;
  Shape shape;
  Content content = {};   // of operands
  int64_t misplaced = 0;  // elements that it lies behind a 16-byte boundary
  bool null_if_empty = false;
};

// A string, or a scalar.
struct Attribute {
  std::string name;
  XLA_FFI_DataType type;
  int64_t integer;  // bits of a double where type is F64
  bool is_text = false;
  std::string text = "";
};

struct Case {
  std::string target;
  std::vector<Tensor> operands, results;
  std::vector<Attribute> attributes;
  bool fits = true;  // the handler has to accept it
};

// The operands of one operator, as it is registered; `target` is set by the caller.
using DrawCall = Case (*)(Draw& draw);

// A deformable convolution, an RoI pooling, ...: forward and backward.
Case draw_deform_conv_forward(Draw& draw);
Case draw_deform_conv_backward(Draw& draw);
Case draw_max_roi_pool_forward(Draw& draw);
Case draw_max_roi_pool_backward(Draw& draw);
Case draw_nms(Draw& draw);
Case draw_ps_roi_pool_forward(Draw& draw);
Case draw_ps_roi_pool_backward(Draw& draw);
Case draw_roi_pool_forward(Draw& draw);
Case draw_roi_pool_backward(Draw& draw);

// Any call; now and then one that is wrong.
Case draw_case(Draw& draw);

// The targets that draw_case() knows.
std::vector<std::string> known_targets();

// Spoils a call: shapes, types, numbers of buffers, attributes.
void mutate(Draw& draw, Case* call);

// For text of failures.
std::string describe(const Case& call);

// The number of elements; more than kMaxElements for anything larger.
constexpr int64_t kMaxElements = int64_t{1} << 16;
int64_t count_elements(const Shape& shape);
int64_t element_bytes(XLA_FFI_DataType type);
bool is_floating(XLA_FFI_DataType type);

// --- What the files of the operators share ---

// Maps are of `type`; coordinates and sums beside them of real_type().
XLA_FFI_DataType draw_float_type(Draw& draw);
XLA_FFI_DataType real_type(XLA_FFI_DataType type);

Content draw_content(Draw& draw, double center, double scale);
Tensor operand(XLA_FFI_DataType type, Shape shape, Content content);
Tensor result(XLA_FFI_DataType type, Shape shape);
Attribute integer_attribute(std::string name, int64_t value);
Attribute real_attribute(std::string name, double value);
Attribute text_attribute(std::string name, std::string value);

// Halves the largest of `sizes` until the cost is at most `limit`; sizes stay positive.
void shrink(const std::function<double()>& cost, double limit, std::vector<int64_t*> sizes);

// Now and then makes one of `zeroed` 0 and one of `huge` huge: buffers that are empty and
// have sizes whose products overflow.
void draw_ghost(Draw& draw, std::vector<int64_t*> zeroed, std::vector<int64_t*> huge, Case* call);

// An integer that no operator expects.
int64_t draw_hostile_integer(Draw& draw);

// Fills `count` elements.
void fill(XLA_FFI_DataType type, const Content& content, int64_t count, void* elements);

}  // namespace xla_ops::fuzz

#endif  // XLA_OPS_TESTS_CASES_H_
