#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "check.hpp"
#include "kernelgrowth/error.hpp"
#include "kernelgrowth/matmul.hpp"

using namespace kernelgrowth;
using kernelgrowth::testing::Random;

namespace {

// Gradients with strides of their own and poison between the numbers.
template <class T>
struct Gradients {
  std::vector<T> activations, backprops;
  OuterProducts<T> view;

  Gradients(Random& random, index_t examples, index_t outputs, index_t positions, index_t inputs, index_t units) {
    view.examples = examples, view.outputs = outputs, view.positions = positions;
    view.inputs = inputs, view.units = units;
    const index_t a = random.integer(1, 2), d = random.integer(1, 2);
    view.activation_strides[2] = a;
    view.activation_strides[1] = inputs * a + random.integer(0, 3);
    view.activation_strides[0] = positions * view.activation_strides[1] + random.integer(0, 3);
    view.backprop_strides[3] = d;
    view.backprop_strides[2] = units * d + random.integer(0, 3);
    view.backprop_strides[1] = positions * view.backprop_strides[2] + random.integer(0, 3);
    view.backprop_strides[0] = outputs * view.backprop_strides[1] + random.integer(0, 3);
    const T poison = std::numeric_limits<T>::quiet_NaN();
    activations.assign(static_cast<std::size_t>(examples * view.activation_strides[0]), poison);
    backprops.assign(static_cast<std::size_t>(examples * view.backprop_strides[0]), poison);
    for (index_t n = 0; n < examples; ++n) {
      for (index_t t = 0; t < positions; ++t) {
        for (index_t i = 0; i < inputs; ++i) activations[at(n, t, i)] = static_cast<T>(random.normal());
        for (index_t c = 0; c < outputs; ++c) {
          for (index_t u = 0; u < units; ++u) backprops[at(n, c, t, u)] = static_cast<T>(random.normal());
        }
      }
    }
    view.activations = activations.data();
    view.backprops = backprops.data();
  }

  std::size_t at(index_t n, index_t t, index_t i) const {
    const auto& s = view.activation_strides;
    return static_cast<std::size_t>(n * s[0] + t * s[1] + i * s[2]);
  }
  std::size_t at(index_t n, index_t c, index_t t, index_t u) const {
    const auto& s = view.backprop_strides;
    return static_cast<std::size_t>(n * s[0] + c * s[1] + t * s[2] + u * s[3]);
  }

  // The gradient of (n, c), written out, the bias last; over all outputs, one after another, where they are folded.
  std::vector<double> gradient(index_t n, index_t c, bool bias, bool fold) const {
    std::vector<double> g;
    for (index_t e = fold ? 0 : c; e < (fold ? view.outputs : c + 1); ++e) {
      for (index_t u = 0; u < view.units; ++u) {
        for (index_t i = 0; i < view.inputs + (bias ? 1 : 0); ++i) {
          double total = 0;
          for (index_t t = 0; t < view.positions; ++t) {
            const double a = i < view.inputs ? static_cast<double>(activations[at(n, t, i)]) : 1.0;
            total += static_cast<double>(backprops[at(n, e, t, u)]) * a;
          }
          g.push_back(total);
        }
      }
    }
    return g;
  }
};

template <class T>
std::vector<double> run(const ProductTerm<T>& term, const VectorsView<T>& v, const ProductOptions& options) {
  const index_t rows = term.rows(term.left);
  std::vector<double> out(static_cast<std::size_t>(rows * v.count), std::numeric_limits<double>::quiet_NaN());
  matmul<T>(term, v, {out.data(), rows, v.count, v.count}, options);
  return out;
}

bool same_bits(const std::vector<double>& a, const std::vector<double>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(double)) == 0;
}

