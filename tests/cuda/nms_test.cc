// The CUDA kernels of nms, compiled for the host, against plain loops: which boxes suppress
// which, and which are selected. Buffers are as long as they must be and hold no number that
// means something before a launch, for the sanitizers.
#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <numeric>

#include "check.h"
#include "elements.h"
#include "nms/cuda/kernels.h"

namespace {

using namespace xla_ops;
using cuda::kNmsBlock;

struct Case {
  const char* name;
  int64_t N, B, D;
  std::vector<int32_t> candidates;
  int classes;
};

// Candidates and outputs that fill blocks, are one less or one more, or are none.
const Case kCases[] = {
    {"plain", 2, 40, 12, {40, 33}, 2},
    {"blocks", 4, 129, 129, {63, 64, 65, 129}, 3},
    {"more outputs than boxes", 2, 65, 600, {65, 1}, 1},
    {"full before the end", 2, 200, 3, {200, 150}, 4},
    {"many boxes", 1, 450, 200, {449}, 20},
    {"no candidates", 2, 70, 5, {0, 0}, 1},
    {"no boxes", 2, 0, 4, {0, 0}, 1},
    {"no outputs", 1, 64, 0, {64}, 1},
    {"no images", 0, 64, 8, {}, 1},
};

template <typename A>
struct Inputs {
  cuda::NmsOperands op{};
  std::vector<A> boxes;
  std::vector<int32_t> class_ids, order;

  // Corners are whole numbers, so that many boxes overlap by just the threshold.
  explicit Inputs(const Case& c) {
    Random random(7);
    for (double v : random.normal<double>(c.N * c.B * 4, 3)) {
      const size_t i = boxes.size() % 4;
      // Some sides are negative.
      boxes.push_back(i < 2 ? A(std::round(v)) : boxes[boxes.size() - 2] + A(std::round(v + 4)));
    }
    std::mt19937 generator(7);
    for (int64_t n = 0; n < c.N; ++n) {
      for (int64_t b = 0; b < c.B; ++b) class_ids.push_back(b * 7 % 5 % c.classes);
      order.resize(order.size() + c.B);
      std::iota(order.end() - c.B, order.end(), 0);
      std::shuffle(order.end() - c.B, order.end(), generator);
      if (c.B > 0) add_hostile(boxes.data() + (n * c.B) * 4);
    }
    op = {c.N, c.B, c.D, class_ids.data(), order.data(), c.candidates.data()};
  }

