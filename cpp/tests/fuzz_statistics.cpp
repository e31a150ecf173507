#include "exact_statistics.hpp"
#include "fuzz.hpp"
#include "kernelgrowth/error.hpp"
#include "kernelgrowth/statistics.hpp"

namespace kernelgrowth::testing {
namespace {

template <class T>
void random_case(Random& random) {
  const index_t rows = random_size(random), cols = random.integer(0, 1) == 1 ? rows : random_size(random);
  const StridedArray<T> kernel(random, {rows, cols}, Strides::contiguous_rows);
  const StridedArray<T> other(random, {rows, cols}, Strides::contiguous_rows);
  const StridedArray<double> targets(random, {rows == cols ? random.integer(0, 3) : 0, rows}, Strides::contiguous_rows);
  const bool two = random.integer(0, 1) == 1;
  const MatrixView<const T> second = two ? matrix(other) : MatrixView<const T>{};
  StatisticsOptions options{1, random_isa(random), {}};
  const auto result = statistics<T>(matrix(kernel), matrix(targets), second, options);

  const Exact<T> exact(kernel), exact_other(other);
  CHECK(exact.squares.matches(result.squared_norm));
  CHECK(rows == cols ? exact.trace.matches(result.trace) : std::isnan(result.trace));
  check_sums(exact.rows, result.row_sums);
  check_sums(exact.columns, result.column_sums);
  if (two) {
    Sum inner;
    for (std::size_t i = 0; i < kernel.values.size(); ++i) inner.add(kernel.values[i] * other.values[i]);
    CHECK(inner.matches(result.inner_product) && exact_other.squares.matches(result.other_squared_norm));
    check_sums(exact_other.rows, result.other_row_sums);
    check_sums(exact_other.columns, result.other_column_sums);
  }
  std::vector<Sum> forms(at(targets.layout.shape[0]));
  for (std::size_t t = 0; t < forms.size(); ++t) {
    const double* y = targets.values.data() + t * at(rows);
    for (std::size_t i = 0; i < kernel.values.size(); ++i) {
      forms[t].add(y[i / at(rows)] * kernel.values[i] * y[i % at(rows)]);
    }
  }
  check_sums(forms, result.quadratic_forms);

  options.threads = 3;
  const auto again = statistics<T>(matrix(kernel), matrix(targets), second, options);
  CHECK(again.squared_norm == result.squared_norm && again.inner_product == result.inner_product);
  CHECK(again.column_sums == result.column_sums && again.quadratic_forms == result.quadratic_forms);
}

// Shapes that disagree or do not exist.
void refusal(Random& random) {
  const index_t n = random.integer(1, 9);
  const StridedArray<float> kernel(random, {n, n}, Strides::contiguous_rows);
  const StridedArray<double> targets(random, {2, n}, Strides::contiguous_rows);
  MatrixView<const float> k = matrix(kernel), other = random.integer(0, 1) == 1 ? k : MatrixView<const float>{};
  MatrixView<const double> y = matrix(targets);
  index_t* const numbers[] = {&k.rows, &k.cols, &y.rows, &y.cols, &other.rows, &other.cols};
  const index_t broken = random.integer(0, other.data != nullptr ? 5 : 3);
  index_t& number = *numbers[broken];
  number = broken == 2 || random.integer(0, 1) == 0 ? -random.integer(1, 3) : number + 1;
  CHECK_THROWS(InvalidArgument, statistics<float>(k, y, other, {1, random_isa(random), {}}));
}

}  // namespace

void fuzz_statistics(Random& random) {
  if (random.integer(0, 9) == 0) return refusal(random);
  random.integer(0, 1) == 1 ? random_case<float>(random) : random_case<double>(random);
}

}  // namespace kernelgrowth::testing
