// The CUDA kernels of RoI pooling, compiled for the host: the forward pass against plain
// loops in double, the gradients as its adjoints. Buffers are as long as they must be and
// hold NaN before a launch, for the sanitizers.
#include <cmath>
#include <cstring>
#include <limits>

#include "check.h"
#include "elements.h"
#include "roi/cuda/pool_kernels.h"

namespace {

using namespace xla_ops;
using cuda::Arithmetic;
using Doubles = std::vector<double>;

struct Case {
  const char* name;
  int64_t N, H, W, C, B, h, w, group, classes, samples;
  bool shifted;
  double size;  // of a RoI
  int64_t levels = 1;

  // Maps of every level have other sizes than their neighbours.
  int64_t height(int64_t level) const { return H - level; }
  int64_t width(int64_t level) const { return W + 2 * level; }
  int64_t pixels(int64_t level) const { return N * group * group * height(level) * width(level); }
};

// Numbers of channels for every width of a run, with and without a rest; maps that no tile
// divides, bins that groups do not divide; more RoIs than a block looks at together; more
// taps than a warp keeps, in all warps of a block.
constexpr Case kCases[] = {
    {"plain", 2, 11, 9, 8, 5, 2, 3, 1, 1, 2, false, 5},
    {"tail of channels", 1, 6, 7, 5, 4, 2, 2, 1, 1, 2, true, 4},
    {"groups and classes", 1, 9, 10, 24, 3, 5, 3, 2, 3, 3, true, 6},
    {"many channels", 1, 5, 4, 264, 2, 1, 2, 1, 3, 1, true, 3},
    {"many RoIs", 1, 9, 8, 4, 300, 1, 1, 1, 1, 2, false, 4},
    {"adaptive, many taps", 1, 20, 75, 2, 8, 1, 1, 1, 1, 0, true, 80},
    {"levels", 2, 9, 8, 6, 23, 2, 3, 1, 1, 2, false, 6, 3},
    {"levels, groups and classes", 2, 10, 7, 8, 9, 2, 2, 2, 2, 0, true, 7, 2},
};

template <typename T>
struct Inputs {
  using A = Arithmetic<T>;
  RoiPoolOperands op{};
  std::vector<RoiMap> maps;
  std::vector<std::vector<T>> x;
  std::vector<T> g;
  std::vector<A> boxes, shift, mask;
  std::vector<int32_t> levels, sizes;

