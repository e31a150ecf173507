#include "fuzz_factors.hpp"
#include "kernelgrowth/error.hpp"
#include "kernelgrowth/rows.hpp"

namespace kernelgrowth::testing {
namespace {

template <class T>
void random_case(Random& random) {
  const FactorShape shape = random_factor_shape(random, random.integer(1, 4), true);
  const index_t positions = shape.units > 0 ? random_length(random) : 1;
  const RandomFactor<T> factor(random, shape, random_size(random), positions);
  std::vector<double> norms(factor.sizes.size());
  const RowsOptions options{static_cast<int>(random.integer(1, 3)), random_isa(random), {}};
  squared_norms<T>(factor.view, norms.data(), options);
  const auto length = at(factor.view.length);
  for (std::size_t r = 0; r < norms.size(); ++r) {
    double exact = 0;
    for (std::size_t k = r * length; k < (r + 1) * length; ++k) exact += factor.vectors[k] * factor.vectors[k];
    CHECK(std::abs(norms[r] - exact) <= promise<T> * factor.sizes[r] * factor.sizes[r]);
  }
}

void refusal(Random& random) {
  RandomFactor<float> factor(random, random_factor_shape(random, random.integer(1, 4), true), random.integer(1, 5), 2);
  auto& view = factor.view;
  if (view.outer_product) {
    view.outer_product->positions = 2;
  } else {
    view.positions = 1;
  }
  break_factor(random, view);
  std::vector<double> norms(factor.sizes.size());
  CHECK_THROWS(InvalidArgument, squared_norms<float>(view, norms.data(), {1, random_isa(random), {}}));
}

}  // namespace

void fuzz_rows(Random& random) {
  if (random.integer(0, 9) == 0) return refusal(random);
  random.integer(0, 1) == 1 ? random_case<float>(random) : random_case<double>(random);
}

}  // namespace kernelgrowth::testing
