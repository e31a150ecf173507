#pragma once

#include <cmath>

#include "strided.hpp"

namespace kernelgrowth::testing {

// Gradients of a weight, and what they would be if nothing cancelled in the sum over positions.
struct WrittenOut {
  std::vector<double> values, magnitudes;
};

// Of activations (examples, positions, inputs) and backprops (examples, outputs, positions, units): for every example
// and output a matrix units x inputs, with one column more for a bias.
template <class T>
WrittenOut written_out(const StridedArray<T>& activations, const StridedArray<T>& backprops, bool bias) {
  const auto& shape = backprops.layout.shape;
  const auto outputs = at(shape[1]), positions = at(shape[2]), units = at(shape[3]);
  const auto matrices = at(shape[0]) * outputs, inputs = at(activations.layout.shape[2]);
  const auto columns = inputs + (bias ? 1 : 0);
  WrittenOut result;
  result.values.resize(matrices * units * columns);
  result.magnitudes.resize(result.values.size());
  for (std::size_t n = 0; n < matrices; ++n) {
    for (std::size_t t = 0; t < positions; ++t) {
      const double* d = backprops.values.data() + (n * positions + t) * units;
      const double* a = activations.values.data() + (n / outputs * positions + t) * inputs;
      for (std::size_t o = 0; o < units; ++o) {
        double* values = result.values.data() + (n * units + o) * columns;
        double* magnitudes = result.magnitudes.data() + (n * units + o) * columns;
        for (std::size_t i = 0; i < columns; ++i) {
          const double product = d[o] * (i < inputs ? a[i] : 1.0);
          values[i] += product;
          magnitudes[i] += std::abs(product);
        }
      }
    }
  }
  return result;
}

}  // namespace kernelgrowth::testing
