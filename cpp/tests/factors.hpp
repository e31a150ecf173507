#pragma once

#include "kernelgrowth/gram.hpp"
#include "written_out.hpp"

namespace kernelgrowth::testing {

// What the two sides of a pair of factors have in common.
struct FactorShape {
  index_t outputs = 1, length = 1;
  bool weighted = false;
  // An outer product, where units are given.
  index_t units = 0, inputs = 0, folded = 1;
  bool bias = false;

  index_t columns() const { return inputs + (bias ? 1 : 0); }
};

// A factor, and exactly what it stands for: its vectors one after another, and their lengths (of outer products, if
// nothing cancelled in the sum over positions).
template <class T>
struct RandomFactor {
  FactorView<T> view;
  std::vector<double> vectors, sizes;
  std::vector<StridedArray<T>> arrays;

  // `positions` are summed over in an outer product, else kept.
  RandomFactor(Random& random, const FactorShape& shape, index_t examples, index_t positions) {
    view.examples = examples;
    view.outputs = shape.outputs;
    view.length = shape.units > 0 ? shape.folded * shape.units * shape.columns() : shape.length;
    arrays.reserve(3);
    std::vector<double> magnitudes;
    if (shape.units > 0) {
      WrittenOut gradients = outer_product(random, shape, positions);
      vectors = std::move(gradients.values);
      magnitudes = std::move(gradients.magnitudes);
    } else {
      const auto& rows = arrays.emplace_back(random, std::vector{examples, shape.outputs, positions, shape.length});
      view.data = rows.data();
      view.example_stride = rows.stride(0), view.output_stride = rows.stride(1), view.element_stride = rows.stride(3);
      view.positions = positions;
      view.position_stride = rows.stride(2);
      vectors = rows.values;
      magnitudes = vectors;
    }
    const auto length = at(view.length);
    if (shape.weighted) {
      const auto& weights = arrays.emplace_back(random, std::vector{view.length}, Strides::contiguous_rows);
      view.weights = weights.data();
      for (std::size_t i = 0; i < vectors.size(); ++i) {
        vectors[i] *= weights.values[i % length];
        magnitudes[i] *= weights.values[i % length];
      }
    }
    for (std::size_t i = 0; i < magnitudes.size(); i += length) {
      double squares = 0;
      for (std::size_t k = 0; k < length; ++k) squares += magnitudes[i + k] * magnitudes[i + k];
      sizes.push_back(std::sqrt(squares));
    }
  }

 private:
  WrittenOut outer_product(Random& random, const FactorShape& shape, index_t positions) {
    const index_t outputs = shape.outputs * shape.folded;
    const auto& a = arrays.emplace_back(random, std::vector{view.examples, positions, shape.inputs});
    const auto& d = arrays.emplace_back(random, std::vector{view.examples, outputs, positions, shape.units});
    OuterProductView<T> source;
    source.activations = {a.data(), shape.inputs, a.stride(0), 0, a.stride(1), a.stride(2)};
    source.backprops = {d.data(), shape.units, d.stride(0), d.stride(1), d.stride(2), d.stride(3)};
    source.positions = positions;
    source.bias = shape.bias;
    source.folded = shape.folded;
    view.outer_product = source;
    return written_out(a, d, shape.bias);
  }
};

template <class T>
struct RandomTerm {
  std::vector<RandomFactor<T>> left, right;  // one or two each; no right ones of a symmetric Gram
  T offset = 0, scale = 1;

  Term<T> view() const {
    auto pair = [&](std::size_t i) {
      return FactorPair<T>{left[i].view, right.empty() ? FactorView<T>{} : right[i].view};
    };
    Term<T> term;
    term.first = pair(0);
    if (left.size() > 1) term.second = pair(1);
    term.offset = offset;
    term.scale = scale;
    return term;
  }
};

// Exact entries of a Gram, and for each what the promised precision is relative to: sqrt(K_ii K_jj), or less.
struct ExactGram {
  std::vector<double> values, sizes;
};

// Kernel `kernel` of several, or the only one of all outputs.
template <class T>
ExactGram exact_gram(const std::vector<RandomTerm<T>>& terms, index_t rows, index_t cols, index_t kernels = 1,
                     index_t kernel = 0) {
  ExactGram result{std::vector<double>(at(rows * cols)), std::vector<double>(at(rows * cols))};
  for (const auto& term : terms) {
    const auto& right = term.right.empty() ? term.left : term.right;
    auto vector = [&](const RandomFactor<T>& factor, index_t row, index_t of_all, index_t position) {
      const index_t outputs = factor.view.outputs;
      const index_t own =
          kernels > 1 ? row * outputs + (outputs > 1 ? kernel : 0) : row / (of_all / factor.view.rows());
      return at(own * factor.view.positions + position);
    };
    for (index_t i = 0; i < rows; ++i) {
      for (index_t j = 0; j < cols; ++j) {
        double total = 0, size = 0;
        for (index_t t = 0; t < term.left[0].view.positions; ++t) {
          for (index_t u = 0; u < right[0].view.positions; ++u) {
            double product = 1, bound = 1;
            for (std::size_t f = 0; f < term.left.size(); ++f) {
              const auto p = vector(term.left[f], i, rows, t), q = vector(right[f], j, cols, u);
              const auto length = at(term.left[f].view.length);
              const double* a = term.left[f].vectors.data() + p * length;
              const double* b = right[f].vectors.data() + q * length;
              double sum = f == 0 ? static_cast<double>(term.offset) : 0;
              for (std::size_t k = 0; k < length; ++k) sum += a[k] * b[k];
              product *= sum;
              bound *=
                  term.left[f].sizes[p] * right[f].sizes[q] + (f == 0 ? std::abs(static_cast<double>(term.offset)) : 0);
            }
            total += product;
            size += bound;
          }
        }
        result.values[at(i * cols + j)] += static_cast<double>(term.scale) * total;
        result.sizes[at(i * cols + j)] += std::abs(static_cast<double>(term.scale)) * size;
      }
    }
  }
  return result;
}

}  // namespace kernelgrowth::testing
