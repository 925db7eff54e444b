// The CUDA kernels of deform_conv2d, compiled for the host, against plain loops in double.
// Buffers are as long as they must be and hold NaN before a launch, for the sanitizers.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>
#include <vector>

#include "check.h"
#include "deform_conv/cuda/kernels.h"
#include "simt/element.h"

namespace {

using namespace xla_ops;
using cuda::Arithmetic;
using Doubles = std::vector<double>;

struct Case {
  const char* name;
  int64_t N, H, W, C, P, Q, R, S, G, groups;
  bool modulated;
  int64_t stride, pad, dilation, first_row;
  double scale;  // of the offsets
};

// Numbers of channels for every width of a run and every number of lanes; outputs that no
// patch divides; chunks that begin inside the output.
constexpr Case kCases[] = {
    {"plain", 2, 9, 11, 8, 9, 11, 3, 3, 1, 1, true, 1, 1, 1, 0, 1.5},
    {"tail of channels", 1, 5, 6, 5, 5, 6, 3, 3, 1, 1, true, 1, 1, 1, 0, 1.5},
    {"groups", 2, 7, 6, 48, 4, 5, 3, 2, 3, 2, true, 2, 1, 2, 0, 2.0},
    {"no mask, chunk", 1, 12, 10, 16, 3, 10, 3, 3, 2, 1, false, 1, 1, 1, 7, 1.0},
    {"runs of taps", 2, 9, 11, 72, 16, 13, 3, 3, 1, 1, true, 1, 1, 1, 0, 1.5},
    {"many channels", 1, 4, 5, 160, 4, 5, 1, 1, 1, 1, true, 1, 0, 1, 0, 1.0},
    {"everything on few pixels", 1, 2, 2, 12, 9, 9, 3, 3, 1, 1, true, 1, 1, 1, 0, 0.5},
    {"no output", 1, 4, 4, 64, 0, 4, 3, 3, 1, 1, true, 1, 0, 1, 0, 1.0},
    {"far away", 1, 6, 6, 8, 6, 6, 3, 3, 1, 1, true, 1, 1, 1, 0, 1e20},
};

// Numbers of pixels: narrow, joint.
constexpr cuda::DeformConvList kLists[] = {
    {true, true}, {true, false}, {false, true}, {false, false}};

template <typename T>
struct Inputs {
  using A = Arithmetic<T>;
  // As columns_gradient_type() has it.
  using D = std::conditional_t<std::is_same_v<T, F16>, float, T>;
  DeformConvGeometry g{};
  std::vector<T> x;
  std::vector<int32_t> first_row;
  std::vector<A> offset, mask;
  std::vector<D> dcolumns;

  Inputs(const Case& c, unsigned seed) {
    g.N = c.N, g.H = c.H, g.W = c.W, g.C = c.C, g.P = c.P, g.Q = c.Q;
    g.R = c.R, g.S = c.S, g.G = c.G, g.groups = c.groups, g.kernels = 1;
    g.modulated = c.modulated;
    g.stride_h = g.stride_w = c.stride;
    g.pad_top = g.pad_left = c.pad;
    g.dilation_h = g.dilation_w = c.dilation;
    Random random(seed);
    for (double v : random.normal<double>(g.N * g.H * g.W * g.C)) {
      x.push_back(cuda::from_real<T>(static_cast<A>(v)));
    }
    first_row.assign(g.N, static_cast<int32_t>(c.first_row));
    offset = random.normal<A>(samples() * 2, c.scale);
    if (c.modulated) mask = random.normal<A>(samples());
    for (A v : random.normal<A>(columns())) dcolumns.push_back(cuda::from_real<D>(v));
  }

  int64_t samples() const { return g.N * g.P * g.Q * g.G * g.taps(); }
  int64_t columns() const { return g.N * g.P * g.Q * g.taps() * g.C; }

