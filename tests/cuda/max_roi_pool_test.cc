// The CUDA kernels of roi_pool, compiled for the host, against plain loops: the maxima, and
// the gradients of the maps, whose sums have one order and so the same bits. Buffers are as
// long as they must be and hold NaN before a launch, for the sanitizers.
#include <cmath>
#include <limits>

#include "check.h"
#include "elements.h"
#include "roi/cuda/max_pool_kernels.h"

namespace {

using namespace xla_ops;
using cuda::Arithmetic;
using cuda::to_real;

struct Case {
  const char* name;
  int64_t N, L, H, W, C, B, h, w;
  double size;  // of a RoI
};

// Numbers of channels for every width of a run, with and without a rest; maps that no tile
// divides; one RoI, and one bin, more than a block looks at together; nothing at all.
constexpr Case kCases[] = {
    {"plain", 2, 1, 11, 9, 8, 7, 2, 3, 5},
    {"two maps, tail of channels", 2, 2, 9, 10, 5, 9, 3, 2, 6},
    {"many channels", 1, 1, 5, 4, 264, 7, 1, 2, 3},
    {"many RoIs", 1, 1, 9, 8, 4, 257, 1, 1, 4},
    {"many bins", 1, 1, 10, 17, 2, 1, 3, 43, 12},
    {"no RoIs", 2, 1, 9, 6, 3, 0, 2, 2, 1},
    {"no channels", 1, 1, 4, 4, 0, 7, 2, 2, 3},
    {"no images", 0, 1, 4, 4, 3, 7, 2, 2, 3},
    {"no pixels", 1, 2, 0, 4, 3, 7, 2, 2, 3},
};

template <typename T>
struct Inputs {
  using A = Arithmetic<T>;
  MaxRoiPoolOperands op{};
  std::vector<RoiMap> maps;
  std::vector<std::vector<T>> x;
  std::vector<T> g;
  std::vector<A> boxes;
  std::vector<int32_t> levels, sizes;

  explicit Inputs(const Case& c) {
    op.N = c.N, op.L = c.L, op.C = c.C, op.B = c.B, op.h = c.h, op.w = c.w;
    Random random(5);
    for (int64_t l = 0; l < c.L; ++l) {
      maps.push_back({c.H - l * c.H / 2, c.W - l * 3, nullptr, nullptr});
      // Few values, so that many are equal; some are NaN.
      auto values = random.normal<double>(pixels(l) * c.C);
      for (double& v : values) {
        v = v > 2.5 ? std::numeric_limits<double>::quiet_NaN() : std::round(v);
      }
      x.push_back(to_elements<T>(values));
    }
    for (int64_t l = 0; l < c.L; ++l) maps[l].pixels = x[l].data();
    g = to_elements<T>(random.normal<double>(places()));
    for (double v : random.normal<double>(c.N * c.B * 4, 2)) {
      const size_t i = boxes.size() % 4;
      const double middle = (i ? c.W : c.H) / 2.0 - c.size / 2;
      boxes.push_back(
          static_cast<A>(i < 2 ? std::round(v + middle) : std::fmax(std::round(v + c.size), 1)));
    }
    for (int64_t roi = 0; roi < c.N * c.B; ++roi) {
      levels.push_back(static_cast<int32_t>(roi % c.L));
    }
    if (op.B > 6) add_hostile();
    for (int64_t n = 0; n < c.N; ++n) {
      for (const RoiMap& map : maps) {
        // Smaller than the map, then larger, which counts as the map.
        sizes.push_back(static_cast<int32_t>(n ? 2 * map.H : map.H - 1));
        sizes.push_back(static_cast<int32_t>(map.W - n));
      }
    }
    op.maps = maps.data(), op.boxes = boxes.data(), op.levels = levels.data();
    op.map_sizes = sizes.data();
  }

  // The RoIs of an image begin with these.
  void add_hostile() {
    constexpr A kNan = std::numeric_limits<A>::quiet_NaN();
    constexpr A kInfinity = std::numeric_limits<A>::infinity();
    for (int64_t n = 0; n < op.N; ++n) {
      A* box = boxes.data() + n * op.B * 4;
      box[0] = kNan;
      box[4 + 3] = kInfinity;
      box[8] = A(-1e30), box[8 + 2] = A(3e30);
      box[12 + 1] = A(1e30);
      int32_t* level = levels.data() + n * op.B;
      level[4] = -1, level[5] = static_cast<int32_t>(op.L);
    }
  }

