#pragma once

#include <cmath>

#include "strided.hpp"

namespace kernelgrowth::testing {

// A sum, and the sum of the magnitudes that its rounding is relative to.
struct Sum {
  double value = 0, size = 0;

  void add(double x) {
    value += x;
    size += std::abs(x);
  }
  bool matches(double other) const { return std::abs(other - value) <= 1e-13 * size; }
};

template <class T>
MatrixView<const T> matrix(const StridedArray<T>& array) {
  return {array.data(), array.layout.shape[0], array.layout.shape[1], array.stride(0)};
}

template <class T>
struct Exact {
  Sum squares, trace;
  std::vector<Sum> rows, columns;

  explicit Exact(const StridedArray<T>& kernel)
      : rows(at(kernel.layout.shape[0])), columns(at(kernel.layout.shape[1])) {
    for (std::size_t i = 0; i < rows.size(); ++i) {
      for (std::size_t j = 0; j < columns.size(); ++j) {
        const double value = kernel.values[i * columns.size() + j];
        squares.add(value * value);
        rows[i].add(value);
        columns[j].add(value);
        if (i == j) trace.add(value);
      }
    }
  }
};

inline void check_sums(const std::vector<Sum>& exact, const std::vector<double>& values) {
  CHECK(values.size() == exact.size());
  for (std::size_t i = 0; i < values.size(); ++i) CHECK(exact[i].matches(values[i]));
}

}  // namespace kernelgrowth::testing
