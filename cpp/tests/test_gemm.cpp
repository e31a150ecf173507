#include <cmath>
#include <cstring>
#include <limits>

#include "check.hpp"
#include "kernelgrowth/error.hpp"
#include "kernelgrowth/gemm.hpp"

using namespace kernelgrowth;
using kernelgrowth::testing::Random;

namespace {

// A matrix by rows or by columns, with poison between the numbers.
template <class T>
struct Matrix {
  std::vector<T> numbers;
  StridedMatrix<T> view;

  Matrix(Random& random, index_t rows, index_t cols) {
    const index_t step = random.integer(1, 2);
    const bool by_rows = random.integer(0, 1) == 1;
    const index_t line = (by_rows ? cols : rows) * step + random.integer(0, 3);
    view = {nullptr, rows, cols, by_rows ? line : step, by_rows ? step : line};
    const auto size = static_cast<std::size_t>((rows - 1) * view.row_stride + (cols - 1) * view.col_stride + 1);
    numbers.assign(size, std::numeric_limits<T>::quiet_NaN());
    view.data = numbers.data();
    for (index_t i = 0; i < rows; ++i) {
      for (index_t j = 0; j < cols; ++j) numbers[at(i, j)] = static_cast<T>(random.normal());
    }
  }
  std::size_t at(index_t i, index_t j) const {
    return static_cast<std::size_t>(i * view.row_stride + j * view.col_stride);
  }
};

template <class T>
void check_product(Random& random, index_t rows, index_t depth, index_t cols) {
  const Matrix<T> a(random, rows, depth), b(random, depth, cols);
  const index_t row_stride = cols + random.integer(0, 3);
  const auto size = static_cast<std::size_t>((rows - 1) * row_stride + cols);
  const double tolerance = std::is_same_v<T, float> ? 1e-5 : 1e-12;
  for (const auto& isa : available_isas()) {
    std::vector<T> one(size, T{7});
    gemm<T>(a.view, b.view, {one.data(), rows, cols, row_stride}, {1, isa, {}});
    for (index_t i = 0; i < rows; ++i) {
      for (index_t j = 0; j < row_stride && i * row_stride + j < static_cast<index_t>(size); ++j) {
        const T made = one[static_cast<std::size_t>(i * row_stride + j)];
        if (j >= cols) {
          CHECK(made == T{7});
          continue;
        }
        double sum = 0, size_of_terms = 0;
        for (index_t k = 0; k < depth; ++k) {
          const double x = a.numbers[a.at(i, k)], y = b.numbers[b.at(k, j)];
          sum += x * y;
          size_of_terms += std::abs(x * y);
        }
        CHECK(std::abs(static_cast<double>(made) - sum) <= tolerance * size_of_terms);
      }
    }
    std::vector<T> three(size, T{7});
    gemm<T>(a.view, b.view, {three.data(), rows, cols, row_stride}, {3, isa, {}});
    CHECK(std::memcmp(one.data(), three.data(), size * sizeof(T)) == 0);

    // Added to what is there, as if it were one run of products more.
    std::vector<T> sum(one);
    gemm<T>(a.view, b.view, {sum.data(), rows, cols, row_stride}, {3, isa, {}, true});
    for (index_t i = 0; i < rows; ++i) {
      for (index_t j = 0; j < cols; ++j) {
        const auto e = static_cast<std::size_t>(i * row_stride + j);
        CHECK(std::abs(static_cast<double>(sum[e]) - 2 * static_cast<double>(one[e])) <= 1e-3 * (1 + std::abs(one[e])));
      }
    }

    // A row's bits are its own.
    const index_t i = random.integer(0, rows - 1);
    StridedMatrix<T> row = a.view;
    row.data = a.view.at(i, 0), row.rows = 1;
    std::vector<T> alone(static_cast<std::size_t>(cols));
    gemm<T>(row, b.view, {alone.data(), 1, cols, cols}, {1, isa, {}});
    CHECK(std::memcmp(alone.data(), one.data() + i * row_stride, alone.size() * sizeof(T)) == 0);
  }
}

}  // namespace

int main() {
  Random random(6);
  for (int i = 0; i < 60; ++i) {
    check_product<float>(random, random.integer(1, 110), random.integer(1, 70), random.integer(1, 110));
    check_product<double>(random, random.integer(1, 110), random.integer(1, 70), random.integer(1, 110));
  }
  // Several depth blocks, several groups of them, several groups of panels, and enough work for threads.
  check_product<float>(random, 203, 517, 70);
  check_product<double>(random, 9, 2100, 5);
  check_product<float>(random, 5, 3, 2500);
  check_product<double>(random, 2, 1100, 1100);

  const StridedMatrix<float> empty{nullptr, 0, 1, 1, 1};
  float x = 2, y = 3, z = 0;
  const StridedMatrix<float> left{&x, 1, 1, 1, 1}, right{&y, 1, 1, 1, 1};
  CHECK_THROWS(InvalidArgument, gemm<float>(empty, right, {&z, 0, 1, 1}, {}));
  CHECK_THROWS(InvalidArgument, gemm<float>({&x, 1, 2, 1, 1}, right, {&z, 1, 1, 1}, {}));
  CHECK_THROWS(InvalidArgument, gemm<float>(left, right, {&z, 2, 1, 1}, {}));
  CHECK_THROWS(InvalidArgument, gemm<float>(left, right, {&z, 1, 1, 1}, {1, "no such set", {}}));
  gemm<float>(left, right, {&z, 1, 1, 1}, {});
  CHECK(z == 6);
  return 0;
}
