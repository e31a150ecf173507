#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <stdexcept>
#include <type_traits>

#include "check.hpp"
#include "cpu/tall_skinny.hpp"
#include "eigen_case.hpp"
#include "jacobi.hpp"
#include "kernelgrowth/eigen.hpp"
#include "kernelgrowth/error.hpp"

using namespace kernelgrowth;
using namespace kernelgrowth::testing;

namespace {

template <class T>
void random_case(Random& random) {
  const index_t n = random.integer(1, 40);
  const Matrix<T> matrix(random, spectrum(random, n));
  KrylovOptions options;
  options.wanted = random.integer(1, n);
  options.width = std::min(n, options.wanted + random.integer(0, 8));
  options.columns = random.integer(0, 1) == 1 ? n : 0;
  options.tolerance = std::is_same_v<T, float> ? 2e-5 : 1e-8;
  options.max_passes = 2000;
  const unsigned seed = static_cast<unsigned>(random.integer(0, 1000));
  for (const auto& isa : available_isas()) {
    Random one(seed), other(seed);
    options.isa = isa;
    const auto solution = solve<T>(one, n, matrix.product(isa), options);
    check_solution(matrix, solution, options.wanted, 10 * options.tolerance);
    CHECK(solution.result.accepted || solution.result.exhausted);
    options.threads = 3;
    const auto again = solve<T>(other, n, matrix.product(isa, 3), options);
    CHECK(again.vectors == solution.vectors && again.result.residuals == solution.result.residuals);
    options.threads = 1;
  }
}

// The next Ritz value, the sums over the basis and the probes add up to the whole of the matrix.
void outside_the_basis() {
  Random random(3);
  std::vector<double> values;
  for (int i = 0; i < 200; ++i) values.push_back(std::pow(0.97, i));
  const Matrix<double> matrix(random, values);
  KrylovOptions options;
  options.wanted = 5;
  options.width = 10;
  options.columns = 100;
  options.max_passes = 3;
  options.tolerance = 0;
  const std::vector<double> start = random.normals<double>(200 * 10), probes = random.normals<double>(200 * 50);
  std::vector<double> vectors(200 * 5);
  const KrylovResult result =
      block_krylov<double>(matrix.product(), {{start.data(), 200, 10, 10}, {}, {probes.data(), 200, 50, 50}},
                           {vectors.data(), 200, 5, 5}, options);
  double squares = 0;
  for (const double x : matrix.entries) squares += x * x;
  const double unit = std::ldexp(1.0, 2 * result.exponent);
  const double outside = squares - unit * (result.projected_squares + 2 * result.rest_squares);
  CHECK(outside > 0 && std::abs(unit * result.probe_squares / 50 - outside) < 0.3 * outside);
  CHECK(result.next_value <= result.values.back() && result.passes == 3 + 5 && !result.accepted);
}

void narrow_and_restarted() {
  Random random(4);
  std::vector<double> values{10, 10, 10, 9, 8};
  for (int i = 0; i < 300; ++i) values.push_back(7.0 * i / 300);
  const Matrix<double> matrix(random, values);
  KrylovOptions options;
  options.wanted = 5;
  options.width = 7;
  options.columns = 30;  // many restarts
  options.tolerance = 1e-9;
  options.max_passes = 1000;
  check_solution(matrix, solve<double>(random, matrix.n, matrix.product(), options), 5, 1e-8);
  // Small problems left out now and then end with the same pairs.
  options.pass_operations = 1;
  check_solution(matrix, solve<double>(random, matrix.n, matrix.product(), options), 5, 1e-8);
  // Fewer pairs have to meet the tolerance than are handed over.
  options.required = 2;
  options.pass_operations = std::numeric_limits<double>::infinity();
  const auto some = solve<double>(random, matrix.n, matrix.product(), options);
  CHECK(some.result.accepted && some.result.values.size() == 5 && some.result.residuals[1] <= 1e-9 * some.result.scale);

  // In the complement of the answer the next value is found, or that nothing is above a threshold.
  options = {};
  options.wanted = 5;
  options.width = 7;
  const auto top = solve<double>(random, matrix.n, matrix.product(), options);
  options.wanted = 1;
  options.exponent = top.result.exponent;
  options.choose_exponent = false;
  const auto next = solve<double>(random, matrix.n, matrix.product(), options, top.vectors);
  CHECK(std::abs(std::ldexp(next.result.values[0], next.result.exponent) - matrix.spectrum[5]) < 1e-3);
  options.threshold = std::ldexp(8.0, -top.result.exponent);
  const auto below = solve<double>(random, matrix.n, matrix.product(), options, top.vectors);
  CHECK(below.result.accepted && below.result.passes < next.result.passes);
}

void errors() {
  Random random(5);
  const Matrix<double> matrix(random, std::vector<double>(50, 1.0));
  KrylovOptions options;
  options.wanted = 3;
  options.width = 5;
  options.tolerance = 0;
  int calls = 0;
  std::vector<double> spread;
  for (int i = 0; i < 50; ++i) spread.push_back(i);
  const Matrix<double> slow(random, spread);
  const BlockProduct<double> failing = [&](const MatrixView<const double>& v, const MatrixView<double>& out) {
    if (++calls == 3) throw std::runtime_error("enough");
    slow.product()(v, out);
  };
  // What was found before an error is handed over; before there is anything, it is thrown.
  const auto partial = solve<double>(random, 50, failing, options);
  CHECK(partial.result.error && partial.result.passes == 2 && partial.result.values.size() == 3);
  calls = 2;
  CHECK_THROWS(std::runtime_error, solve<double>(random, 50, failing, options));
  const BlockProduct<double> poisoned = [](const MatrixView<const double>& v, const MatrixView<double>& out) {
    for (index_t i = 0; i < v.rows; ++i) std::fill_n(out.row(i), v.cols, std::numeric_limits<double>::quiet_NaN());
  };
  CHECK_THROWS(InvalidArgument, solve<double>(random, 50, poisoned, options));
  options.wanted = 51;
  CHECK_THROWS(InvalidArgument, solve<double>(random, 50, matrix.product(), options));
  options.wanted = 3;
  options.time_limit = 0;
  const auto stopped = solve<double>(random, 50, slow.product(), options);
  CHECK(stopped.result.passes == 1 && !stopped.result.accepted && stopped.result.values.size() == 3);
  std::vector<double> crooked = random.normals<double>(50 * 50);
  CHECK_THROWS(InvalidArgument,
               solve<double>(random, 50, stored_product<double>({crooked.data(), 50, 50, 50, 1}, {}), options));
}

// Products of tall blocks: every element, around the edges of tiles, runs and slabs.
template <class T>
void tall_case(Random& random, index_t rows, index_t left, index_t right) {
  const index_t left_stride = left + random.integer(0, 3), right_stride = right + random.integer(0, 3);
  const std::vector<T> a = random.normals<T>(rows * left_stride), b = random.normals<T>(rows * right_stride);
  // Exactly as long as the last row: what lies behind must not be read.
  const std::vector<T> tight(a.begin(), a.begin() + (rows - 1) * left_stride + left);
  for (const auto& isa : available_isas()) {
    std::vector<double> one(at(left * right)), three(at(left * right));
    const MatrixView<const T> x{tight.data(), rows, left, left_stride}, y{b.data(), rows, right, right_stride};
    cpu::tall_products<T>(x, y, one.data(), {1, isa, {}});
    cpu::tall_products<T>(x, y, three.data(), {3, isa, {}});
    CHECK(one == three);
    check_products(x, y, one);
  }
}

}  // namespace

int main() {
  CHECK_THROWS(std::logic_error, lapack());
  use_jacobi();
  Random random(12);
  for (int i = 0; i < 30; ++i) {
    random_case<float>(random);
    random_case<double>(random);
  }
  outside_the_basis();
  narrow_and_restarted();
  errors();
  for (int i = 0; i < 30; ++i) {
    tall_case<float>(random, random.integer(1, 600), random.integer(1, 50), random.integer(1, 50));
    tall_case<double>(random, random.integer(1, 600), random.integer(1, 50), random.integer(1, 50));
  }
  tall_case<float>(random, 5000, 70, 60);
  return 0;
}