  static void add_hostile(A* box) {
    constexpr A kInfinity = std::numeric_limits<A>::infinity();
    for (int side = 0; side < 4; ++side) {
      box[4 * side + side] = std::numeric_limits<A>::quiet_NaN();
      box[16 + side] = side < 2 ? -kInfinity : kInfinity;
      box[20 + side] = side < 2 ? A(-1e30) : A(1e30);
    }
  }
};

// IoU in the kernels' precision: rounding may move it across the threshold.
template <typename A>
bool overlap(const A* a, const A* b, A threshold) {
  const A width = std::min(a[2], b[2]) - std::max(a[0], b[0]);
  const A height = std::min(a[3], b[3]) - std::max(a[1], b[1]);
  if (!(width > 0 && height > 0)) return false;
  const A both = width * height;
  const A area = (a[2] - a[0]) * (a[3] - a[1]), other = (b[2] - b[0]) * (b[3] - b[1]);
  return both / (area + other - both) > threshold;
}

template <typename A>
void check_case(const Case& c, A threshold) {
  const Inputs<A> in(c);
  const cuda::NmsOperands& op = in.op;
  const int64_t blocks = cuda::nms_blocks(c.B);
  const auto number = [&](int64_t n, int64_t place) {
    return n * c.B + in.order[n * c.B + place];
  };
  const auto suppresses = [&](int64_t n, int64_t place, int64_t later) {
    const int64_t a = number(n, place), b = number(n, later);
    return in.class_ids[a] == in.class_ids[b] &&
           overlap(in.boxes.data() + 4 * a, in.boxes.data() + 4 * b, threshold);
  };
  // Of an image.
  std::vector<std::vector<int32_t>> expected;
  for (int64_t n = 0; n < c.N; ++n) {
    std::vector<int64_t> kept;
    for (int64_t place = 0; place < c.candidates[n]; ++place) {
      if (static_cast<int64_t>(kept.size()) == c.D) break;
      if (std::none_of(kept.begin(), kept.end(),
                       [&](int64_t better) { return suppresses(n, better, place); })) {
        kept.push_back(place);
      }
    }
    expected.emplace_back();
    for (int64_t place : kept) expected.back().push_back(in.order[n * c.B + place]);
  }

  for (const char* turns : kOrders) {
    take_turns(turns);
    const std::string name = std::string(c.name) + ", " + turns;
    auto words = undefined<uint64_t>(c.N * c.B * blocks);
    auto indices = undefined<int32_t>(c.N * c.D);
    auto selected = undefined<char>(c.N * c.D);
    const auto done = [&](simt::Failure failure) {
      check(!failure, name + ": " + (failure ? failure : ""));
    };
    done(cuda::compare_boxes(op, in.boxes.data(), threshold, words.data(), nullptr));
    int64_t wrong = 0;
    for (int64_t n = 0; n < c.N; ++n) {
      for (int64_t place = 0; place < c.candidates[n]; ++place) {
        for (int64_t later = place / kNmsBlock * kNmsBlock; later < c.candidates[n]; ++later) {
          const uint64_t word = words[(n * c.B + place) * blocks + later / kNmsBlock];
          const bool bit = (word >> later % kNmsBlock & 1) != 0;
          wrong += bit != (later > place && suppresses(n, place, later));
        }
      }
    }
    check(wrong == 0, name + ": " + std::to_string(wrong) + " pairs are compared wrongly");

    done(cuda::select_boxes(op, words.data(), indices.data(),
                            reinterpret_cast<bool*>(selected.data()), nullptr));
    for (int64_t n = 0; n < c.N; ++n) {
      const auto& wanted = expected[n];
      for (int64_t d = 0; d < c.D; ++d) {
        const bool there = d < static_cast<int64_t>(wanted.size());
        check(indices[n * c.D + d] == (there ? wanted[d] : 0) && selected[n * c.D + d] == there,
              name + ": output " + std::to_string(d) + " of image " + std::to_string(n));
      }
    }
  }
}

// More blocks of candidates than the scan has threads, of which the first candidate
// suppresses all but the last one.
void check_many_blocks() {
  constexpr int64_t kBoxes = 514 * kNmsBlock + 1;
  const int64_t blocks = cuda::nms_blocks(kBoxes);
  // Zeros, of which most pages are never touched.
  const std::unique_ptr<uint64_t, decltype(&std::free)> words(
      static_cast<uint64_t*>(std::calloc(kBoxes * blocks, sizeof(uint64_t))), &std::free);
  std::fill(words.get(), words.get() + blocks - 1, ~uint64_t{0});
  std::vector<int32_t> order(kBoxes), class_ids(kBoxes);
  std::iota(order.begin(), order.end(), 0);
  const int32_t candidates = kBoxes;
  const cuda::NmsOperands op{1, kBoxes, 3, class_ids.data(), order.data(), &candidates};
  take_turns("7");
  auto indices = undefined<int32_t>(3);
  bool selected[3];
  check(!cuda::select_boxes(op, words.get(), indices.data(), selected, nullptr), "many blocks");
  check(indices[0] == 0 && indices[1] == kBoxes - 1 && indices[2] == 0, "many blocks, indices");
  check(selected[0] && selected[1] && !selected[2], "many blocks, selected");
}

}  // namespace

int main() {
  for (const Case& c : kCases) {
    check_case<float>(c, 0.5f);
    if (!kEverything) continue;
    check_case<float>(c, 0.f);
    check_case<double>(c, 1 / 3.0);
  }
  if (kEverything) check_many_blocks();
  return failures() ? 1 : 0;
}
