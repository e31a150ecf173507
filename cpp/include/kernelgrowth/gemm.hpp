#pragma once

#include <string>

#include "kernelgrowth/runtime.hpp"
#include "kernelgrowth/view.hpp"

namespace kernelgrowth {

// A matrix of any strides (counted in elements).
template <class T>
struct StridedMatrix {
  const T* data = nullptr;
  index_t rows = 0, cols = 0, row_stride = 0, col_stride = 1;

  const T* at(index_t i, index_t j) const { return data + i * row_stride + j * col_stride; }
};

struct GemmOptions {
  int threads = 0;  // 0: default_threads()
  std::string isa;  // empty: active_isa()
  Poll poll;
  bool accumulate = false;  // add to `out` instead of overwriting it
};

// out = (or +=) a b. Sums are made in T, in runs of at most 256 products. An entry's bits depend on its row of `a` and
// its column of `b` alone: not on the threads, nor on what stands beside it.
template <class T>
void gemm(const StridedMatrix<T>& a, const StridedMatrix<T>& b, MatrixView<T> out, const GemmOptions& options);

}  // namespace kernelgrowth