template <class T>
void random_case(Random& random) {
  static const index_t sizes[] = {1, 2, 3, 5, 7, 8, 12, 16, 17, 24, 25, 47, 48, 49, 97, 130, 300};
  const bool fold = random.integer(0, 1) == 1, bias = random.integer(0, 1) == 1, weighted = random.integer(0, 1) == 1;
  const bool long_sums = random.integer(0, 7) == 0;
  const index_t outputs = random.integer(1, 3), positions = random.integer(0, 2) == 0 ? random.integer(2, 130) : 1;
  const index_t inputs = long_sums ? random.integer(500, 1100) : sizes[random.integer(0, 12)];
  const index_t units = long_sums ? random.integer(1, 3) : sizes[random.integer(0, 14)];
  const index_t largest = positions > 1 ? 5 : 16;
  const Gradients<T> left(random, sizes[random.integer(0, largest)], outputs, positions, inputs, units);
  const Gradients<T> right(random, sizes[random.integer(0, largest)], outputs, random.integer(1, 3), inputs, units);
  ProductTerm<T> term;
  const bool symmetric = random.integer(0, 1) == 1;
  const Gradients<T>& other = symmetric ? left : right;
  term.left = left.view;
  term.right = other.view;
  term.bias = bias;
  term.fold = fold;
  term.scale = static_cast<double>(random.integer(0, 3)) / 2;
  const auto weights = random.normals<T>(units * inputs), bias_weights = random.normals<T>(units);
  if (weighted) {
    term.weights = weights.data();
    term.bias_weights = bias_weights.data();
  }

  const index_t count = sizes[random.integer(0, 8)], rows = term.rows(term.left), columns = term.rows(term.right);
  const auto numbers = random.normals<T>(columns * count * 2);
  const bool by_column = random.integer(0, 1) == 1;
  const VectorsView<T> v{numbers.data(), columns, count, by_column ? 2 : 2 * count, by_column ? 2 * columns : 2};

  // Exactly: every gradient of one side against the sum of the other side's.
  const index_t outer = fold ? 1 : outputs;
  std::vector<std::vector<double>> gradients;
  for (index_t r = 0; r < columns; ++r) gradients.push_back(other.gradient(r / outer, r % outer, bias, fold));
  std::vector<double> eta;
  for (index_t e = 0; e < (fold ? outputs : 1); ++e) {
    for (index_t u = 0; u < units; ++u) {
      for (index_t i = 0; i < inputs; ++i) {
        eta.push_back(weighted ? static_cast<double>(weights[static_cast<std::size_t>(u * inputs + i)]) : 1.0);
      }
      if (bias) eta.push_back(weighted ? static_cast<double>(bias_weights[static_cast<std::size_t>(u)]) : 1.0);
    }
  }
  std::vector<double> exact(static_cast<std::size_t>(rows * count)), size(exact.size());
  for (index_t j = 0; j < count; ++j) {
    std::vector<double> g(gradients.front().size()), magnitude(g.size());
    for (index_t r = 0; r < columns; ++r) {
      const double weight = static_cast<double>(v.data[r * v.row_stride + j * v.column_stride]);
      for (std::size_t p = 0; p < g.size(); ++p) {
        g[p] += weight * eta[p] * gradients[static_cast<std::size_t>(r)][p];
        magnitude[p] += std::abs(weight * eta[p] * gradients[static_cast<std::size_t>(r)][p]);
      }
    }
    for (index_t r = 0; r < rows; ++r) {
      const auto row = left.gradient(r / outer, r % outer, bias, fold);
      const auto at = static_cast<std::size_t>(r * count + j);
      for (std::size_t p = 0; p < g.size(); ++p) {
        exact[at] += term.scale * row[p] * g[p];
        size[at] += term.scale * std::abs(row[p]) * magnitude[p];
      }
    }
  }

  for (const auto& isa : available_isas()) {
    ProductOptions options;
    options.isa = isa;
    options.threads = 1;
    const auto out = run(term, v, options);
    const double promise = std::is_same_v<T, float> ? 1e-5 : 1e-12;
    for (std::size_t i = 0; i < out.size(); ++i) CHECK(std::abs(out[i] - exact[i]) <= promise * (size[i] + 1e-3));

    options.threads = 3;
    CHECK(same_bits(run(term, v, options), out));
    options.workspace = matmul_workspace<T>(term, count, options).minimum;
    CHECK(same_bits(run(term, v, options), out));
    options.workspace -= 1;
    CHECK_THROWS(WorkspaceTooSmall, run(term, v, options));
    options.workspace = 0;

    const VectorsView<T> last{v.data + (count - 1) * v.column_stride, columns, 1, v.row_stride, v.column_stride};
    const auto one = run(term, last, options);
    for (std::size_t r = 0; r < one.size(); ++r) {
      const double whole = out[(r + 1) * static_cast<std::size_t>(count) - 1];
      CHECK(std::memcmp(&one[r], &whole, sizeof(double)) == 0);
    }

    auto twice = out;
    options.accumulate = true;
    matmul<T>(term, v, {twice.data(), rows, count, count}, options);
    for (std::size_t i = 0; i < out.size(); ++i) CHECK(std::abs(twice[i] - 2 * out[i]) <= 1e-14 * size[i]);
  }
}

