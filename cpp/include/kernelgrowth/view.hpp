#pragma once

#include <cstddef>

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

// Vectors of one factor of the kernel, one per (example, output), of any strides (counted in elements).
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

  index_t rows() const { return examples * outputs; }
};

}  // namespace kernelgrowth
