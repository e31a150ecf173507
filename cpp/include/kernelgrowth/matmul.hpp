#pragma once

#include <cstddef>
#include <string>

#include "kernelgrowth/runtime.hpp"
#include "kernelgrowth/view.hpp"

namespace kernelgrowth {

// Gradients of one weight for a probe set, G_nc = sum_t d_nct a_nt' (units x inputs), never written out. Strides count
// elements, in the order of the dimensions.
template <class T>
struct OuterProducts {
  const T* activations = nullptr;  // (examples, positions, inputs)
  const T* backprops = nullptr;    // (examples, outputs, positions, units)
  index_t examples = 0, outputs = 1, positions = 1, inputs = 0, units = 0;
  index_t activation_strides[3] = {};
  index_t backprop_strides[4] = {};
};

// One block of the kernel, scale * J_left diag(weights) J_right'.
template <class T>
struct ProductTerm {
  OuterProducts<T> left, right;
  bool bias = false;                // the gradients of a bias, sum_t d_nct, belong to the block too
  bool fold = false;                // outputs are traced over: a row is an example, not an (example, output)
  const T* weights = nullptr;       // (units, inputs), contiguous; null: all one
  const T* bias_weights = nullptr;  // (units)
  double scale = 1;

  index_t rows(const OuterProducts<T>& side) const { return side.examples * (fold ? 1 : side.outputs); }
};

// Vectors side by side, one a column, of any strides.
template <class T>
struct VectorsView {
  const T* data = nullptr;
  index_t rows = 0, count = 0, row_stride = 0, column_stride = 0;
};

struct ProductOptions {
  bool accumulate = false;    // add to `out` instead of overwriting it
  std::size_t workspace = 0;  // bytes; 0: as many as help
  int threads = 0;            // 0: default_threads()
  std::string isa;            // empty: active_isa()
  Poll poll;
};

// out = (or +=) the block's kernel times v, without the kernel and linear in the examples: with w_nt = sum_c v_nc
// d_nct, first g = sum_nt w_nt a_nt', then out_nc = scale * sum_t d_nct . (g o weights) a_nt. Short sums are made in T,
// longer ones in double. A column of `out` has the same bits whatever the threads, the workspace and the other vectors.
template <class T>
void matmul(const ProductTerm<T>& term, const VectorsView<T>& v, MatrixView<double> out, const ProductOptions& options);

struct ProductWorkspace {
  std::size_t minimum;  // below this matmul() throws WorkspaceTooSmall
  std::size_t full;     // more than this is not used
};

// What matmul() with the same arguments would take for so many vectors; data may be null.
template <class T>
ProductWorkspace matmul_workspace(const ProductTerm<T>& term, index_t vectors, const ProductOptions& options);

}  // namespace kernelgrowth
