#include <cmath>
#include <limits>

#include "check.hpp"
#include "kernelgrowth/error.hpp"
#include "kernelgrowth/statistics.hpp"

using namespace kernelgrowth;
using kernelgrowth::testing::Random;

namespace {

bool close(double a, double b) {
  return std::abs(a - b) <= 1e-11 * (1 + std::abs(b));
}

template <class T>
void random_case(Random& random) {
  const index_t rows = random.integer(1, 150), cols = random.integer(0, 1) == 1 ? rows : random.integer(1, 150);
  const index_t targets = rows == cols ? random.integer(0, 3) : 0;
  const auto k = random.normals<T>(rows * cols), other = random.normals<T>(rows * cols);
  const auto y = random.normals<double>(targets * rows);
  double squares = 0, trace = 0, inner = 0, other_squares = 0;
  std::vector<double> row_sums(static_cast<std::size_t>(rows)), column_sums(static_cast<std::size_t>(cols));
  std::vector<double> forms(static_cast<std::size_t>(targets));
  for (index_t i = 0; i < rows; ++i) {
    for (index_t j = 0; j < cols; ++j) {
      const double value = static_cast<double>(k[static_cast<std::size_t>(i * cols + j)]);
      const double second = static_cast<double>(other[static_cast<std::size_t>(i * cols + j)]);
      squares += value * value;
      inner += value * second;
      other_squares += second * second;
      row_sums[static_cast<std::size_t>(i)] += value;
      column_sums[static_cast<std::size_t>(j)] += value;
      if (i == j) trace += value;
      for (index_t t = 0; t < targets; ++t) {
        forms[static_cast<std::size_t>(t)] +=
            y[static_cast<std::size_t>(t * rows + i)] * value * y[static_cast<std::size_t>(t * rows + j)];
      }
    }
  }
  for (const auto& isa : available_isas()) {
    StatisticsOptions options{1, isa, {}};
    const auto one = statistics<T>({k.data(), rows, cols, cols}, {y.data(), targets, rows, rows},
                                   {other.data(), rows, cols, cols}, options);
    options.threads = 3;
    const auto three = statistics<T>({k.data(), rows, cols, cols}, {y.data(), targets, rows, rows},
                                     {other.data(), rows, cols, cols}, options);
    CHECK(close(one.squared_norm, squares) && close(one.inner_product, inner) &&
          close(one.other_squared_norm, other_squares));
    CHECK(rows == cols ? close(one.trace, trace) : std::isnan(one.trace));
    for (std::size_t i = 0; i < row_sums.size(); ++i) CHECK(close(one.row_sums[i], row_sums[i]));
    for (std::size_t j = 0; j < column_sums.size(); ++j) CHECK(close(one.column_sums[j], column_sums[j]));
    for (std::size_t t = 0; t < forms.size(); ++t) CHECK(close(one.quadratic_forms[t], forms[t]));
    CHECK(one.squared_norm == three.squared_norm && one.inner_product == three.inner_product);
    CHECK(one.column_sums == three.column_sums && one.quadratic_forms == three.quadratic_forms);
    CHECK(one.other_row_sums == three.other_row_sums && one.other_column_sums == three.other_column_sums);
  }
}

template <class T>
void symmetry_case(Random& random) {
  const index_t n = random.integer(1, 150), stride = n + random.integer(0, 3);
  std::vector<T> k = random.normals<T>(n * stride);
  auto at = [&](index_t i, index_t j) -> T& { return k[static_cast<std::size_t>(i * stride + j)]; };
  double largest = 0, squares = 0, trace = 0;
  for (index_t i = 0; i < n; ++i) {
    for (index_t j = 0; j < n; ++j) {
      if (j < i) at(i, j) = at(j, i);
      largest = std::max(largest, std::abs(static_cast<double>(at(i, j))));
      squares += static_cast<double>(at(i, j)) * static_cast<double>(at(i, j));
      if (i == j) trace += static_cast<double>(at(i, j));
    }
  }
  const index_t i = random.integer(0, n - 1), j = random.integer(0, n - 1);
  for (const auto& isa : available_isas()) {
    const Symmetry one = symmetry<T>({k.data(), n, n, stride}, {1, isa, {}});
    const Symmetry three = symmetry<T>({k.data(), n, n, stride}, {3, isa, {}});
    CHECK(one.finite && one.gap == 0 && one.largest == largest && close(one.trace, trace));
    CHECK(close(one.squared_norm, squares) && one.squared_norm == three.squared_norm);
    const T before = at(i, j);
    at(i, j) += T{3};
    const Symmetry crooked = symmetry<T>({k.data(), n, n, stride}, {3, isa, {}});
    if (i != j) {
      CHECK(crooked.gap > 2.9 && crooked.row == std::min(i, j) && crooked.column == std::max(i, j));
    }
    at(i, j) = random.integer(0, 1) == 1 ? std::numeric_limits<T>::infinity() : std::numeric_limits<T>::quiet_NaN();
    CHECK(!symmetry<T>({k.data(), n, n, stride}, {3, isa, {}}).finite);
    at(i, j) = before;
  }
}

}  // namespace

int main() {
  Random random(11);
  for (int i = 0; i < 50; ++i) {
    symmetry_case<float>(random);
    symmetry_case<double>(random);
  }
  for (int i = 0; i < 50; ++i) {
    random_case<float>(random);
    random_case<double>(random);
  }
  const std::vector<float> k(12);
  const std::vector<double> y(3);
  CHECK_THROWS(InvalidArgument, statistics<float>({k.data(), 3, 4, 4}, {y.data(), 1, 3, 3}, {}, {}));
  CHECK_THROWS(InvalidArgument, statistics<float>({k.data(), 3, 4, 4}, {}, {k.data(), 4, 3, 3}, {}));
  CHECK_THROWS(InvalidArgument, symmetry<float>({k.data(), 3, 4, 4}, {}));
  CHECK_THROWS(InvalidArgument, statistics<float>({k.data(), -3, -3, 4}, {}, {}, {}));
  return 0;
}
