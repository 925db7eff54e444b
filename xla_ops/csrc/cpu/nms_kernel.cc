// Kernel of nms. Compiled without contraction of products and sums: a fused one would
// round differently and change which boxes survive.
#include "nms.h"
#include "simd.h"

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

// Vectors that are tested together.
constexpr int kGroup = 4;

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
  static_assert(kGroup * L <= kNmsPadding, "kNmsPadding is too small");

 public:
  Selected(A* scratch, int64_t capacity)
      : left_(scratch),
        top_(left_ + capacity),
        right_(top_ + capacity),
        bottom_(right_ + capacity),
        area_(bottom_ + capacity),
        class_(area_ + capacity) {
    // What is not selected overlaps nothing.
    const A infinity = static_cast<A>(__builtin_inf());
    for (int64_t i = 0; i < capacity; ++i) {
      left_[i] = top_[i] = infinity;
      right_[i] = bottom_[i] = -infinity;
      area_[i] = A(0);
      set_class(i, 0);
    }
  }

  void add(const A* box, A area, I class_id) {
    left_[count_] = box[0];
    top_[count_] = box[1];
    right_[count_] = box[2];
    bottom_[count_] = box[3];
    area_[count_] = area;
    set_class(count_, class_id);
    ++count_;
  }

  int64_t count() const { return count_; }

  // Whether a selected box of that class has an IoU above the threshold.
  bool suppress(const A* box, A area, I class_id, A threshold) const {
    const V zero = {};
    for (int64_t i = 0; i < count_; i += kGroup * L) {
      V overlap[kGroup];
      Vec<I, L> hit[kGroup], some = {};
#pragma GCC unroll 4
      for (int k = 0; k < kGroup; ++k) {
        const int64_t j = i + k * L;
        const V width = lesser(load<L>(right_ + j), box[2] + zero) -
                        greater(load<L>(left_ + j), box[0] + zero);
        const V height = lesser(load<L>(bottom_ + j), box[3] + zero) -
                         greater(load<L>(top_ + j), box[1] + zero);
        overlap[k] = greater(width, zero) * greater(height, zero);
        hit[k] = (overlap[k] > zero) & (load_raw<I, L>(class_ + j) == class_id);
        some |= hit[k];
      }
      if (!any(some)) continue;
      some ^= some;
#pragma GCC unroll 4
      for (int k = 0; k < kGroup; ++k) {
        const V iou = overlap[k] / ((load<L>(area_ + i + k * L) + area) - overlap[k]);
        some |= hit[k] & (iou > threshold);
      }
      if (any(some)) return true;
    }
    return false;
  }

 private:
  void set_class(int64_t i, I class_id) { std::memcpy(class_ + i, &class_id, sizeof(class_id)); }

  A *left_, *top_, *right_, *bottom_, *area_;
  A* class_;  // bits of an integer
  int64_t count_ = 0;
};

}  // namespace

template <typename A>
int64_t SelectBoxes(const A* boxes, const int32_t* class_ids, const int32_t* order,
                    int64_t candidates, A threshold, int64_t max_outputs, A* scratch,
                    int32_t* indices) {
  const int64_t most = candidates < max_outputs ? candidates : max_outputs;
  Selected<A> selected(scratch, most + kNmsPadding);
  for (int64_t i = 0; i < candidates && selected.count() < max_outputs; ++i) {
    const A* box = boxes + int64_t{order[i]} * 4;
    const A area = (box[2] - box[0]) * (box[3] - box[1]);
    const int32_t class_id = class_ids[order[i]];
    if (selected.suppress(box, area, class_id, threshold)) continue;
    indices[selected.count()] = order[i];
    selected.add(box, area, class_id);
  }
  return selected.count();
}

template int64_t SelectBoxes<float>(const float*, const int32_t*, const int32_t*, int64_t, float,
                                    int64_t, float*, int32_t*);
template int64_t SelectBoxes<double>(const double*, const int32_t*, const int32_t*, int64_t,
                                     double, int64_t, double*, int32_t*);

}  // namespace XLA_OPS_ISA
}  // namespace xla_ops
