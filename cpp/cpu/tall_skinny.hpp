// Blocks of a few long vectors, by rows: their inner products. What else an iteration does to them is gemm.
#pragma once

#include <string>

#include "kernelgrowth/runtime.hpp"
#include "kernelgrowth/view.hpp"

namespace kernelgrowth::cpu {

struct TallOptions {
  int threads = 0;  // 0: default_threads()
  std::string isa;  // empty: active_isa()
  Poll poll;
};

// out (a.cols x b.cols, by rows) = a' b. Runs of 32 products are summed in T, their sums in double. The bits depend on
// the shapes alone, not on the threads.
template <class T>
void tall_products(const MatrixView<const T>& a, const MatrixView<const T>& b, double* out, const TallOptions& options);

}  // namespace kernelgrowth::cpu
