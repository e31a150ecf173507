#include "eigen/small.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

#include "kernelgrowth/lapack.hpp"

namespace kernelgrowth {
namespace {

Lapack& table() {
  static Lapack instance;
  return instance;
}

}  // namespace

void set_lapack(const Lapack& lapack) {
  table() = lapack;
}

const Lapack& lapack() {
  if (table().dsyevd == nullptr) throw std::logic_error("no LAPACK was handed to the library");
  return table();
}

namespace eigen {
namespace {

// Values ascending in `values`; with vectors, `matrix` holds them by rows afterwards, since LAPACK counts by columns.
void solve(char job, std::vector<double>& matrix, int n, std::vector<double>& values) {
  const bool vectors = job == 'V';
  const std::size_t order = static_cast<std::size_t>(n);
  int work_size = vectors ? 1 + 6 * n + 2 * n * n : 2 * n + 1, index_size = vectors ? 3 + 5 * n : 1, info = 0;
  std::vector<double> work(static_cast<std::size_t>(work_size));
  std::vector<int> index(static_cast<std::size_t>(index_size));
  values.resize(order);
  char uplo = 'L';
  // Threads gain nothing on such matrices, and OpenBLAS's would spin on for a while on the processors that the next
  // product needs: a whole iteration took twice as long.
  const Lapack& routines = lapack();
  const int threads = routines.set_threads ? routines.set_threads(1) : 0;
  routines.dsyevd(&job, &uplo, &n, matrix.data(), &n, values.data(), work.data(), &work_size, index.data(), &index_size,
                  &info);
  if (routines.set_threads) routines.set_threads(threads);
  if (info != 0) throw std::runtime_error("LAPACK's dsyevd failed with info = " + std::to_string(info));
}

std::vector<double> copied(const Small& matrix, index_t first, index_t size) {
  std::vector<double> copy;
  copy.reserve(static_cast<std::size_t>(size * size));
  for (index_t i = first; i < first + size; ++i) {
    const double* row = matrix.data() + i * matrix.cols() + first;
    copy.insert(copy.end(), row, row + size);
  }
  return copy;
}

}  // namespace

SmallEigen eigen_symmetric(const Small& matrix, index_t first, index_t size) {
  SmallEigen result;
  std::vector<double> vectors = copied(matrix, first, size);
  solve('V', vectors, static_cast<int>(size), result.values);
  std::reverse(result.values.begin(), result.values.end());
  result.vectors = Small(size, size);
  for (index_t i = 0; i < size; ++i) {
    std::copy_n(vectors.data() + (size - 1 - i) * size, size, result.vectors.data() + i * size);
  }
  return result;
}

std::vector<double> eigenvalues_symmetric(const Small& matrix, index_t first, index_t size) {
  if (size == 0) return {};
  std::vector<double> values, copy = copied(matrix, first, size);
  solve('N', copy, static_cast<int>(size), values);
  std::reverse(values.begin(), values.end());
  return values;
}

std::vector<double> diagonal(const Small& matrix) {
  std::vector<double> values;
  for (index_t i = 0; i < matrix.rows(); ++i) values.push_back(matrix(i, i));
  return values;
}

double distance_from_identity(const Small& matrix) {
  double largest = 0;
  for (index_t i = 0; i < matrix.rows(); ++i) {
    for (index_t j = 0; j < matrix.cols(); ++j) {
      largest = std::max(largest, std::abs(matrix(i, j) - (i == j ? 1.0 : 0.0)));
    }
  }
  return largest;
}

namespace {

// A pivot so much above what counts as dependent leaves a triangle whose rounding the next turn makes good for.
constexpr double safe_pivot = 100;

// Replaces a matrix M, of which the lower triangle is read, by the lower triangle of the inverse of its Cholesky factor
// L; false, and M spoilt, where a squared pivot is not above `least`.
bool inverse_cholesky(Small& m, double least) {
  const index_t n = m.rows();
  for (index_t j = 0; j < n; ++j) {
    for (index_t i = j; i < n; ++i) {
      double sum = m(i, j);
      for (index_t k = 0; k < j; ++k) sum -= m(i, k) * m(j, k);
      if (i > j) {
        m(i, j) = sum / m(j, j);
      } else if (sum > least) {
        m(j, j) = std::sqrt(sum);
      } else {
        return false;
      }
    }
  }
  for (index_t j = 0; j < n; ++j) {
    m(j, j) = 1 / m(j, j);
    for (index_t i = j + 1; i < n; ++i) {
      double sum = 0;
      for (index_t k = j; k < i; ++k) sum -= m(i, k) * m(k, j);
      m(i, j) = sum / m(i, i);
    }
  }
  return true;
}

}  // namespace

Small whitening(const Small& gram, const std::vector<double>& least, double dependent, index_t most) {
  std::vector<index_t> kept;
  for (index_t j = 0; j < gram.cols(); ++j) {
    if (gram(j, j) > least[static_cast<std::size_t>(j)]) kept.push_back(j);
  }
  const auto size = static_cast<index_t>(kept.size());
  if (size == 0) return Small(gram.cols(), 0);
  auto at = [&](index_t i) { return kept[static_cast<std::size_t>(i)]; };
  auto length = [&](index_t i) { return std::sqrt(gram(at(i), at(i))); };
  Small unit(size, size);
  for (index_t i = 0; i < size; ++i) {
    for (index_t j = 0; j < size; ++j) unit(i, j) = gram(at(i), at(j)) / (length(i) * length(j));
  }
  // Most blocks are far from dependent: then a triangle takes a small part of the time of the eigenvectors.
  Small triangle = unit;
  if (size <= most && inverse_cholesky(triangle, safe_pivot * dependent)) {
    Small x(gram.cols(), size);
    for (index_t i = 0; i < size; ++i) {
      for (index_t j = i; j < size; ++j) x(at(i), j) = triangle(j, i) / length(i);
    }
    return x;
  }
  const SmallEigen pairs = eigen_symmetric(unit, 0, size);
  index_t count = 0;
  while (count < std::min(size, most) && pairs.values[static_cast<std::size_t>(count)] > dependent) ++count;
  Small x(gram.cols(), count);
  for (index_t i = 0; i < size; ++i) {
    for (index_t j = 0; j < count; ++j) {
      x(at(i), j) = pairs.vectors(j, i) / (length(i) * std::sqrt(pairs.values[static_cast<std::size_t>(j)]));
    }
  }
  return x;
}

}  // namespace eigen
}  // namespace kernelgrowth
