// Kernel of nms. Compiled without contraction of products and sums: a fused one would
// round differently and change which boxes survive.
#include "nms/cpu/kernels.h"
#include "nms/tuning.h"
#include "simd/dispatch.h"
#include "simd/vector.h"

namespace xla_ops {
namespace XLA_OPS_ISA {
namespace {

template <typename A>
struct IntegerOf {
  using type = int32_t;
};
template <>
struct IntegerOf<double> {
  using type = int64_t;
};
template <typename A>
using Integer = typename IntegerOf<A>::type;

template <typename V>
XLA_OPS_ALWAYS_INLINE bool any(V lanes) {
  uint64_t words[sizeof(V) / sizeof(uint64_t)];
  std::memcpy(words, &lanes, sizeof(lanes));
  uint64_t all = 0;
  for (uint64_t word : words) all |= word;
  return all != 0;
}

template <typename V>
XLA_OPS_ALWAYS_INLINE V greater(V a, V b) {
  return a > b ? a : b;
}
template <typename V>
XLA_OPS_ALWAYS_INLINE V lesser(V a, V b) {
  return a < b ? a : b;
}

// The boxes selected so far, a vector of each coordinate at a time.
template <typename A>
class Selected {
  static constexpr int L = kLanes<A>;
  using V = Vec<A, L>;
  using I = Integer<A>;
  static_assert(kVectorsTogether * L <= kNmsPadding, "kNmsPadding is too small");

 public:
  Selected(A* scratch, int64_t capacity)
      : left_(scratch),
        top_(left_ + capacity),
        right_(top_ + capacity),
        bottom_(right_ + capacity),
        area_(bottom_ + capacity),
        group_(area_ + capacity) {
    // What is not selected overlaps nothing.
    const A infinity = static_cast<A>(__builtin_inf());
    for (int64_t i = 0; i < capacity; ++i) {
      left_[i] = top_[i] = infinity;
      right_[i] = bottom_[i] = -infinity;
      area_[i] = A(0);
      set_group(i, 0);
    }
  }

  void set(int64_t place, const A* box, A area, I group) {
    left_[place] = box[0];
    top_[place] = box[1];
    right_[place] = box[2];
    bottom_[place] = box[3];
    area_[place] = area;
    set_group(place, group);
  }

  // Whether a box of that group, whose places are [first, last), has an IoU above the
  // threshold. Whole vectors are read, hence also what is in the next group.
  bool suppress(int64_t first, int64_t last, const A* box, A area, I group, A threshold) const {
    const V zero = {};
    for (int64_t i = first; i < last; i += kVectorsTogether * L) {
      V overlap[kVectorsTogether];
      Vec<I, L> hit[kVectorsTogether], some = {};
#pragma GCC unroll 4
      for (int k = 0; k < kVectorsTogether; ++k) {
        const int64_t j = i + k * L;
        const V width = lesser(load<L>(right_ + j), box[2] + zero) -
                        greater(load<L>(left_ + j), box[0] + zero);
        const V height = lesser(load<L>(bottom_ + j), box[3] + zero) -
                         greater(load<L>(top_ + j), box[1] + zero);
        overlap[k] = greater(width, zero) * greater(height, zero);
        hit[k] = (overlap[k] > zero) & (load_raw<I, L>(group_ + j) == group);
        some |= hit[k];
      }
      if (!any(some)) continue;
      some ^= some;
#pragma GCC unroll 4
      for (int k = 0; k < kVectorsTogether; ++k) {
        const V iou = overlap[k] / ((load<L>(area_ + i + k * L) + area) - overlap[k]);
        some |= hit[k] & (iou > threshold);
      }
      if (any(some)) return true;
    }
    return false;
  }

 private:
  void set_group(int64_t i, I group) { std::memcpy(group_ + i, &group, sizeof(group)); }

  A *left_, *top_, *right_, *bottom_, *area_;
  A* group_;  // bits of an integer
};

template <typename A>
int64_t select_boxes(const void* all_boxes, const int32_t* order, int64_t candidates,
                     const NmsGroups& groups, double iou_threshold, int64_t max_outputs,
                     void* scratch, int32_t* indices) {
  const A* boxes = static_cast<const A*>(all_boxes);
  const A threshold = static_cast<A>(iou_threshold);
  Selected<A> selected(static_cast<A*>(scratch), groups.places + kNmsPadding);
  int64_t count = 0;
  for (int64_t i = 0; i < candidates && count < max_outputs; ++i) {
    const A* box = boxes + int64_t{order[i]} * 4;
    const A area = (box[2] - box[0]) * (box[3] - box[1]);
    const int32_t group = groups.of[i];
    const int64_t first = groups.first[group], last = first + groups.count[group];
    if (selected.suppress(first, last, box, area, group, threshold)) continue;
    selected.set(last, box, area, group);
    ++groups.count[group];
    indices[count++] = order[i];
  }
  return count;
}

template <typename A>
constexpr NmsKernels kKernels = {select_boxes<A>};

}  // namespace
}  // namespace XLA_OPS_ISA

XLA_OPS_EXPORT(NmsKernels, nms_kernels, kKernels<float>, kKernels<double>);

}  // namespace xla_ops