  cuda::DeformConvOperands operands(ElementType type) const {
    return {
        g, type, x.data(), first_row.data(), offset.data(), mask.empty() ? nullptr : mask.data()};
  }
};

struct Expected {
  Doubles columns, doffset, dmask, dx;
};

// Follows the definition, one channel of one sample at a time.
template <typename T>
Expected expect(const Inputs<T>& in) {
  const DeformConvGeometry& g = in.g;
  Expected out;
  out.columns.assign(in.columns(), 0);
  out.doffset.assign(in.samples() * 2, 0);
  out.dmask.assign(in.mask.size(), 0);
  out.dx.assign(in.x.size(), 0);
  const int64_t taps = g.taps(), width = g.C / g.groups;
  for (int64_t place = 0; place < g.N * g.P * g.Q; ++place) {
    const int64_t n = place / (g.P * g.Q), p = place / g.Q % g.P, q = place % g.Q;
    for (int64_t t = 0; t < taps; ++t) {
      for (int64_t c = 0; c < g.C; ++c) {
        const int64_t sample = (place * g.G + c / (g.C / g.G)) * taps + t;
        // In the kernels' precision: rounding may move a place to the next cell.
        using A = Arithmetic<T>;
        const A y = A((in.first_row[n] + p) * g.stride_h - g.pad_top + t / g.S * g.dilation_h) +
                    in.offset[2 * sample];
        const A x =
            A(q * g.stride_w - g.pad_left + t % g.S * g.dilation_w) + in.offset[2 * sample + 1];
        const int64_t column = ((place * g.groups + c / width) * taps + t) * width + c % width;
        const double m = in.mask.empty() ? 1 : in.mask[sample];
        const double d = cuda::to_real(in.dcolumns[column]);
        if (!(y > -1 && y < g.H && x > -1 && x < g.W)) continue;
        const int64_t y0 = static_cast<int64_t>(std::floor(y));
        const int64_t x0 = static_cast<int64_t>(std::floor(x));
        double value = 0, slope_y = 0, slope_x = 0;
        for (int64_t i = y0; i <= y0 + 1; ++i) {
          for (int64_t j = x0; j <= x0 + 1; ++j) {
            if (i < 0 || i >= g.H || j < 0 || j >= g.W) continue;
            const int64_t pixel = ((n * g.H + i) * g.W + j) * g.C + c;
            const double wy = 1 - std::fabs(double(y) - i), wx = 1 - std::fabs(double(x) - j);
            const double v = cuda::to_real(in.x[pixel]);
            value += wy * wx * v;
            slope_y += (i == y0 ? -1 : 1) * wx * v;
            slope_x += (j == x0 ? -1 : 1) * wy * v;
            out.dx[pixel] += m * wy * wx * d;
          }
        }
        out.columns[column] = m * value;
        out.doffset[2 * sample] += m * slope_y * d;
        out.doffset[2 * sample + 1] += m * slope_x * d;
        if (!in.mask.empty()) out.dmask[sample] += value * d;
      }
    }
  }
  return out;
}

// A result: NaN until it is written, converted for comparisons.
template <typename T>
struct Buffer {
  std::vector<T> data;
  explicit Buffer(size_t count) : data(count) {
    if (count > 0) std::memset(data.data(), 0xff, count * sizeof(T));
  }
  size_t size() const { return data.size(); }
  double operator[](size_t i) const { return cuda::to_real(data[i]); }
};

// As elements of X, whose type is `type`.
template <typename X, typename D>
Buffer<X> sorted_gradient(const cuda::DeformConvOperands& op, const std::vector<D>& dcolumns,
                          const cuda::DeformConvList& list, ElementType type,
                          const std::string& name) {
  const DeformConvGeometry& g = op.geometry;
  const int64_t rows = g.N * g.G, length = g.P * g.Q * g.taps() * 4;
  std::vector<uint16_t> short_pixel(list.narrow ? rows * length : 0);
  std::vector<uint32_t> long_pixel(list.narrow ? 0 : rows * length);
  void* pixel = list.narrow ? static_cast<void*>(short_pixel.data()) : long_pixel.data();
  check(!cuda::list_corners(op, list, pixel, nullptr), name + " list_corners");
  // XLA's part.
  std::vector<int32_t> number(rows * length);
  for (int64_t i = 0; i < rows * length; ++i) number[i] = static_cast<int32_t>(i % length);
  auto sort = [&](auto& keys, int64_t first, int64_t count) {
    std::vector<std::pair<uint32_t, int32_t>> pairs;
    for (int64_t i = first; i < first + count; ++i) pairs.push_back({keys[i], number[i]});
    std::stable_sort(pairs.begin(), pairs.end(),
                     [](const auto& a, const auto& b) { return a.first < b.first; });
    for (int64_t i = 0; i < count; ++i) {
      keys[first + i] = static_cast<std::decay_t<decltype(keys[0])>>(pairs[i].first);
      number[first + i] = pairs[i].second;
    }
  };
  const int64_t together = list.joint ? rows * length : length;
  for (int64_t first = 0; first < rows * length; first += together) {
    list.narrow ? sort(short_pixel, first, together) : sort(long_pixel, first, together);
  }
  std::vector<int32_t> starts(rows * (g.H * g.W + 1));
  Buffer<X> dx(g.N * g.H * g.W * g.C);
  cuda::DeformConvOperands places = op;
  places.x = nullptr;
  places.type = cuda::columns_gradient_type(op.type);
  const simt::Failure failure =
      cuda::gather_input_gradient(places, dcolumns.data(), {list, pixel, number.data()},
                                  starts.data(), type, dx.data.data(), nullptr);
  check(!failure, name + " gather_input_gradient: " + (failure ? failure : ""));
  return dx;
}

template <typename T>
void check_case(const Case& c, ElementType type, double tolerance, double exact) {
  using A = Arithmetic<T>;
  const Inputs<T> in(c, 3);
  const Expected expected = expect(in);
  const cuda::DeformConvOperands op = in.operands(type);
  std::vector<A> first;
  for (const char* order : kOrders) {
    take_turns(order);
    const std::string name = std::string(c.name) + ", " + order + ":";
    {
      Buffer<T> columns(in.columns());
      const simt::Failure failure = cuda::sample_columns(op, columns.data.data(), nullptr);
      check(!failure, name + " sample_columns: " + (failure ? failure : ""));
      check_close(columns, expected.columns, tolerance, name + " columns");
    }
    for (bool atomic : {false, true}) {
      Buffer<T> columns(in.columns());
      Buffer<A> doffset(in.offset.size()), dmask(in.mask.size()), dx(in.x.size());
      cuda::DeformConvGradients grad{};
      grad.dcolumns = in.dcolumns.data();
      grad.columns = columns.data.data();
      grad.doffset = doffset.data.data();
      grad.dmask = c.modulated ? dmask.data.data() : nullptr;
      grad.dx = atomic ? dx.data.data() : nullptr;
      const simt::Failure failure = cuda::visit_samples(op, grad, nullptr);
      check(!failure, name + " visit_samples: " + (failure ? failure : ""));
      check_close(columns, expected.columns, tolerance, name + " columns again");
      check_close(doffset, expected.doffset, exact, name + " doffset");
      check_close(dmask, expected.dmask, exact, name + " dmask");
      if (atomic) check_close(dx, expected.dx, exact, name + " dx by atomics");
    }
    for (const cuda::DeformConvList list : kLists) {
      if (list.narrow && !kEverything) continue;
      const ElementType sums = std::is_same_v<A, double> ? ElementType::kF64 : ElementType::kF32;
      const Buffer<A> dx = sorted_gradient<A>(op, in.dcolumns, list, sums, name);
      check_close(dx, expected.dx, exact, name + " dx sorted");
      if (first.empty()) first = dx.data;
      check(std::memcmp(first.data(), dx.data.data(), first.size() * sizeof(A)) == 0,
            name + " the same bits in any order of threads");
      if (std::is_same_v<T, A>) continue;
      const Buffer<T> rounded = sorted_gradient<T>(op, in.dcolumns, list, type, name);
      check_close(rounded, expected.dx, tolerance, name + " dx sorted, in the type of x");
    }
  }
}

}  // namespace

int main() {
  for (const Case& c : kCases) {
    check_case<float>(c, ElementType::kF32, 1e-6, 2e-6);
    if (!kEverything) continue;
    check_case<double>(c, ElementType::kF64, 1e-14, 1e-14);
    check_case<Bf16>(c, ElementType::kBF16, 5e-3, 2e-6);
    check_case<F16>(c, ElementType::kF16, 1e-3, 2e-6);
  }
  return failures() ? 1 : 0;
}
