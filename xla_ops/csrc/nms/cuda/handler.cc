// XLA FFI handler of nms: checks the operands, launches. XLA has sorted the boxes
// (xla_ops/non_max_suppression/cuda.py).
#include "ffi/buffers.h"
#include "ffi/checks.h"
#include "ffi/cuda_result.h"
#include "ffi/cuda_stream.h"
#include "ffi/registry.h"
#include "nms/cuda/kernels.h"
#include "xla/ffi/api/ffi.h"

namespace xla_ops {
namespace cuda {
namespace {

namespace ffi = ::xla::ffi;

template <typename A>
simt::Failure select(const NmsOperands& op, const ffi::AnyBuffer& boxes, double threshold,
                     void* words, int32_t* indices, bool* selected, cudaStream_t stream) {
  uint64_t* suppressed = static_cast<uint64_t*>(words);
  const simt::Failure failure = compare_boxes<A>(op, static_cast<const A*>(boxes.untyped_data()),
                                                 static_cast<A>(threshold), suppressed, stream);
  return failure ? failure : select_boxes(op, suppressed, indices, selected, stream);
}

ffi::Error NmsImpl(cudaStream_t stream, ffi::AnyBuffer boxes, ffi::Buffer<ffi::S32> class_ids,
                   ffi::Buffer<ffi::S32> order, ffi::Buffer<ffi::S32> candidates,
                   ffi::ResultBuffer<ffi::S32> indices, ffi::ResultBuffer<ffi::PRED> selected,
                   ffi::ResultBuffer<ffi::U32> words, double threshold) {
  Checks checks("nms");
  const Shape shape = shape_of(class_ids), output = shape_of(*indices);
  const bool is_f32 = boxes.element_type() == ffi::DataType::F32;
  if (!(checks.require(shape.size() == 2, "`class_ids` has shape ", shape) &&
        checks.require(shape[1] <= kNmsMaxBoxes, shape[1], " boxes; the kernels take ",
                       kNmsMaxBoxes) &&
        checks.buffer("boxes", boxes, {shape[0], shape[1], 4}, boxes.element_type()) &&
        checks.shape("order", shape_of(order), shape) &&
        checks.shape("candidates", shape_of(candidates), {shape[0]}) &&
        checks.require(output.size() == 2 && output[0] == shape[0], "the result has shape ",
                       output) &&
        checks.shape("the result", shape_of(*selected), output) &&
        checks.shape("words", shape_of(*words), {shape[0], shape[1], 2 * nms_blocks(shape[1])}) &&
        checks.require(is_f32 || boxes.element_type() == ffi::DataType::F64,
                       "`boxes` has an element type that no kernel knows"))) {
    return checks.error();
  }

  const NmsOperands op{shape[0],           shape[1],
                       output[1],          class_ids.typed_data(),
                       order.typed_data(), candidates.typed_data()};
  const auto run = is_f32 ? select<float> : select<double>;
  return result_of("nms", run(op, boxes, threshold, words->untyped_data(), indices->typed_data(),
                              selected->typed_data(), stream));
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(Nms, NmsImpl,
                              ffi::Ffi::Bind()
                                  .Ctx<Stream>()
                                  .Arg<ffi::AnyBuffer>()          // boxes
                                  .Arg<ffi::Buffer<ffi::S32>>()   // class_ids
                                  .Arg<ffi::Buffer<ffi::S32>>()   // order
                                  .Arg<ffi::Buffer<ffi::S32>>()   // candidates
                                  .Ret<ffi::Buffer<ffi::S32>>()   // indices
                                  .Ret<ffi::Buffer<ffi::PRED>>()  // selected
                                  .Ret<ffi::Buffer<ffi::U32>>()   // scratch
                                  .Attr<double>("iou_threshold"),
                              {ffi::Traits::kCmdBufferCompatible});
XLA_OPS_REGISTER("dcn_jax.nms", Nms);

}  // namespace
}  // namespace cuda
}  // namespace xla_ops
