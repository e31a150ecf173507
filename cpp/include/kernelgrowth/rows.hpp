#pragma once

#include <string>

#include "kernelgrowth/runtime.hpp"
#include "kernelgrowth/view.hpp"

namespace kernelgrowth {

struct RowsOptions {
  int threads = 0;  // 0: default_threads()
  std::string isa;  // empty: active_isa()
  Poll poll;
};

// norms[r] = |row r of the factor|^2, summed in double; the gradients of an outer product are written out in cache.
template <class T>
void squared_norms(const FactorView<T>& factor, double* norms, const RowsOptions& options);

}  // namespace kernelgrowth
