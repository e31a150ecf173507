#pragma once

#include <cstddef>
#include <optional>
#include <span>
#include <string>

#include "kernelgrowth/runtime.hpp"
#include "kernelgrowth/view.hpp"

namespace kernelgrowth {

// The two sides of a matrix of inner products <left_i, right_j>. A symmetric Gram reads left only.
template <class T>
struct FactorPair {
  FactorView<T> left;
  FactorView<T> right;
};

// One term of the kernel,  scale * (<first> + offset) o <second>,  o the entrywise product;
// without a second factor  scale * (<first> + offset).
// A factor with one output is shared by all output pairs of an example pair. Factors with positions are summed over all
// pairs of them, sum_tu (<first_t, first_u> + offset) <second_t, second_u>: such terms have two factors, and all terms
// of a call the same positions.
template <class T>
struct Term {
  FactorPair<T> first;
  std::optional<FactorPair<T>> second;
  T offset = 0;
  T scale = 1;
};

struct GramOptions {
  bool symmetric = true;  // left is right: compute the upper triangle, mirror it exactly
  // Several kernels at once, one for each output, `kernel_stride` elements apart from `out` on: kernel c takes output c
  // of the factors that have outputs, and all share the products of those that have one.
  index_t kernels = 1;
  index_t kernel_stride = 0;
  bool bf16 = false;          // round the vectors to bfloat16, products exact, sums in float; float and AVX-512 only
  bool accumulate = false;    // add to `out` instead of overwriting it
  std::size_t workspace = 0;  // bytes for packed factors and scratch; 0: as many as help
  int threads = 0;            // 0: default_threads()
  std::string isa;            // empty: active_isa()
  Poll poll;
};

// out = (or +=) the sum of all terms, added in their order: terms divided among several calls give the same bits. Each
// entry is the same sequence of operations whatever the number of threads, the workspace, and the entry's place, so the
// bits are the same too.
template <class T>
void gram(std::span<const Term<T>> terms, MatrixView<T> out, const GramOptions& options);

// A kernel of each of `stack` parts, as many examples after examples of all factors, written `stack_stride` elements
// apart: with the bits that gram() gives each alone. Several are computed at once, each by one thread, where there are
// enough. Of `options`, workspace is that of all threads together.
template <class T>
void gram_stack(std::span<const Term<T>> terms, MatrixView<T> out, index_t stack, index_t stack_stride,
                const GramOptions& options);

struct GramWorkspace {
  std::size_t minimum;  // below this gram() throws WorkspaceTooSmall
  std::size_t full;     // more than this is not used
};

// What gram() with the same arguments would take; `out` is not touched, its data may be null.
template <class T>
GramWorkspace gram_workspace(std::span<const Term<T>> terms, MatrixView<T> out, const GramOptions& options);

}  // namespace kernelgrowth
