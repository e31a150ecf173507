#pragma once

#include "factors.hpp"
#include "fuzz.hpp"

namespace kernelgrowth::testing {

// Rows of numbers, sometimes weighted; where `whole` vectors are wanted, an outer product now and then.
inline FactorShape random_factor_shape(Random& random, index_t outputs, bool whole) {
  FactorShape shape;
  shape.outputs = outputs;
  shape.length = random_length(random);
  if (!whole) return shape;
  shape.weighted = random.integer(0, 3) == 0;
  if (random.integer(0, 2) > 0) return shape;
  const bool wide = random.integer(0, 9) == 0;
  shape.units = wide ? random_size(random) : random.integer(1, 6);
  shape.inputs = random.integer(0, 9) == 0 ? random_size(random) : random.integer(1, 6);
  shape.bias = random.integer(0, 1) == 1;
  if (outputs == 1) shape.folded = random.integer(1, 3);
  shape.length = shape.folded * shape.units * shape.columns();
  return shape;
}

// Makes one number of a factor such that no call may accept it.
template <class T>
void break_factor(Random& random, FactorView<T>& factor) {
  index_t* const counts[] = {&factor.examples, &factor.outputs, &factor.length, &factor.positions};
  if (!factor.outer_product || random.integer(0, 1) == 0) {
    *counts[random.integer(0, 3)] = -random.integer(0, 2);
    return;
  }
  OuterProductView<T>& source = *factor.outer_product;
  switch (random.integer(0, 4)) {
    case 0:
      factor.length += 1;
      return;
    case 1:
      source.positions = -random.integer(0, 2);
      return;
    case 2:
      factor.positions = 2;
      return;
    case 3:
      source.folded = -random.integer(0, 2);
      return;
    default:  // whose product is a length
      source.backprops.length *= -1;
      source.activations.length = -random.integer(2, 5);
      factor.length = source.length();
  }
}

}  // namespace kernelgrowth::testing