  int64_t pixels(int64_t l) const { return op.N * maps[l].H * maps[l].W; }
  int64_t places() const { return op.N * op.B * op.h * op.w * op.C; }
};

template <typename T>
struct Expected {
  std::vector<double> y;
  std::vector<std::vector<T>> dx;
};

// Bin `bin` of `bins` of a RoI covers the pixel.
template <typename A>
bool covers(A start, A extent, int64_t bin, int64_t bins, int64_t pixel) {
  const A step = extent / static_cast<A>(bins);
  return static_cast<A>(pixel) >= start + std::floor(static_cast<A>(bin) * step) &&
         static_cast<A>(pixel) < start + std::ceil(static_cast<A>(bin + 1) * step);
}

// Follows the definition, one channel of one bin at a time.
template <typename T>
Expected<T> expect(const Inputs<T>& in) {
  using A = Arithmetic<T>;
  const MaxRoiPoolOperands& op = in.op;
  Expected<T> out;
  std::vector<std::vector<A>> sum;
  for (int64_t l = 0; l < op.L; ++l) sum.emplace_back(in.x[l].size());
  for (int64_t at = 0; at < in.places(); ++at) {
    const int64_t bin = at / op.C, c = at % op.C, roi = bin / op.w / op.h, n = roi / op.B;
    const int64_t i = bin / op.w % op.h, j = bin % op.w;
    const A* box = in.boxes.data() + 4 * roi;
    bool defined = true;
    for (int k = 0; k < 4; ++k) defined = defined && std::isfinite(box[k]);
    const int32_t level = in.levels[roi];
    double most = 0;
    int64_t place = -1;
    if (defined && level >= 0 && level < op.L) {
      const RoiMap& map = in.maps[level];
      const int32_t* size = in.sizes.data() + (n * op.L + level) * 2;
      for (int64_t row = 0; row < map.H && row < size[0]; ++row) {
        if (!covers(box[0], box[2], i, op.h, row)) continue;
        for (int64_t column = 0; column < map.W && column < size[1]; ++column) {
          if (!covers(box[1], box[3], j, op.w, column)) continue;
          const int64_t here = ((n * map.H + row) * map.W + column) * op.C + c;
          const double v = to_real(in.x[level][here]);
          if (place < 0 || v > most || (std::isnan(v) && !std::isnan(most))) {
            most = v, place = here;
          }
        }
      }
    }
    out.y.push_back(defined ? most : std::numeric_limits<double>::quiet_NaN());
    if (place >= 0) sum[level][place] += to_real(in.g[at]);
  }
  for (const std::vector<A>& values : sum) {
    out.dx.emplace_back();
    for (A v : values) out.dx.back().push_back(cuda::from_real<T>(v));
  }
  return out;
}

// The same numbers, or NaN in the same places.
template <typename T>
void check_equal(const std::vector<T>& actual, const std::vector<double>& expected,
                 const std::string& what) {
  size_t different = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    const double v = to_real(actual[i]);
    different += !(v == expected[i] || (std::isnan(v) && std::isnan(expected[i])));
  }
  check(different == 0, what + ": " + std::to_string(different) + " of " +
                            std::to_string(expected.size()) + " differ");
}

template <typename T>
void check_case(const Case& c, ElementType type) {
  Inputs<T> in(c);
  in.op.type = type;
  const Expected<T> expected = expect(in);
  for (const char* order : kOrders) {
    take_turns(order);
    const std::string name = std::string(c.name) + ", " + order;
    auto y = undefined<T>(in.places());
    auto places = undefined<int32_t>(in.places());
    auto reach = undefined<int32_t>(c.N * c.B * 4);
    std::vector<std::vector<T>> dx;
    for (int64_t l = 0; l < c.L; ++l) dx.push_back(undefined<T>(in.x[l].size()));
    for (int64_t l = 0; l < c.L; ++l) in.maps[l].gradient = dx[l].data();
    const auto done = [&](simt::Failure failure) {
      check(!failure, name + ": " + (failure ? failure : ""));
    };
    done(cuda::max_pool_rois(in.op, y.data(), nullptr));
    done(cuda::max_roi_map_gradient(in.op, in.g.data(), reach.data(), places.data(), nullptr));
    check_equal(y, expected.y, name + ", y");
    for (int64_t l = 0; l < c.L; ++l) {
      check_equal(dx[l], to_doubles(expected.dx[l]),
                  name + ", gradient of map " + std::to_string(l));
    }
  }
}

}  // namespace

int main() {
  for (const Case& c : kCases) {
    check_case<float>(c, ElementType::kF32);
    if (!kEverything) continue;
    check_case<double>(c, ElementType::kF64);
    check_case<Bf16>(c, ElementType::kBF16);
    check_case<F16>(c, ElementType::kF16);
  }
  return failures() ? 1 : 0;
}
