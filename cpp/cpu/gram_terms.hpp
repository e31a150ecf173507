// What a Gram is asked for: its terms checked, and divided among kernels that are computed at once.
#pragma once

#include <algorithm>
#include <span>
#include <string>
#include <vector>

#include "cpu/rows.hpp"
#include "kernelgrowth/error.hpp"
#include "kernelgrowth/gram.hpp"

namespace kernelgrowth::cpu {

// A term's factors: of each kernel, or one that all share. No second ones where the term has none.
template <class Factor>
struct Factors {
  std::vector<Factor> first, second;
};

template <class Factor>
const Factor& of_kernel(const std::vector<Factor>& factors, index_t kernel) {
  return factors.size() > 1 ? factors[static_cast<std::size_t>(kernel)] : factors.front();
}

template <class T>
FactorView<T> output_of(FactorView<T> factor, index_t output) {
  factor.outputs = 1;
  factor.data += output * factor.output_stride;
  if (factor.outer_product)
    factor.outer_product->backprops.data += output * factor.outer_product->backprops.output_stride;
  return factor;
}

template <class T>
std::vector<FactorPair<T>> divide(const FactorPair<T>& pair, index_t kernels, bool symmetric) {
  if (kernels == 1 || pair.left.outputs == 1) return {pair};
  std::vector<FactorPair<T>> parts;
  for (index_t c = 0; c < kernels; ++c) {
    parts.push_back({output_of(pair.left, c), symmetric ? FactorView<T>{} : output_of(pair.right, c)});
  }
  return parts;
}

template <class T>
void validate(std::span<const Term<T>> terms, const MatrixView<T>& out, const GramOptions& options, index_t& outputs) {
  const bool symmetric = options.symmetric;
  outputs = 1;
  auto shape = [&](const FactorView<T>& f, index_t rows, const char* side) {
    if (const char* what = flaw(f)) throw InvalidArgument(std::string("gram: a ") + side + " factor " + what);
    if (f.positions != (side[0] == 'l' ? terms.front().first.left : terms.front().first.right).positions) {
      throw InvalidArgument(std::string("gram: the positions of a ") + side + " factor do not fit the other factors");
    }
    const bool outputs_fit =
        options.kernels > 1 ? f.outputs == options.kernels && f.examples == rows : f.rows() == rows;
    if (rows % f.examples != 0 || (f.outputs != 1 && !outputs_fit)) {
      throw InvalidArgument(std::string("gram: a ") + side + " factor of " + std::to_string(f.examples) +
                            " examples and " + std::to_string(f.outputs) + " outputs does not fit " +
                            std::to_string(rows) + " rows");
    }
    outputs = std::max(outputs, rows / f.examples);
  };
  auto pair = [&](const FactorPair<T>& p) {
    shape(p.left, out.rows, "left");
    if (symmetric) return;
    shape(p.right, out.cols, "right");
    if (p.right.length != p.left.length || p.right.outputs != p.left.outputs ||
        out.rows / p.left.examples != out.cols / p.right.examples) {
      throw InvalidArgument("gram: left and right factors differ in outputs or length");
    }
  };
  if (terms.empty()) throw InvalidArgument("gram: no terms");
  if (options.kernels < 1) throw InvalidArgument("gram: no kernels");
  if (symmetric && out.rows != out.cols) throw InvalidArgument("gram: a symmetric Gram must be square");
  for (const auto& term : terms) {
    pair(term.first);
    if (term.second) pair(*term.second);
    if (!term.second && (term.first.left.positions > 1 || term.first.right.positions > 1)) {
      throw InvalidArgument("gram: a term with positions needs two factors");
    }
  }
  if (options.kernels > 1 && outputs > 1) throw InvalidArgument("gram: the rows of several kernels are examples");
  const index_t examples = out.rows / outputs;
  for (const auto& term : terms) {
    if (term.first.left.examples != examples || (term.second && term.second->left.examples != examples)) {
      throw InvalidArgument("gram: factors differ in their examples");
    }
    const bool covers = term.first.left.rows() == out.rows || (term.second && term.second->left.rows() == out.rows);
    if (!covers && options.kernels == 1) throw InvalidArgument("gram: no factor of a term tells the outputs apart");
  }
}

}  // namespace kernelgrowth::cpu
