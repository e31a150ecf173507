#pragma once

#include "kernelgrowth/matmul.hpp"
#include "written_out.hpp"

namespace kernelgrowth::testing {

struct ProductShape {
  index_t left = 1, right = 1;  // examples; of a symmetric product, left ones only
  index_t left_positions = 1, right_positions = 1, outputs = 1, inputs = 1, units = 1, vectors = 1;
  bool symmetric = false, bias = false, fold = false, weighted = false;
};

// A block of the kernel and vectors for it. Exactly their product, and for each entry what its precision is relative
// to: the sum of all magnitudes.
template <class T>
struct RandomProduct {
  std::vector<StridedArray<T>> arrays;
  ProductTerm<T> term;
  VectorsView<T> v;
  std::vector<double> exact, sizes;

  RandomProduct(Random& random, const ProductShape& shape) {
    arrays.reserve(7);
    term.bias = shape.bias;
    term.fold = shape.fold;
    term.scale = static_cast<double>(random.integer(-1, 3)) / 2;
    const WrittenOut left = side(random, shape, shape.left, shape.left_positions, term.left);
    term.right = term.left;
    const WrittenOut right =
        shape.symmetric ? left : side(random, shape, shape.right, shape.right_positions, term.right);
    const auto eta = weights(random, shape);
    const index_t rows = term.rows(term.left), cols = term.rows(term.right);
    const auto& vectors = arrays.emplace_back(random, std::vector{cols, shape.vectors});
    v = {vectors.data(), cols, shape.vectors, vectors.stride(0), vectors.stride(1)};

    const auto length = left.values.size() / at(rows), count = at(shape.vectors);
    exact.resize(at(rows) * count);
    sizes.resize(exact.size());
    for (std::size_t j = 0; j < count; ++j) {
      std::vector<double> g(length), magnitude(length);
      for (std::size_t r = 0; r < at(cols); ++r) {
        const double number = vectors.values[r * count + j];
        for (std::size_t p = 0; p < length; ++p) {
          const double weight = number * eta[p % eta.size()];
          g[p] += weight * right.values[r * length + p];
          magnitude[p] += std::abs(weight) * right.magnitudes[r * length + p];
        }
      }
      for (std::size_t r = 0; r < at(rows); ++r) {
        for (std::size_t p = 0; p < length; ++p) {
          exact[r * count + j] += term.scale * left.values[r * length + p] * g[p];
          sizes[r * count + j] += std::abs(term.scale) * left.magnitudes[r * length + p] * magnitude[p];
        }
      }
    }
  }

 private:
  WrittenOut side(Random& random, const ProductShape& shape, index_t examples, index_t positions,
                  OuterProducts<T>& view) {
    const auto& a = arrays.emplace_back(random, std::vector{examples, positions, shape.inputs});
    const auto& d = arrays.emplace_back(random, std::vector{examples, shape.outputs, positions, shape.units});
    view = {a.data(), d.data(), examples, shape.outputs, positions, shape.inputs, shape.units, {}, {}};
    std::copy(a.layout.strides.begin(), a.layout.strides.end(), view.activation_strides);
    std::copy(d.layout.strides.begin(), d.layout.strides.end(), view.backprop_strides);
    return written_out(a, d, shape.bias);
  }

  // As doubles in the order of a gradient.
  std::vector<double> weights(Random& random, const ProductShape& shape) {
    if (!shape.weighted) return {1.0};
    const auto& eta = arrays.emplace_back(random, std::vector{shape.units * shape.inputs}, Strides::contiguous_rows);
    const auto& bias_eta = arrays.emplace_back(random, std::vector{shape.units}, Strides::contiguous_rows);
    term.weights = eta.data();
    term.bias_weights = bias_eta.data();
    std::vector<double> result;
    for (std::size_t u = 0; u < at(shape.units); ++u) {
      const auto row = eta.values.begin() + static_cast<index_t>(u) * shape.inputs;
      result.insert(result.end(), row, row + shape.inputs);
      if (shape.bias) result.push_back(bias_eta.values[u]);
    }
    return result;
  }
};

}  // namespace kernelgrowth::testing