  Inputs(const Case& c, unsigned seed) {
    op.N = c.N, op.L = c.levels, op.C = c.C, op.B = c.B, op.h = c.h, op.w = c.w;
    op.group_h = op.group_w = c.group;
    op.classes = c.classes, op.samples = c.samples, op.sampling = RoiSampling::kGrid;
    Random random(seed);
    for (int64_t l = 0; l < c.levels; ++l) {
      x.push_back(to_elements<T>(random.normal<double>(c.pixels(l) * c.C)));
      maps.push_back({c.height(l), c.width(l), x[l].data(), nullptr});
    }
    g = to_elements<T>(random.normal<double>(c.N * c.B * c.h * c.w * c.C));
    shift = random.normal<A>(c.N * c.B * c.h * c.w * c.classes * 2);
    mask = random.normal<A>(c.N * c.B * c.h * c.w);
    boxes = random.normal<A>(c.N * c.B * 4, 2);
    for (size_t i = 0; i < boxes.size(); i += 4) {
      boxes[i] += c.H / 2.0 - c.size / 2, boxes[i + 1] += c.W / 2.0 - c.size / 2;
      boxes[i + 2] += c.size, boxes[i + 3] += c.size;
    }
    for (int64_t roi = 0; roi < c.N * c.B; ++roi) {
      levels.push_back(static_cast<int32_t>(roi % c.levels));
    }
    levels.back() = static_cast<int32_t>(c.levels);  // No map's.
    for (int64_t n = 0; n < c.N; ++n) {
      for (int64_t l = 0; l < c.levels; ++l) {
        sizes.push_back(static_cast<int32_t>(c.height(l) - n));
        sizes.push_back(static_cast<int32_t>(c.width(l)));
      }
    }
    op.maps = maps.data(), op.boxes = boxes.data(), op.levels = levels.data();
    op.map_sizes = sizes.data(), op.mask = mask.data();
    op.shift = c.shifted ? shift.data() : nullptr;
  }
};

double dot(const Doubles& a, const Doubles& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

// The value of one map channel at (y, x), as RoIAlign reads it.
template <typename Pixel>
double sample(double y, double x, int64_t height, int64_t width, Pixel&& pixel) {
  if (y < -1 || y > height || x < -1 || x > width) return 0;
  y = std::fmin(std::fmax(y, 0), height - 1), x = std::fmin(std::fmax(x, 0), width - 1);
  const int64_t y0 = static_cast<int64_t>(y), x0 = static_cast<int64_t>(x);
  const int64_t y1 = y0 + 1 < height ? y0 + 1 : y0, x1 = x0 + 1 < width ? x0 + 1 : x0;
  const double ly = y - y0, lx = x - x0;
  return (1 - ly) * ((1 - lx) * pixel(y0, x0) + lx * pixel(y0, x1)) +
         ly * ((1 - lx) * pixel(y1, x0) + lx * pixel(y1, x1));
}

template <typename T>
Doubles expected(const Case& c, const Inputs<T>& in) {
  std::vector<Doubles> x;
  for (const auto& map : in.x) x.push_back(to_doubles(map));
  Doubles y;
  for (int64_t bin = 0; bin < c.N * c.B * c.h * c.w; ++bin) {
    const int64_t roi = bin / c.w / c.h, n = roi / c.B, i = bin / c.w % c.h, j = bin % c.w;
    const int64_t group = i * c.group / c.h * c.group + j * c.group / c.w;
    const bool known = in.levels[roi] < c.levels;
    const int64_t level = known ? in.levels[roi] : 0, at = 2 * (n * c.levels + level);
    for (int64_t channel = 0; channel < c.C; ++channel) {
      const int64_t k = bin * c.classes + channel / (c.C / c.classes);
      const auto* box = in.boxes.data() + 4 * roi;
      const double height = box[2] / c.h, width = box[3] / c.w;
      const double top = box[0] + i * height + (c.shifted ? in.shift[2 * k] : 0);
      const double left = box[1] + j * width + (c.shifted ? in.shift[2 * k + 1] : 0);
      const int64_t down = c.samples ? c.samples : static_cast<int64_t>(std::ceil(height));
      const int64_t along = c.samples ? c.samples : static_cast<int64_t>(std::ceil(width));
      double sum = 0;
      for (int64_t s = 0; s < down * along && known; ++s) {
        sum += sample(top + (s / along + 0.5) * height / down,
                      left + (s % along + 0.5) * width / along, in.sizes[at], in.sizes[at + 1],
                      [&](int64_t row, int64_t column) {
                        const int64_t plane = n * c.group * c.group + group;
                        const int64_t line = plane * c.height(level) + row;
                        return x[level][(line * c.width(level) + column) * c.C + channel];
                      });
      }
      y.push_back(down > 0 && along > 0 ? in.mask[bin] * sum / (down * along) : 0);
    }
  }
  return y;
}

template <typename T>
void run(const Case& c, ElementType type, double tolerance) {
  using A = Arithmetic<T>;
  Inputs<T> in(c, 3);
  in.op.type = type;
  std::vector<std::vector<T>> first;
  for (const char* order : kOrders) {
    take_turns(order);
    const std::string name = std::string(c.name) + ", " + order;
    auto y = undefined<T>(in.g.size());
    std::vector<std::vector<T>> dx;
    for (int64_t l = 0; l < c.levels; ++l) {
      dx.push_back(undefined<T>(in.x[l].size()));
      in.maps[l].gradient = dx[l].data();
    }
    auto dshift = undefined<A>(c.shifted ? in.shift.size() : 0);
    auto dmask = undefined<A>(in.mask.size());
    auto reach = undefined<int32_t>(c.N * c.B * 4);
    const auto done = [&](simt::Failure failure) { check(!failure, failure ? failure : ""); };
    done(cuda::pool_rois(in.op, y.data(), nullptr));
    done(cuda::roi_bin_gradient(in.op, in.g.data(), c.shifted ? dshift.data() : nullptr,
                                dmask.data(), nullptr));
    done(cuda::roi_map_gradient(in.op, in.g.data(), reach.data(), nullptr));
    check_close(to_doubles(y), expected(c, in), tolerance, name + ", y");
    const double product = dot(to_doubles(y), to_doubles(in.g));
    const double scale =
        std::sqrt(dot(to_doubles(y), to_doubles(y)) * dot(to_doubles(in.g), to_doubles(in.g)));
    double along_maps = 0;
    for (int64_t l = 0; l < c.levels; ++l) {
      along_maps += dot(to_doubles(in.x[l]), to_doubles(dx[l]));
    }
    check(std::fabs(along_maps - product) <= tolerance * scale, name + ", gradient of the maps");
    check(std::fabs(dot(to_doubles(in.mask), to_doubles(dmask)) - product) <= tolerance * scale,
          name + ", gradient of the mask");
    for (A v : dshift) check(std::isfinite(v), name + ", gradient of the shift");
    if (first.empty()) first = dx;
    for (int64_t l = 0; l < c.levels; ++l) {
      check(std::memcmp(first[l].data(), dx[l].data(), dx[l].size() * sizeof(T)) == 0,
            name + ", same bits");
    }
  }
}

}  // namespace

int main() {
  for (const Case& c : kCases) {
    run<float>(c, ElementType::kF32, 1e-5);
    if (!kEverything) continue;
    run<double>(c, ElementType::kF64, 1e-13);
    run<Bf16>(c, ElementType::kBF16, 1e-2);
    run<F16>(c, ElementType::kF16, 2e-3);
  }
  return failures() > 0;
}
