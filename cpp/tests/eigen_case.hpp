// Symmetric matrices with a known spectrum, and what their eigenpairs are compared with.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <string>
#include <type_traits>
#include <vector>

#include "check.hpp"
#include "kernelgrowth/eigen.hpp"
#include "strided.hpp"

namespace kernelgrowth::testing {

template <class T>
constexpr double rounding = std::is_same_v<T, float> ? 2e-5 : 1e-11;

// A symmetric matrix with a known spectrum: the diagonal one between two reflections.
template <class T>
struct Matrix {
  index_t n;
  std::vector<double> spectrum;  // descending
  std::vector<T> entries;

  Matrix(Random& random, std::vector<double> values) : n(static_cast<index_t>(values.size())), spectrum(values) {
    std::vector<double> u = random.normals<double>(n);
    double norm = 0, uu = 0;
    for (const double x : u) norm += x * x;
    for (index_t i = 0; i < n; ++i) {
      u[at(i)] /= std::sqrt(norm);
      uu += u[at(i)] * u[at(i)] * values[at(i)];
    }
    for (index_t i = 0; i < n; ++i) {
      for (index_t j = 0; j < n; ++j) {
        const double d = i == j ? values[at(i)] : 0;
        entries.push_back(static_cast<T>(d - 2 * u[at(i)] * u[at(j)] * (values[at(i)] + values[at(j)] - 2 * uu)));
      }
    }
    std::sort(spectrum.rbegin(), spectrum.rend());
  }

  BlockProduct<T> product(const std::string& isa = "", int threads = 1) const {
    return stored_product<T>({entries.data(), n, n, n, 1}, {threads, isa, {}, false});
  }
  double norm() const { return std::max({std::abs(spectrum.front()), std::abs(spectrum.back()), 1e-300}); }
};

template <class T>
struct Solution {
  KrylovResult result;
  std::vector<T> vectors;
};

template <class T>
using Solver = std::function<KrylovResult(const BlockProduct<T>&, const KrylovStart<T>&, const MatrixView<T>&,
                                          const KrylovOptions&)>;

template <class T>
Solution<T> solve(Random& random, index_t n, const BlockProduct<T>& product, KrylovOptions options,
                  const std::vector<T>& locked = {}, const Solver<T>& solver = &block_krylov<T>) {
  Solution<T> solution;
  const index_t width = std::min(n, options.width);
  const std::vector<T> start = random.normals<T>(n * width);
  solution.vectors.resize(at(n * options.wanted));
  const index_t count = static_cast<index_t>(locked.size()) / n;
  solution.result = solver(product, {{start.data(), n, width, width}, {locked.data(), n, count, count}, {}},
                           {solution.vectors.data(), n, options.wanted, options.wanted}, options);
  return solution;
}

// Values, orthonormality, and that the residuals are the true ones.
template <class T>
void check_solution(const Matrix<T>& matrix, const Solution<T>& solution, index_t k, double tolerance) {
  const auto& [result, vectors] = solution;
  CHECK(static_cast<index_t>(result.values.size()) == k && !result.error);
  const double unit = std::ldexp(1.0, result.exponent), norm = matrix.norm();
  for (index_t a = 0; a < k; ++a) {
    CHECK(std::abs(result.values[at(a)] * unit - matrix.spectrum[at(a)]) <= (tolerance + rounding<T>)*norm);
    double square = 0;
    for (index_t i = 0; i < matrix.n; ++i) {
      double sum = 0;
      for (index_t j = 0; j < matrix.n; ++j) {
        sum += static_cast<double>(matrix.entries[at(i * matrix.n + j)]) * static_cast<double>(vectors[at(j * k + a)]);
      }
      const double rest = sum - result.values[at(a)] * unit * static_cast<double>(vectors[at(i * k + a)]);
      square += rest * rest;
    }
    CHECK(std::abs(std::sqrt(square) - result.residuals[at(a)] * unit) <= rounding<T> * norm);
    for (index_t b = 0; b <= a; ++b) {
      double dot = 0;
      for (index_t i = 0; i < matrix.n; ++i) {
        dot += static_cast<double>(vectors[at(i * k + a)]) * static_cast<double>(vectors[at(i * k + b)]);
      }
      CHECK(std::abs(dot - (a == b ? 1 : 0)) <= rounding<T>);
    }
  }
}

inline std::vector<double> spectrum(Random& random, index_t n) {
  std::vector<double> values(at(n));
  const index_t kind = random.integer(0, 4);
  for (index_t i = 0; i < n; ++i) {
    const double levels[] = {10, 10, 9, 8, 1, 1e-3, 0};
    if (kind == 0) values[at(i)] = levels[random.integer(0, 6)];
    if (kind == 1) values[at(i)] = 1.0 / static_cast<double>((i + 1) * (i + 1));
    if (kind == 2) values[at(i)] = random.normal();
    if (kind == 3) values[at(i)] = i < 3 ? 1 : 0;
    if (kind == 4) values[at(i)] = 1 + 1e-3 * random.normal();
  }
  return values;
}

// Inner products of two blocks agree with plain loops.
template <class T>
void check_products(const MatrixView<const T>& x, const MatrixView<const T>& y, const std::vector<double>& found) {
  for (index_t i = 0; i < x.cols; ++i) {
    for (index_t j = 0; j < y.cols; ++j) {
      double sum = 0, size = 0;
      for (index_t k = 0; k < x.rows; ++k) {
        const double product = static_cast<double>(x.row(k)[i]) * static_cast<double>(y.row(k)[j]);
        sum += product;
        size += std::abs(product);
      }
      CHECK(std::abs(found[at(i * y.cols + j)] - sum) <= (std::is_same_v<T, float> ? 2e-6 : 1e-14) * size);
    }
  }
}

}  // namespace kernelgrowth::testing
