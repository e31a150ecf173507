#include <cmath>
#include <cstring>

#include "factors.hpp"
#include "kernelgrowth/error.hpp"
#include "kernelgrowth/gram.hpp"

using namespace kernelgrowth;
using namespace kernelgrowth::testing;

namespace {

template <class T>
void random_case(Random& random) {
  static const index_t sizes[] = {1, 2, 7, 15, 16, 17, 24, 47, 48, 49, 97};
  const index_t examples = sizes[random.integer(0, 10)], outputs = random.integer(1, 3);
  const index_t positions = random.integer(0, 4) == 0 ? random.integer(250, 520) : random.integer(1, 9);
  const bool fold = random.integer(0, 1) == 1;
  FactorShape shape;
  shape.outputs = fold ? 1 : outputs;
  shape.folded = fold ? outputs : 1;
  shape.inputs = sizes[random.integer(0, 10)];
  shape.units = sizes[random.integer(0, 5)];
  shape.bias = random.integer(0, 1) == 1;
  shape.weighted = random.integer(0, 1) == 1;
  std::vector<RandomTerm<T>> factors(1);
  const auto& factor = factors[0].left.emplace_back(random, shape, examples, positions);
  const index_t rows = factor.view.rows();
  const ExactGram exact = exact_gram(factors, rows, rows);
  const std::vector<Term<T>> terms{factors[0].view()};
  for (const auto& isa : available_isas()) {
    std::vector<T> out(static_cast<std::size_t>(rows * rows));
    const MatrixView<T> view{out.data(), rows, rows, rows};
    GramOptions options;
    options.isa = isa;
    options.threads = 1;
    gram<T>(terms, view, options);
    for (index_t i = 0; i < rows; ++i) {
      for (index_t j = 0; j < rows; ++j) {
        const auto place = at(i * rows + j);
        CHECK(std::abs(static_cast<double>(out[place]) - exact.values[place]) <= promise<T> * exact.sizes[place]);
      }
    }
    const auto first = out;
    options.threads = 3;
    options.workspace = gram_workspace<T>(terms, view, options).minimum;
    gram<T>(terms, view, options);
    CHECK(std::memcmp(first.data(), out.data(), out.size() * sizeof(T)) == 0);
  }
}

void refusals() {
  Random random(5);
  FactorShape shape;
  shape.outputs = 2, shape.inputs = 3, shape.units = 5;
  const RandomFactor<double> gradients(random, shape, 4, 2);
  const FactorView<double>& factor = gradients.view;
  std::vector<double> out(64);
  const MatrixView<double> view{out.data(), 8, 8, 8};
  auto run = [&](const FactorView<double>& f) {
    gram<double>(std::vector<Term<double>>{{{f, {}}, {}, 0, 1}}, view, {});
  };
  run(factor);
  auto wrong = factor;
  wrong.length = 14;
  CHECK_THROWS(InvalidArgument, run(wrong));
  wrong = factor;
  wrong.outer_product->folded = 2;
  wrong.length = 30;
  CHECK_THROWS(InvalidArgument, run(wrong));
  // Lengths that are none, but whose product is one.
  wrong = factor;
  wrong.outer_product->activations.length = -3;
  wrong.outer_product->backprops.length = -5;
  CHECK_THROWS(InvalidArgument, run(wrong));
}

}  // namespace

int main() {
  Random random(2026);
  for (int i = 0; i < 30; ++i) {
    random_case<float>(random);
    random_case<double>(random);
  }
  refusals();
  return 0;
}
