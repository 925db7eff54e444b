// Buffers of the check programs.
#ifndef TESTS_CUDA_ELEMENTS_H_
#define TESTS_CUDA_ELEMENTS_H_

#include <cstring>
#include <vector>

#include "check.h"
#include "simt/element.h"

// For results: NaN, or -1, until they are written.
template <typename V>
std::vector<V> undefined(size_t count) {
  std::vector<V> values(count);
  if (count > 0) std::memset(static_cast<void*>(values.data()), 0xff, count * sizeof(V));
  return values;
}

template <typename T>
std::vector<T> to_elements(const std::vector<double>& values) {
  std::vector<T> result;
  for (double v : values) {
    result.push_back(xla_ops::cuda::from_real<T>(static_cast<xla_ops::cuda::Arithmetic<T>>(v)));
  }
  return result;
}

template <typename T>
std::vector<double> to_doubles(const std::vector<T>& values) {
  std::vector<double> result;
  for (T v : values) result.push_back(xla_ops::cuda::to_real(v));
  return result;
}

#endif  // TESTS_CUDA_ELEMENTS_H_
