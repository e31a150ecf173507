#pragma once

#include <cstddef>
#include <optional>

namespace kernelgrowth {

using index_t = std::ptrdiff_t;

// A matrix whose rows are contiguous; row_stride counts elements.
template <class T>
struct MatrixView {
  T* data = nullptr;
  index_t rows = 0;
  index_t cols = 0;
  index_t row_stride = 0;

  T* row(index_t i) const { return data + i * row_stride; }
};

// Vectors at positions, of any strides (counted in elements).
template <class T>
struct PositionsView {
  const T* data = nullptr;
  index_t length = 0;
  index_t example_stride = 0;
  index_t output_stride = 0;
  index_t position_stride = 0;
  index_t element_stride = 1;

  const T* at(index_t example, index_t output) const {
    return data + example * example_stride + output * output_stride;
  }
};

// A weight's gradients that are written out only while they are packed: the vector of (n, c) is, row by row, the matrix
// sum_t backprops[n, c, t] activations[n, t]', with a last column sum_t backprops[n, c, t] for a bias.
template <class T>
struct OuterProductView {
  PositionsView<T> activations;
  PositionsView<T> backprops;
  index_t positions = 1;
  bool bias = false;
  index_t folded = 1;  // outputs whose matrices follow one another in one vector

  index_t columns() const { return activations.length + (bias ? 1 : 0); }
  index_t length() const { return folded * backprops.length * columns(); }
};

// Vectors of one factor of the kernel, one per (example, output) and position, of any strides (counted in elements).
// Row r of the factor is example r / outputs, output r % outputs: the library's example-major row order.
template <class T>
struct FactorView {
  const T* data = nullptr;
  index_t examples = 0;
  index_t outputs = 1;
  index_t length = 0;
  index_t example_stride = 0;
  index_t output_stride = 0;
  index_t element_stride = 1;
  std::optional<OuterProductView<T>> outer_product{};  // in place of data
  const T* weights = nullptr;                          // if given, `length` numbers that multiply every vector
  index_t positions = 1;
  index_t position_stride = 0;

  index_t rows() const { return examples * outputs; }
};

}  // namespace kernelgrowth
