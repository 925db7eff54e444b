// XLA FFI handlers of the kernels of deform_conv.h: check the operands, launch. Which
// handler does what for deform_conv2d is decided in xla_ops/cuda/deform_conv.py.
#include "deform_conv.h"

#include <optional>
#include <string>
#include <utility>

#include "buffers.h"
#include "ffi_stream.h"
#include "geometry.h"
#include "registry.h"
#include "result.h"
#include "xla/ffi/api/ffi.h"

namespace xla_ops {
namespace cuda {
namespace {

namespace ffi = ::xla::ffi;

constexpr char kOperation[] = "deform_conv2d";

// The mask is the last operand, where there is one. Returns what is wrong, or "".
std::string decode_mask(const ffi::RemainingArgs& rest, std::optional<ffi::AnyBuffer>* mask) {
  if (rest.size() > 1) return "too many operands";
  if (rest.size() == 0) return "";
  auto buffer = rest.get<ffi::AnyBuffer>(0);
  if (!buffer) return "the last operand is not a buffer";
  *mask = *buffer;
  return "";
}

std::string decode_attributes(const ffi::Dictionary& attributes, DeformConvGeometry* g) {
  const std::pair<const char*, int64_t*> fields[] = {
      {"kernel_h", &g->R},
      {"kernel_w", &g->S},
      {"stride_h", &g->stride_h},
      {"stride_w", &g->stride_w},
      {"pad_top", &g->pad_top},
      {"pad_left", &g->pad_left},
      {"dilation_h", &g->dilation_h},
      {"dilation_w", &g->dilation_w},
      {"groups", &g->groups},
  };
  for (const auto& [name, field] : fields) {
    const auto value = attributes.get<int64_t>(name);
    if (!value) return std::string("attribute ") + name + " is missing";
    *field = *value;
  }
  return g->groups < 1 ? "groups must be positive" : "";
}

// [D,N/D,...] where a batch is divided over D devices, as [N,...].
Shape batch_of(Shape shape, bool divided) {
  if (divided && shape.size() >= 2) {
    shape[1] *= shape[0];
    shape.erase(shape.begin());
  }
  return shape;
}

// check_buffer() for one that may lead with devices.
std::string check_batch(const char* name, const ffi::AnyBuffer& buffer, const Shape& shape,
                        ffi::DataType type, bool divided) {
  const std::string error = check_buffer(name, buffer, shape_of(buffer), type);
  return error.empty() ? check_shape(name, batch_of(shape_of(buffer), divided), shape) : error;
}

// Fills `op`, but x and first_row, for a map of shape `x` and a kernel [kernels,K] besides
// what the attributes say. Where `divided`, offset and mask lead with devices. Returns what
// is wrong, or "".
std::string decode_output(const ffi::Dictionary& attributes, const Shape& x, int64_t kernels,
                          int64_t K, ffi::AnyBuffer offset,
                          const std::optional<ffi::RemainingArgs>& rest, DeformConvOperands* op,
                          bool divided = false) {
  DeformConvGeometry& g = op->geometry;
  std::string error = decode_attributes(attributes, &g);
  std::optional<ffi::AnyBuffer> mask;
  if (error.empty() && rest) error = decode_mask(*rest, &mask);
  if (!error.empty()) return error;
  if (x.size() != 4) return "`x` has shape " + shape_text(x) + "; expected (N, H, W, C)";
  g.modulated = mask.has_value();
  const Shape places = batch_of(shape_of(offset), divided);
  error = decode_deform_conv(x, places, {kernels, g.R, g.S, x[3] / g.groups, K}, &g);
  const ffi::DataType real = real_type(op->type);
  if (error.empty()) error = check_batch("offset", offset, places, real, divided);
  if (error.empty() && mask) {
    error = check_batch("mask", *mask, deform_conv_mask_shape(g), real, divided);
  }
  op->offset = offset.untyped_data();
  op->mask = mask ? mask->untyped_data() : nullptr;
  return error;
}

// The same for kernels that only sample: any number of outputs will do.
std::string decode(const ffi::Dictionary& attributes, const Shape& x, ffi::AnyBuffer first_row,
                   ffi::AnyBuffer offset, const std::optional<ffi::RemainingArgs>& rest,
                   DeformConvOperands* op) {
  const auto groups = attributes.get<int64_t>("groups");
  std::string error = decode_output(attributes, x, 1, groups ? *groups : 1, offset, rest, op);
  if (error.empty()) {
    error = check_buffer("first_row", first_row, {op->geometry.N}, ffi::DataType::S32);
  }
  const DeformConvGeometry& g = op->geometry;
  // Corners are counted in int32.
  if (error.empty() && g.positions() * g.taps() >= int64_t{1} << 29) {
    error = "an output of " + std::to_string(g.P) + " x " + std::to_string(g.Q) + " is too large";
  }
  op->first_row = static_cast<const int32_t*>(first_row.untyped_data());
  return error;
}

std::string decode_type(ffi::DataType dtype, ElementType* type) {
  const auto known = element_type(dtype);
  if (!known) return "`x` must be float32, float64, bfloat16 or float16";
  *type = *known;
  return "";
}

Shape columns_shape(const DeformConvGeometry& g) {
  return {g.N, g.P, g.Q, g.groups, g.taps(), g.group_channels()};
}

ffi::Error columns_impl(cudaStream_t stream, ffi::AnyBuffer x, ffi::AnyBuffer first_row,
                        ffi::AnyBuffer offset, ffi::RemainingArgs rest,
                        ffi::Result<ffi::AnyBuffer> columns, ffi::Dictionary attributes) {
  DeformConvOperands op{};
  std::string error = decode_type(x.element_type(), &op.type);
  if (error.empty()) error = decode(attributes, shape_of(x), first_row, offset, rest, &op);
  if (error.empty()) {
    error = check_buffer("columns", *columns, columns_shape(op.geometry), x.element_type());
  }
  if (!error.empty()) return result_of(kOperation, error, nullptr);
  op.x = x.untyped_data();
  return result_of(kOperation, "", sample_columns(op, columns->untyped_data(), stream));
}

// Where a batch is divided over devices, all operands and y lead with the devices, and each
// device has one kernel: x [D,N/D,H,W,C], kernel [D,R,S,C,K].
ffi::Error fused_impl(cudaStream_t stream, ffi::AnyBuffer x, ffi::AnyBuffer offset,
                      ffi::AnyBuffer kernel, ffi::RemainingArgs rest,
                      ffi::Result<ffi::AnyBuffer> y, ffi::Dictionary attributes) {
  DeformConvOperands op{};
  const Shape shape = shape_of(kernel);
  const bool divided = shape_of(x).size() == 5;
  std::string error = decode_type(x.element_type(), &op.type);
  if (error.empty() && shape.size() != 5) error = "`kernel` has shape " + shape_text(shape);
  if (error.empty()) {
    error = decode_output(attributes, batch_of(shape_of(x), divided), divided ? 1 : shape[0],
                          shape[4], offset, rest, &op, divided);
  }
  DeformConvGeometry& g = op.geometry;
  if (divided) g.kernels = shape_of(x)[0];
  if (error.empty() && g.groups != 1) error = "the fused forward pass has one group";
  if (error.empty()) {
    const Shape expected = {g.kernels, g.R, g.S, g.C, g.K};
    error = check_buffer("kernel", kernel, expected, x.element_type());
  }
  if (error.empty()) {
    error = check_batch("y", *y, deform_conv_output_shape(g), x.element_type(), divided);
  }
  if (!error.empty()) return result_of(kOperation, error, nullptr);
  op.x = x.untyped_data();
  return result_of(kOperation, "",
                   convolve_fused(op, kernel.untyped_data(), y->untyped_data(), stream));
}

ffi::Error visit_impl(cudaStream_t stream, ffi::AnyBuffer x, ffi::AnyBuffer first_row,
                      ffi::AnyBuffer offset, ffi::AnyBuffer dcolumns, ffi::RemainingArgs rest,
                      ffi::Result<ffi::AnyBuffer> columns, ffi::Result<ffi::AnyBuffer> doffset,
                      ffi::RemainingRets more, ffi::Dictionary attributes) {
  DeformConvOperands op{};
  std::string error = decode_type(x.element_type(), &op.type);
  if (error.empty()) error = decode(attributes, shape_of(x), first_row, offset, rest, &op);
  if (!error.empty()) return result_of(kOperation, error, nullptr);
  const DeformConvGeometry& g = op.geometry;
  const ffi::DataType real = real_type(op.type);
  const Shape shape = columns_shape(g);
  const ffi::DataType kept =
      op.type == columns_gradient_type(op.type) ? x.element_type() : ffi::DataType::F32;
  error = check_buffer("dcolumns", dcolumns, shape, kept);
  if (error.empty()) error = check_buffer("columns", *columns, shape, x.element_type());
  if (error.empty()) error = check_buffer("doffset", *doffset, shape_of(offset), real);
  DeformConvGradients grad{};
  size_t next = 0;
  if (error.empty() && g.modulated) {
    auto dmask = more.get<ffi::AnyBuffer>(next++);
    if (!dmask) return dmask.error();
    error = check_buffer("dmask", **dmask, deform_conv_mask_shape(g), real);
    grad.dmask = (*dmask)->untyped_data();
  }
  if (error.empty() && next < more.size()) {
    auto dx = more.get<ffi::AnyBuffer>(next++);
    if (!dx) return dx.error();
    error = check_buffer("dx", **dx, shape_of(x), real);
    grad.dx = (*dx)->untyped_data();
  }
  if (error.empty() && next < more.size()) error = "too many results";
  if (!error.empty()) return result_of(kOperation, error, nullptr);
  op.x = x.untyped_data();
  grad.dcolumns = dcolumns.untyped_data();
  grad.columns = columns->untyped_data();
  grad.doffset = doffset->untyped_data();
  return result_of(kOperation, "", visit_samples(op, grad, stream));
}

// How the pixels of the lists are numbered. 16 bits where they do: XLA sorts them faster.
std::string decode_list(const ffi::Dictionary& attributes, const ffi::AnyBuffer& pixel,
                        const DeformConvGeometry& g, DeformConvList* list) {
  const auto joint = attributes.get<int64_t>("joint");
  if (!joint) return "attribute joint is missing";
  list->joint = *joint != 0;
  list->narrow = pixel.element_type() == ffi::DataType::U16;
  const int64_t last = (list->joint ? g.N * g.G : 1) * (g.H * g.W + 1) - 1;
  if (last > (list->narrow ? 0xffff : 0xffffffff)) return "`pixel` is too narrow for the map";
  return check_buffer("pixel", pixel, {g.N, g.G, 4 * g.positions() * g.taps()},
                      list->narrow ? ffi::DataType::U16 : ffi::DataType::U32);
}

ffi::Error list_impl(cudaStream_t stream, ffi::AnyBuffer x, ffi::AnyBuffer first_row,
                     ffi::AnyBuffer offset, ffi::Result<ffi::AnyBuffer> pixel,
                     ffi::Dictionary attributes) {
  DeformConvOperands op{};
  DeformConvList list{};
  std::string error = decode_type(x.element_type(), &op.type);
  if (error.empty()) {
    error = decode(attributes, shape_of(x), first_row, offset, std::nullopt, &op);
  }
  if (error.empty()) error = decode_list(attributes, *pixel, op.geometry, &list);
  if (!error.empty()) return result_of(kOperation, error, nullptr);
  return result_of(kOperation, "", list_corners(op, list, pixel->untyped_data(), stream));
}

ffi::Error gather_impl(cudaStream_t stream, ffi::AnyBuffer first_row, ffi::AnyBuffer offset,
                       ffi::AnyBuffer dcolumns, ffi::AnyBuffer pixel, ffi::AnyBuffer number,
                       ffi::RemainingArgs rest, ffi::Result<ffi::AnyBuffer> dx,
                       ffi::Result<ffi::AnyBuffer> starts, ffi::Dictionary attributes) {
  DeformConvOperands op{};
  ElementType type{};
  std::string error = decode_type(dx->element_type(), &type);
  if (error.empty()) error = decode_type(dcolumns.element_type(), &op.type);
  // Either the columns' gradient has the type that goes with a dx like x, or dx that of sums.
  if (error.empty() && op.type != columns_gradient_type(type) &&
      !(op.type == ElementType::kBF16 && type == ElementType::kF32)) {
    error = "`dcolumns` has an element type that does not go with the others";
  }
  if (error.empty()) error = decode(attributes, shape_of(*dx), first_row, offset, rest, &op);
  if (!error.empty()) return result_of(kOperation, error, nullptr);
  const DeformConvGeometry& g = op.geometry;
  DeformConvCorners corners{};
  error = check_buffer("dcolumns", dcolumns, columns_shape(g), dcolumns.element_type());
  if (error.empty()) error = decode_list(attributes, pixel, g, &corners.list);
  if (error.empty()) error = check_buffer("number", number, shape_of(pixel), ffi::DataType::S32);
  if (error.empty()) {
    error = check_buffer("starts", *starts, {g.N, g.G, g.H * g.W + 1}, ffi::DataType::S32);
  }
  if (!error.empty()) return result_of(kOperation, error, nullptr);
  corners.pixel = pixel.untyped_data();
  corners.number = static_cast<const int32_t*>(number.untyped_data());
  return result_of(kOperation, "",
                   gather_input_gradient(op, dcolumns.untyped_data(), corners,
                                         static_cast<int32_t*>(starts->untyped_data()), type,
                                         dx->untyped_data(), stream));
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(DeformConv2dColumns, columns_impl,
                              ffi::Ffi::Bind()
                                  .Ctx<Stream>()
                                  .Arg<ffi::AnyBuffer>()  // x
                                  .Arg<ffi::AnyBuffer>()  // first_row
                                  .Arg<ffi::AnyBuffer>()  // offset
                                  .RemainingArgs()        // mask
                                  .Ret<ffi::AnyBuffer>()  // columns
                                  .Attrs(),
                              {ffi::Traits::kCmdBufferCompatible});

XLA_FFI_DEFINE_HANDLER_SYMBOL(DeformConv2dFused, fused_impl,
                              ffi::Ffi::Bind()
                                  .Ctx<Stream>()
                                  .Arg<ffi::AnyBuffer>()  // x
                                  .Arg<ffi::AnyBuffer>()  // offset
                                  .Arg<ffi::AnyBuffer>()  // kernel
                                  .RemainingArgs()        // mask
                                  .Ret<ffi::AnyBuffer>()  // y
                                  .Attrs(),
                              {ffi::Traits::kCmdBufferCompatible});

XLA_FFI_DEFINE_HANDLER_SYMBOL(DeformConv2dVisit, visit_impl,
                              ffi::Ffi::Bind()
                                  .Ctx<Stream>()
                                  .Arg<ffi::AnyBuffer>()  // x
                                  .Arg<ffi::AnyBuffer>()  // first_row
                                  .Arg<ffi::AnyBuffer>()  // offset
                                  .Arg<ffi::AnyBuffer>()  // dcolumns
                                  .RemainingArgs()        // mask
                                  .Ret<ffi::AnyBuffer>()  // columns
                                  .Ret<ffi::AnyBuffer>()  // doffset
                                  .RemainingRets()        // dmask, dx
                                  .Attrs(),
                              {ffi::Traits::kCmdBufferCompatible});

XLA_FFI_DEFINE_HANDLER_SYMBOL(DeformConv2dList, list_impl,
                              ffi::Ffi::Bind()
                                  .Ctx<Stream>()
                                  .Arg<ffi::AnyBuffer>()  // x, for its shape
                                  .Arg<ffi::AnyBuffer>()  // first_row
                                  .Arg<ffi::AnyBuffer>()  // offset
                                  .Ret<ffi::AnyBuffer>()  // pixel
                                  .Attrs(),
                              {ffi::Traits::kCmdBufferCompatible});

XLA_FFI_DEFINE_HANDLER_SYMBOL(DeformConv2dGather, gather_impl,
                              ffi::Ffi::Bind()
                                  .Ctx<Stream>()
                                  .Arg<ffi::AnyBuffer>()  // first_row
                                  .Arg<ffi::AnyBuffer>()  // offset
                                  .Arg<ffi::AnyBuffer>()  // dcolumns
                                  .Arg<ffi::AnyBuffer>()  // pixel, sorted
                                  .Arg<ffi::AnyBuffer>()  // number
                                  .RemainingArgs()        // mask
                                  .Ret<ffi::AnyBuffer>()  // dx
                                  .Ret<ffi::AnyBuffer>()  // starts
                                  .Attrs(),
                              {ffi::Traits::kCmdBufferCompatible});

XLA_OPS_REGISTER("dcn_jax.deform_conv2d.columns", DeformConv2dColumns);
XLA_OPS_REGISTER("dcn_jax.deform_conv2d.fused", DeformConv2dFused);
XLA_OPS_REGISTER("dcn_jax.deform_conv2d.visit", DeformConv2dVisit);
XLA_OPS_REGISTER("dcn_jax.deform_conv2d.list", DeformConv2dList);
XLA_OPS_REGISTER("dcn_jax.deform_conv2d.gather", DeformConv2dGather);

}  // namespace
}  // namespace cuda
}  // namespace xla_ops