// Rounding must not grow with the number of rows or inputs: equal entries round the same way every time.
void long_sums() {
  const index_t length = 1 << 18;
  const std::vector<float> values(static_cast<std::size_t>(length), 0.1f);
  const double value = static_cast<double>(0.1f);
  ProductTerm<float> term;
  auto& many = term.left;
  many.activations = many.backprops = values.data();
  many.examples = length, many.inputs = many.units = 1;
  many.activation_strides[0] = many.backprop_strides[0] = 1;
  term.right = many;
  const VectorsView<float> v{values.data(), length, 1, 1, 1};
  const double exact = static_cast<double>(length) * std::pow(value, 5);
  ProductTerm<float> wide;
  wide.left.activations = wide.left.backprops = values.data();
  wide.left.examples = wide.left.units = 1;
  wide.bias = true;
  wide.left.activation_strides[2] = 1;
  wide.right = wide.left;
  const VectorsView<float> one{values.data(), 1, 1, 1, 1};
  for (const auto& isa : available_isas()) {
    ProductOptions options;
    options.isa = isa;
    const auto out = run(term, v, options);
    CHECK(std::abs(out.front() - exact) <= 1e-5 * exact && std::abs(out.back() - exact) <= 1e-5 * exact);
    for (const index_t inputs : {index_t{1} << 14, length}) {
      wide.left.inputs = wide.right.inputs = inputs;
      const double sum = static_cast<double>(inputs) * std::pow(value, 5) + std::pow(value, 3);
      CHECK(std::abs(run(wide, one, options)[0] - sum) <= 1e-5 * sum);
    }
  }
}

void refusals() {
  Random random(7);
  const Gradients<double> a(random, 6, 2, 1, 3, 4), narrow(random, 5, 2, 1, 3, 3);
  const auto numbers = random.normals<double>(40);
  const VectorsView<double> v{numbers.data(), 12, 3, 3, 1}, few{numbers.data(), 11, 3, 3, 1};
  const VectorsView<double> none{numbers.data(), 12, 0, 3, 1};
  ProductTerm<double> term;
  term.left = term.right = a.view;
  ProductOptions options;
  run(term, v, options);
  CHECK_THROWS(InvalidArgument, run(term, few, options));
  CHECK_THROWS(InvalidArgument, run(term, none, options));
  ProductTerm<double> other = term;
  other.right = narrow.view;
  CHECK_THROWS(InvalidArgument, run(other, v, options));
  other = term;
  other.bias = true;
  other.weights = numbers.data();
  CHECK_THROWS(InvalidArgument, run(other, v, options));
  other = term;
  other.left.inputs = 0;
  CHECK_THROWS(InvalidArgument, run(other, v, options));
  options.isa = "mmx";
  CHECK_THROWS(InvalidArgument, run(term, v, options));
  options = {};
  options.poll = [] { throw std::runtime_error("stop"); };
  CHECK_THROWS(std::runtime_error, run(term, v, options));
}

}  // namespace

int main() {
  Random random(2026);
  for (int i = 0; i < 60; ++i) {
    random_case<float>(random);
    random_case<double>(random);
  }
  long_sums();
  refusals();
  return 0;
}
