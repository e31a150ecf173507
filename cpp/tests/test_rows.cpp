#include <cmath>
#include <cstring>
#include <limits>

#include "check.hpp"
#include "kernelgrowth/error.hpp"
#include "kernelgrowth/gram.hpp"
#include "kernelgrowth/rows.hpp"

using namespace kernelgrowth;
using kernelgrowth::testing::Random;

namespace {

// Random vectors at positions with strides of their own, poison between them.
template <class T>
struct Positions {
  std::vector<T> storage;
  PositionsView<T> view;

  Positions(Random& random, index_t examples, index_t outputs, index_t positions, index_t length) {
    const bool turned = random.integer(0, 1) == 1;
    const index_t inner = turned ? positions : length, outer = turned ? length : positions;
    const index_t near = random.integer(1, 2), far = inner * near + random.integer(0, 3);
    const index_t output = outer * far + random.integer(0, 3), example = outputs * output + random.integer(0, 3);
    storage.assign(static_cast<std::size_t>(examples * example), std::numeric_limits<T>::quiet_NaN());
    view = {storage.data(), length, example, output, turned ? near : far, turned ? far : near};
    for (index_t n = 0; n < examples; ++n) {
      for (index_t c = 0; c < outputs; ++c) {
        for (index_t t = 0; t < positions; ++t) {
          for (index_t k = 0; k < length; ++k) {
            const T* place = view.at(n, c) + t * view.position_stride + k * view.element_stride;
            storage[static_cast<std::size_t>(place - storage.data())] = static_cast<T>(random.normal());
          }
        }
      }
    }
  }
};

template <class T>
std::vector<double> written_out(const FactorView<T>& factor, index_t row) {
  const auto& source = *factor.outer_product;
  std::vector<double> result;
  for (index_t fold = 0; fold < source.folded; ++fold) {
    const index_t n = row / factor.outputs, c = source.folded > 1 ? fold : row % factor.outputs;
    for (index_t o = 0; o < source.backprops.length; ++o) {
      for (index_t i = 0; i < source.columns(); ++i) {
        double sum = 0;
        for (index_t t = 0; t < source.positions; ++t) {
          const double d =
              source.backprops.at(n, c)[t * source.backprops.position_stride + o * source.backprops.element_stride];
          const double a =
              i == source.activations.length
                  ? 1.0
                  : static_cast<double>(source.activations.at(
                        n, 0)[t * source.activations.position_stride + i * source.activations.element_stride]);
          sum += d * a;
        }
        result.push_back(factor.weights ? sum * static_cast<double>(factor.weights[result.size()]) : sum);
      }
    }
  }
  return result;
}

template <class T>
void random_case(Random& random) {
  static const index_t sizes[] = {1, 2, 7, 15, 16, 17, 24, 47, 48, 49, 97};
  const index_t examples = sizes[random.integer(0, 10)], outputs = random.integer(1, 3);
  const index_t d_in = sizes[random.integer(0, 10)], d_out = sizes[random.integer(0, 5)];
  const index_t positions = random.integer(0, 4) == 0 ? random.integer(250, 520) : random.integer(1, 9);
  const bool fold = random.integer(0, 1) == 1;
  const Positions<T> a(random, examples, 1, positions, d_in), d(random, examples, outputs, positions, d_out);

  FactorView<T> factor;
  factor.examples = examples;
  factor.outputs = fold ? 1 : outputs;
  factor.outer_product = {a.view, d.view, positions, random.integer(0, 1) == 1, fold ? outputs : 1};
  factor.length = factor.outer_product->length();
  std::vector<T> weights(static_cast<std::size_t>(factor.length));
  for (T& weight : weights) weight = static_cast<T>(random.normal());
  if (random.integer(0, 1) == 1) factor.weights = weights.data();

  const index_t rows = factor.rows();
  std::vector<std::vector<double>> exact;
  for (index_t r = 0; r < rows; ++r) exact.push_back(written_out(factor, r));
  auto inner = [&](index_t i, index_t j) {
    double sum = 0;
    for (std::size_t k = 0; k < exact[0].size(); ++k) {
      sum += exact[static_cast<std::size_t>(i)][k] * exact[static_cast<std::size_t>(j)][k];
    }
    return sum;
  };
  const double tolerance = std::is_same_v<T, float> ? 1e-5 : 1e-12;

  const std::vector<Term<T>> terms{{{factor, {}}, {}, 0, 1}};
  for (const auto& isa : available_isas()) {
    std::vector<T> out(static_cast<std::size_t>(rows * rows));
    const MatrixView<T> view{out.data(), rows, rows, rows};
    GramOptions options;
    options.isa = isa;
    options.threads = 1;
    gram<T>(terms, view, options);
    std::vector<double> norms(static_cast<std::size_t>(rows));
    squared_norms<T>(factor, norms.data(), {3, isa, {}});
    for (index_t i = 0; i < rows; ++i) {
      CHECK(std::abs(norms[static_cast<std::size_t>(i)] - inner(i, i)) <= tolerance * inner(i, i));
      for (index_t j = 0; j < std::min<index_t>(rows, 40); ++j) {
        const double error = std::abs(static_cast<double>(view.row(i)[j]) - inner(i, j));
        CHECK(error <= tolerance * std::sqrt(inner(i, i) * inner(j, j)));
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
  const Positions<double> a(random, 4, 1, 2, 3), d(random, 4, 2, 2, 5);
  FactorView<double> factor;
  factor.examples = 4;
  factor.outputs = 2;
  factor.outer_product = {a.view, d.view, 2, false, 1};
  factor.length = 15;
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
  std::vector<double> norms(8);
  FactorView<double> vectors{a.storage.data(), 4, 1, 3, 0, 0, 1};
  squared_norms<double>(vectors, norms.data(), {});
  vectors.positions = 2;
  CHECK_THROWS(InvalidArgument, squared_norms<double>(vectors, norms.data(), {}));
  vectors.positions = 1;
  vectors.length = 0;
  CHECK_THROWS(InvalidArgument, squared_norms<double>(vectors, norms.data(), {}));
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
