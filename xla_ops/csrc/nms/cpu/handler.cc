// FFI handler of nms: greedy non-maximum suppression with a fixed number of outputs.
//
// N images, B boxes of an image, D outputs.
#include <algorithm>
#include <new>

#include "ffi/buffers.h"
#include "ffi/checks.h"
#include "ffi/parallel.h"
#include "ffi/registry.h"
#include "nms/cpu/kernels.h"
#include "xla/ffi/api/ffi.h"

namespace xla_ops {
namespace {

namespace ffi = ::xla::ffi;

template <typename A>
struct Image {
  const A* boxes;
  const A* scores;
  const int32_t* class_ids;
  const uint8_t* valid;  // bools of the caller: 0 is false, anything else true
};

// Writes the numbers of the boxes that take part by falling score, the lower number
// first among equals. Returns how many there are.
template <typename A>
int64_t sort_candidates(const Image<A>& image, int64_t num_boxes, int32_t* order) {
  int64_t count = 0;
  for (int64_t i = 0; i < num_boxes; ++i) {
    const A* box = image.boxes + 4 * i;
    bool defined = image.scores[i] == image.scores[i];
    for (int k = 0; k < 4; ++k) defined = defined && box[k] == box[k];
    if (image.valid[i] && defined) order[count++] = static_cast<int32_t>(i);
  }
  std::sort(order, order + count, [&](int32_t a, int32_t b) {
    const A first = image.scores[a], second = image.scores[b];
    return first > second || (first == second && a < b);
  });
  return count;
}

// Numbers that one image's group_by_class() writes to, for every box.
constexpr int64_t kGroupArrays = 4;

// Groups the candidates by class. `numbers` holds kGroupArrays * candidates.
NmsGroups group_by_class(const int32_t* class_ids, const int32_t* order, int64_t candidates,
                         int64_t max_outputs, int32_t* numbers) {
  int32_t* classes = numbers;
  for (int64_t i = 0; i < candidates; ++i) classes[i] = class_ids[order[i]];
  std::sort(classes, classes + candidates);
  const int64_t groups = std::unique(classes, classes + candidates) - classes;

  int32_t *of = classes + candidates, *first = of + candidates, *count = first + candidates;
  std::fill(count, count + groups, 0);
  for (int64_t i = 0; i < candidates; ++i) {
    of[i] = static_cast<int32_t>(std::lower_bound(classes, classes + groups, class_ids[order[i]]) -
                                 classes);
    ++count[of[i]];
  }
  int64_t places = 0;
  for (int64_t k = 0; k < groups; ++k) {
    first[k] = static_cast<int32_t>(places);
    places += std::min<int64_t>(count[k], max_outputs);
  }
  std::fill(count, count + groups, 0);
  return {of, first, count, places};
}

template <typename A>
ffi::Error suppress(ffi::ThreadPool& pool, int64_t images, int64_t num_boxes,
                    const Image<A>& first, double threshold, int64_t max_outputs, int32_t* indices,
                    bool* selected) {
  const auto whole_lines = [](int64_t bytes) { return (bytes + 63) / 64 * 64; };
  const int64_t vectors = whole_lines(kNmsArrays * (num_boxes + kNmsPadding) * sizeof(A));
  const int64_t bytes = vectors + whole_lines((1 + kGroupArrays) * num_boxes * sizeof(int32_t));
  const NmsKernels& kernels =
      nms_kernels(sizeof(A) == sizeof(float) ? ElementType::kF32 : ElementType::kF64);
  try {
    Scratch scratch(num_workers(pool, images) * bytes);
    parallel_for(pool, images, [&](int64_t n, int64_t worker) {
      char* mine = scratch.as<char>() + worker * bytes;
      int32_t* order = reinterpret_cast<int32_t*>(mine + vectors);
      const int64_t skip = n * num_boxes;
      const Image<A> image{first.boxes + skip * 4, first.scores + skip, first.class_ids + skip,
                           first.valid + skip};
      const int64_t candidates = sort_candidates(image, num_boxes, order);
      const NmsGroups groups =
          group_by_class(image.class_ids, order, candidates, max_outputs, order + num_boxes);
      int32_t* out = indices + n * max_outputs;
      const int64_t count = kernels.select_boxes(image.boxes, order, candidates, groups, threshold,
                                                 max_outputs, mine, out);
      std::fill(out + count, out + max_outputs, 0);
      bool* flags = selected + n * max_outputs;
      std::fill(flags, flags + count, true);
      std::fill(flags + count, flags + max_outputs, false);
    });
  } catch (const std::bad_alloc&) {
    return ffi::Error(ffi::ErrorCode::kResourceExhausted, "no memory for nms");
  }
  return ffi::Error::Success();
}

ffi::Error NmsImpl(ffi::ThreadPool pool, ffi::AnyBuffer boxes, ffi::AnyBuffer scores,
                   ffi::Buffer<ffi::S32> class_ids, ffi::Buffer<ffi::PRED> valid,
                   ffi::ResultBuffer<ffi::S32> indices, ffi::ResultBuffer<ffi::PRED> selected,
                   double threshold) {
  Checks checks("nms");
  const Shape shape = shape_of(scores), output = shape_of(*indices);
  const bool is_f32 = boxes.element_type() == ffi::DataType::F32;
  if (!(checks.require(shape.size() == 2, "`scores` has shape ", shape, "; expected (N, B)") &&
        checks.buffer("boxes", boxes, {shape[0], shape[1], 4}, scores.element_type()) &&
        checks.shape("class_ids", shape_of(class_ids), shape) &&
        checks.shape("valid", shape_of(valid), shape) &&
        checks.require(output.size() == 2 && output[0] == shape[0], "the result has shape ",
                       output) &&
        checks.shape("the result", shape_of(*selected), output) &&
        checks.require(shape[1] <= INT32_MAX, "too many boxes") &&
        checks.require(is_f32 || boxes.element_type() == ffi::DataType::F64,
                       "`boxes` has an element type that no kernel knows"))) {
    return checks.error();
  }
  if (is_empty(*indices)) return ffi::Error::Success();

  const auto run = [&](auto real) {
    using A = decltype(real);
    const Image<A> first{boxes.typed_data<A>(), scores.typed_data<A>(), class_ids.typed_data(),
                         static_cast<const uint8_t*>(valid.untyped_data())};
    return suppress<A>(pool, shape[0], shape[1], first, threshold, output[1],
                       indices->typed_data(), selected->typed_data());
  };
  return is_f32 ? run(float()) : run(double());
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(Nms, NmsImpl,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<ffi::Buffer<ffi::PRED>>()
                                  .Ret<ffi::Buffer<ffi::S32>>()
                                  .Ret<ffi::Buffer<ffi::PRED>>()
                                  .Attr<double>("iou_threshold"));
XLA_OPS_REGISTER("dcn_jax.nms", Nms);

}  // namespace
}  // namespace xla_ops
