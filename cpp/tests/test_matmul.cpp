#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernelgrowth/error.hpp"
#include "products.hpp"

using namespace kernelgrowth;
using namespace kernelgrowth::testing;

namespace {

template <class T>
std::vector<double> run(const ProductTerm<T>& term, const VectorsView<T>& v, const ProductOptions& options) {
  const index_t rows = term.rows(term.left);
  std::vector<double> out(static_cast<std::size_t>(rows * v.count), std::numeric_limits<double>::quiet_NaN());
  matmul<T>(term, v, {out.data(), rows, v.count, v.count}, options);
  return out;
}

template <class T>
void random_case(Random& random) {
  static const index_t sizes[] = {1, 2, 3, 5, 7, 8, 12, 16, 17, 24, 25, 47, 48, 49, 97, 130, 300};
  const bool long_sums = random.integer(0, 7) == 0;
  ProductShape shape;
  shape.fold = random.integer(0, 1) == 1;
  shape.bias = random.integer(0, 1) == 1;
  shape.weighted = random.integer(0, 1) == 1;
  shape.symmetric = random.integer(0, 1) == 1;
  shape.outputs = random.integer(1, 3);
  shape.left_positions = random.integer(0, 2) == 0 ? random.integer(2, 130) : 1;
  shape.right_positions = random.integer(1, 3);
  shape.inputs = long_sums ? random.integer(500, 1100) : sizes[random.integer(0, 12)];
  shape.units = long_sums ? random.integer(1, 3) : sizes[random.integer(0, 14)];
  const index_t largest = shape.left_positions > 1 ? 5 : 16;
  shape.left = sizes[random.integer(0, largest)];
  shape.right = sizes[random.integer(0, largest)];
  shape.vectors = sizes[random.integer(0, 8)];
  const RandomProduct<T> product(random, shape);
  const ProductTerm<T>& term = product.term;
  const VectorsView<T>& v = product.v;
  const index_t count = v.count, rows = term.rows(term.left), columns = v.rows;

  for (const auto& isa : available_isas()) {
    ProductOptions options;
    options.isa = isa;
    options.threads = 1;
    const auto out = run(term, v, options);
    for (std::size_t i = 0; i < out.size(); ++i) {
      CHECK(std::abs(out[i] - product.exact[i]) <= promise<T> * product.sizes[i]);
    }

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
    for (std::size_t i = 0; i < out.size(); ++i) CHECK(std::abs(twice[i] - 2 * out[i]) <= 1e-14 * product.sizes[i]);
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
  ProductShape shape;
  shape.left = 6, shape.outputs = 2, shape.inputs = 3, shape.units = 4, shape.symmetric = true;
  const RandomProduct<double> product(random, shape);
  shape.left = 5, shape.units = 3;
  const RandomProduct<double> narrow(random, shape);
  const auto numbers = random.normals<double>(40);
  const VectorsView<double> v{numbers.data(), 12, 3, 3, 1}, few{numbers.data(), 11, 3, 3, 1};
  const VectorsView<double> none{numbers.data(), 12, 0, 3, 1};
  const ProductTerm<double>& term = product.term;
  ProductOptions options;
  run(term, v, options);
  CHECK_THROWS(InvalidArgument, run(term, few, options));
  CHECK_THROWS(InvalidArgument, run(term, none, options));
  ProductTerm<double> other = term;
  other.right = narrow.term.right;
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
