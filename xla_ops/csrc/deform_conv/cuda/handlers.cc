// XLA FFI handlers of the kernels of kernels.h: check the operands, launch. Which
// handler does what for deform_conv2d is decided in xla_ops/deform_conv/cuda/composition.py.
#include <optional>

#include "deform_conv/cuda/kernels.h"
#include "deform_conv/decode.h"
#include "ffi/buffers.h"
#include "ffi/checks.h"
#include "ffi/cuda_result.h"
#include "ffi/cuda_stream.h"
#include "ffi/registry.h"
#include "xla/ffi/api/ffi.h"

namespace xla_ops {
namespace cuda {
namespace {

namespace ffi = ::xla::ffi;

constexpr char kOperation[] = "deform_conv2d";

// The mask is the last operand, where there is one.
bool decode_mask(Checks& checks, const ffi::RemainingArgs& rest,
                 std::optional<ffi::AnyBuffer>* mask) {
  return checks.require(rest.size() <= 1, "too many operands") &&
         (rest.size() == 0 || checks.take(rest, 0, mask));
}

// Fills `op`, but x, for a map of shape `x` besides what the attributes say. Any number of
// outputs will do.
bool decode_samples(Checks& checks, const DeformConvSampleAttributes& attributes, const Shape& x,
                    const ffi::AnyBuffer& first_row, const ffi::AnyBuffer& offset,
                    const std::optional<ffi::AnyBuffer>& mask, DeformConvOperands* op) {
  DeformConvGeometry& g = op->geometry;
  static_cast<DeformConvAttributes&>(g) = attributes;
  g.modulated = mask.has_value();
  op->first_row = static_cast<const int32_t*>(first_row.untyped_data());
  op->offset = offset.untyped_data();
  op->mask = mask ? mask->untyped_data() : nullptr;
  if (!(checks.require(g.groups >= 1, "groups must be positive") &&
        checks.require(x.size() == 4, "`x` has shape ", x, "; expected (N, H, W, C)"))) {
    return false;
  }
  const Shape kernel = {1, attributes.kernel_h, attributes.kernel_w, x[3] / g.groups,
                        attributes.groups};
  const Shape places = shape_of(offset);
  const ffi::DataType real = real_type(op->type);
  return decode_sizes(checks, x, places, kernel, &g) &&
         checks.buffer("offset", offset, places, real) &&
         (!mask || checks.buffer("mask", *mask, mask_shape(g), real)) &&
         checks.buffer("first_row", first_row, {g.N}, ffi::DataType::S32) &&
         // Corners are counted in int32.
         checks.require(g.positions() * g.taps() < int64_t{1} << 29, "an output of ", g.P, " x ",
                        g.Q, " is too large");
}

Shape columns_shape(const DeformConvGeometry& g) {
  return {g.N, g.P, g.Q, g.groups, g.taps(), g.group_channels()};
}

ffi::Error columns_impl(cudaStream_t stream, ffi::AnyBuffer x, ffi::AnyBuffer first_row,
                        ffi::AnyBuffer offset, ffi::RemainingArgs rest,
                        ffi::Result<ffi::AnyBuffer> columns,
                        const DeformConvSampleAttributes& attributes) {
  Checks checks(kOperation);
  DeformConvOperands op{};
  std::optional<ffi::AnyBuffer> mask;
  if (!(decode_type(checks, x, &op.type) && decode_mask(checks, rest, &mask) &&
        decode_samples(checks, attributes, shape_of(x), first_row, offset, mask, &op) &&
        checks.buffer("columns", *columns, columns_shape(op.geometry), x.element_type()))) {
    return checks.error();
  }
  op.x = x.untyped_data();
  return result_of(kOperation, sample_columns(op, columns->untyped_data(), stream));
}

ffi::Error visit_impl(cudaStream_t stream, ffi::AnyBuffer x, ffi::AnyBuffer first_row,
                      ffi::AnyBuffer offset, ffi::AnyBuffer dcolumns, ffi::RemainingArgs rest,
                      ffi::Result<ffi::AnyBuffer> columns, ffi::Result<ffi::AnyBuffer> doffset,
                      ffi::RemainingRets more, const DeformConvSampleAttributes& attributes) {
  Checks checks(kOperation);
  DeformConvOperands op{};
  const DeformConvGeometry& g = op.geometry;
  std::optional<ffi::AnyBuffer> mask, dmask, dx;
  if (!(decode_type(checks, x, &op.type) && decode_mask(checks, rest, &mask) &&
        decode_samples(checks, attributes, shape_of(x), first_row, offset, mask, &op))) {
    return checks.error();
  }
  const ffi::DataType real = real_type(op.type);
  const ffi::DataType kept =
      op.type == columns_gradient_type(op.type) ? x.element_type() : ffi::DataType::F32;
  const size_t masks = g.modulated ? 1 : 0;
  if (!(checks.buffer("dcolumns", dcolumns, columns_shape(g), kept) &&
        checks.buffer("columns", *columns, columns_shape(g), x.element_type()) &&
        checks.buffer("doffset", *doffset, shape_of(offset), real) &&
        (masks == 0 ||
         (checks.take(more, 0, &dmask) && checks.buffer("dmask", *dmask, mask_shape(g), real))) &&
        (more.size() <= masks ||
         (checks.take(more, masks, &dx) && checks.buffer("dx", *dx, shape_of(x), real))) &&
        checks.require(more.size() <= masks + 1, "too many results"))) {
    return checks.error();
  }
  op.x = x.untyped_data();
  DeformConvGradients grad{};
  grad.dcolumns = dcolumns.untyped_data();
  grad.columns = columns->untyped_data();
  grad.doffset = doffset->untyped_data();
  grad.dmask = dmask ? dmask->untyped_data() : nullptr;
  grad.dx = dx ? dx->untyped_data() : nullptr;
  return result_of(kOperation, visit_samples(op, grad, stream));
}

// How the pixels of the lists are numbered. 16 bits where they do: XLA sorts them faster.
bool decode_list(Checks& checks, const DeformConvListAttributes& attributes,
                 const ffi::AnyBuffer& pixel, const DeformConvGeometry& g, DeformConvList* list) {
  list->joint = attributes.joint != 0;
  list->narrow = pixel.element_type() == ffi::DataType::U16;
  const int64_t last = (list->joint ? g.N * g.G : 1) * (g.H * g.W + 1) - 1;
  return checks.require(last <= (list->narrow ? 0xffff : 0xffffffff),
                        "`pixel` is too narrow for the map") &&
         checks.buffer("pixel", pixel, {g.N, g.G, 4 * g.positions() * g.taps()},
                       list->narrow ? ffi::DataType::U16 : ffi::DataType::U32);
}

ffi::Error list_impl(cudaStream_t stream, ffi::AnyBuffer x, ffi::AnyBuffer first_row,
                     ffi::AnyBuffer offset, ffi::Result<ffi::AnyBuffer> pixel,
                     const DeformConvListAttributes& attributes) {
  Checks checks(kOperation);
  DeformConvOperands op{};
  DeformConvList list{};
  if (!(decode_type(checks, x, &op.type) &&
        decode_samples(checks, attributes, shape_of(x), first_row, offset, std::nullopt, &op) &&
        decode_list(checks, attributes, *pixel, op.geometry, &list))) {
    return checks.error();
  }
  return result_of(kOperation, list_corners(op, list, pixel->untyped_data(), stream));
}

ffi::Error gather_impl(cudaStream_t stream, ffi::AnyBuffer first_row, ffi::AnyBuffer offset,
                       ffi::AnyBuffer dcolumns, ffi::AnyBuffer pixel, ffi::AnyBuffer number,
                       ffi::RemainingArgs rest, ffi::Result<ffi::AnyBuffer> dx,
                       ffi::Result<ffi::AnyBuffer> starts,
                       const DeformConvListAttributes& attributes) {
  Checks checks(kOperation);
  DeformConvOperands op{};
  DeformConvCorners corners{};
  ElementType type{};
  const DeformConvGeometry& g = op.geometry;
  std::optional<ffi::AnyBuffer> mask;
  // Either the columns' gradient has the type that goes with a dx like x, or dx that of sums.
  const auto goes_together = [&] {
    return op.type == columns_gradient_type(type) ||
           (op.type == ElementType::kBF16 && type == ElementType::kF32);
  };
  if (!(decode_type(checks, *dx, &type) && decode_type(checks, dcolumns, &op.type) &&
        checks.require(goes_together(),
                       "`dcolumns` has an element type that does not go with the others") &&
        decode_mask(checks, rest, &mask) &&
        decode_samples(checks, attributes, shape_of(*dx), first_row, offset, mask, &op) &&
        checks.buffer("dcolumns", dcolumns, columns_shape(g), dcolumns.element_type()) &&
        decode_list(checks, attributes, pixel, g, &corners.list) &&
        checks.buffer("number", number, shape_of(pixel), ffi::DataType::S32) &&
        checks.buffer("starts", *starts, {g.N, g.G, g.H * g.W + 1}, ffi::DataType::S32))) {
    return checks.error();
  }
  corners.pixel = pixel.untyped_data();
  corners.number = static_cast<const int32_t*>(number.untyped_data());
  return result_of(kOperation, gather_input_gradient(op, dcolumns.untyped_data(), corners,
                                                     static_cast<int32_t*>(starts->untyped_data()),
                                                     type, dx->untyped_data(), stream));
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(DeformConv2dColumns, columns_impl,
                              ffi::Ffi::Bind()
                                  .Ctx<Stream>()
                                  .Arg<ffi::AnyBuffer>()  // x
                                  .Arg<ffi::AnyBuffer>()  // first_row
                                  .Arg<ffi::AnyBuffer>()  // offset
                                  .RemainingArgs()        // mask
                                  .Ret<ffi::AnyBuffer>()  // columns
                                  .Attrs<DeformConvSampleAttributes>(),
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
                                  .Attrs<DeformConvSampleAttributes>(),
                              {ffi::Traits::kCmdBufferCompatible});

XLA_FFI_DEFINE_HANDLER_SYMBOL(DeformConv2dList, list_impl,
                              ffi::Ffi::Bind()
                                  .Ctx<Stream>()
                                  .Arg<ffi::AnyBuffer>()  // x, for its shape
                                  .Arg<ffi::AnyBuffer>()  // first_row
                                  .Arg<ffi::AnyBuffer>()  // offset
                                  .Ret<ffi::AnyBuffer>()  // pixel
                                  .Attrs<DeformConvListAttributes>(),
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
                                  .Attrs<DeformConvListAttributes>(),
                              {ffi::Traits::kCmdBufferCompatible});

XLA_OPS_REGISTER("dcn_jax.deform_conv2d.columns", DeformConv2dColumns);
XLA_OPS_REGISTER("dcn_jax.deform_conv2d.visit", DeformConv2dVisit);
XLA_OPS_REGISTER("dcn_jax.deform_conv2d.list", DeformConv2dList);
XLA_OPS_REGISTER("dcn_jax.deform_conv2d.gather", DeformConv2dGather);

}  // namespace
}  // namespace cuda
}  // namespace xla_ops
