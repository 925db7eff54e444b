// The fused forward pass of deform_conv2d, compiled for the host, against plain loops. All
// numbers are small and whole, so that sums are exact and any difference is a bug.
#include <cstring>

#include "check.h"
#include "deform_conv/cuda/kernels.h"
#include "simt/element.h"
#include "simt/simt_matrix.h"

namespace {

using namespace xla_ops;

struct Case {
  const char* name;
  int64_t N, H, W, C, P, Q, K, R, S, G;
  int64_t kernels;  // as many images read each
  int64_t stride, dilation;
};

// Every width of a tile, with and without tails in positions and channels.
constexpr Case kCases[] = {
    {"ragged, two offset groups", 2, 9, 7, 96, 9, 7, 40, 3, 3, 2, 2, 1, 1},
    {"two images read a kernel", 4, 5, 4, 16, 5, 4, 16, 3, 3, 1, 2, 1, 1},
    {"stride", 1, 9, 17, 36, 5, 9, 72, 3, 3, 1, 1, 2, 1},
    {"tails, many taps", 1, 7, 6, 33, 7, 6, 37, 3, 5, 1, 1, 1, 2},
    {"width 256", 2, 57, 64, 16, 57, 64, 264, 1, 1, 1, 1, 1, 1},
    {"width 128", 2, 57, 64, 40, 57, 64, 120, 1, 1, 1, 1, 1, 1},
};

template <typename T>
std::vector<T> whole_numbers(Random& random, int64_t count, double scale) {
  std::vector<T> values;
  for (double v : random.normal<double>(count, scale)) {
    values.push_back(cuda::from_real<T>(static_cast<float>(std::nearbyint(v))));
  }
  return values;
}

template <typename T>
void check_case(const Case& c, ElementType type) {
  DeformConvGeometry g{};
  g.N = c.N, g.H = c.H, g.W = c.W, g.C = c.C, g.P = c.P, g.Q = c.Q, g.K = c.K;
  g.R = c.R, g.S = c.S, g.G = c.G, g.groups = 1, g.kernels = c.kernels;
  g.modulated = true;
  g.stride_h = g.stride_w = c.stride;
  g.pad_top = g.pad_left = 1;
  g.dilation_h = g.dilation_w = c.dilation;
  const int64_t taps = g.taps(), samples = g.N * g.P * g.Q * g.G * taps;
  Random random(1);
  const auto x = whole_numbers<T>(random, g.N * g.H * g.W * g.C, 1);
  const auto kernel = whole_numbers<T>(random, g.kernels * taps * g.C * g.K, 0.5);
  const auto offset = whole_numbers<float>(random, samples * 2, 1.5);
  const auto mask = whole_numbers<float>(random, samples, 0.7);

  std::vector<double> expected;
  for (int64_t place = 0; place < g.N * g.P * g.Q; ++place) {
    const int64_t n = place / (g.P * g.Q), p = place / g.Q % g.P, q = place % g.Q;
    std::vector<double> sum(g.K);
    for (int64_t t = 0; t < taps; ++t) {
      for (int64_t channel = 0; channel < g.C; ++channel) {
        const int64_t sample = (place * g.G + channel / (g.C / g.G)) * taps + t;
        const auto row = static_cast<int64_t>(offset[2 * sample]) + p * g.stride_h - g.pad_top +
                         t / g.S * g.dilation_h;
        const auto column = static_cast<int64_t>(offset[2 * sample + 1]) + q * g.stride_w -
                            g.pad_left + t % g.S * g.dilation_w;
        if (row < 0 || row >= g.H || column < 0 || column >= g.W) continue;
        const double value =
            cuda::to_real(x[((n * g.H + row) * g.W + column) * g.C + channel]) * mask[sample];
        const T* weights =
            kernel.data() + ((n / (g.N / g.kernels) * taps + t) * g.C + channel) * g.K;
        for (int64_t k = 0; k < g.K; ++k) sum[k] += value * cuda::to_real(weights[k]);
      }
    }
    for (double v : sum) {
      expected.push_back(cuda::to_real(cuda::from_real<T>(static_cast<float>(v))));
    }
  }

  const cuda::DeformConvOperands op{g, type, x.data(), nullptr, offset.data(), mask.data()};
  for (const char* order : kOrders) {
    take_turns(order);
    const std::string name =
        std::string(c.name) + ", " + std::to_string(8 * sizeof(T)) + " bits, " + order;
    std::vector<T> y(expected.size());
    std::memset(y.data(), 0xff, y.size() * sizeof(T));
    const simt::Failure failure = cuda::convolve_fused(op, kernel.data(), y.data(), nullptr);
    check(!failure, name + ": " + (failure ? failure : ""));
    std::vector<double> actual;
    for (T v : y) actual.push_back(cuda::to_real(v));
    check_close(actual, expected, 0, name);
  }
}

void check_tf32() {
  const float smallest = 1.0f / 1024;  // Between TF32 numbers around 1.
  check(simt::float_of(simt::to_tf32(1 + 0.49f * smallest)) == 1, "to_tf32 rounds down");
  check(simt::float_of(simt::to_tf32(1 + 0.5f * smallest)) == 1 + smallest, "to_tf32, a tie");
  check(simt::float_of(simt::to_tf32(-1 - 0.5f * smallest)) == -1 - smallest, "to_tf32, a tie");
  check(std::isinf(simt::float_of(simt::to_tf32(INFINITY))), "to_tf32 of infinity");
  check(std::isnan(simt::float_of(simt::to_tf32(NAN))), "to_tf32 of NaN");
}

}  // namespace

int main() {
  check_tf32();
  for (const Case& c : kCases) {
    // Wide tiles need many blocks; the code is the same.
    if (!kEverything && c.K > 100) continue;
    check_case<float>(c, ElementType::kF32);
    check_case<Bf16>(c, ElementType::kBF16);
    if (kEverything) check_case<F16>(c, ElementType::kF16);
  }
  return failures() ? 1 : 0;
}
