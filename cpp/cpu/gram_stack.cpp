#include <algorithm>
#include <vector>

#include "kernelgrowth/error.hpp"
#include "kernelgrowth/gram.hpp"

namespace kernelgrowth {
namespace {

// The examples [first, first + count) of a factor.
template <class T>
FactorView<T> part(FactorView<T> factor, index_t first, index_t count) {
  if (factor.data != nullptr) factor.data += first * factor.example_stride;
  if (factor.outer_product) {
    factor.outer_product->activations.data += first * factor.outer_product->activations.example_stride;
    factor.outer_product->backprops.data += first * factor.outer_product->backprops.example_stride;
  }
  factor.examples = count;
  return factor;
}

template <class T>
FactorPair<T> part(const FactorPair<T>& pair, index_t index, index_t stack) {
  FactorPair<T> result = pair;
  for (FactorView<T>* side : {&result.left, &result.right}) {
    *side = part(*side, index * (side->examples / stack), side->examples / stack);
  }
  return result;
}

template <class T>
void check_divisible(const FactorPair<T>& pair, index_t stack) {
  if (pair.left.examples % stack != 0 || pair.right.examples % stack != 0) {
    throw InvalidArgument("gram_stack: the examples of a factor do not divide into equal parts");
  }
}

}  // namespace

template <class T>
void gram_stack(std::span<const Term<T>> terms, MatrixView<T> out, index_t stack, index_t stack_stride,
                const GramOptions& options) {
  if (stack < 1) throw InvalidArgument("gram_stack: there must be at least one part");
  for (const Term<T>& term : terms) {
    check_divisible(term.first, stack);
    if (term.second) check_divisible(*term.second, stack);
  }
  const int threads = options.threads > 0 ? options.threads : default_threads();
  const bool at_once = stack >= 2 * threads;
  GramOptions each = options;
  if (at_once) {
    each.threads = 1;
    each.workspace = options.workspace / static_cast<std::size_t>(threads);
    each.poll = {};
  }
  std::vector<std::vector<Term<T>>> parts(static_cast<std::size_t>(at_once ? threads : 1));
  const auto body = [&](index_t index, int worker) {
    std::vector<Term<T>>& mine = parts[static_cast<std::size_t>(worker)];
    mine.assign(terms.begin(), terms.end());
    for (Term<T>& term : mine) {
      term.first = part(term.first, index, stack);
      if (term.second) term.second = part(*term.second, index, stack);
    }
    gram<T>(mine, {out.data + index * stack_stride, out.rows, out.cols, out.row_stride}, each);
  };
  if (at_once) {
    parallel_for(stack, threads, body, options.poll);
  } else {
    for (index_t index = 0; index < stack; ++index) body(index, 0);
  }
}

template void gram_stack(std::span<const Term<float>>, MatrixView<float>, index_t, index_t, const GramOptions&);
template void gram_stack(std::span<const Term<double>>, MatrixView<double>, index_t, index_t, const GramOptions&);

}  // namespace kernelgrowth
