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

// From this order on, and for less than half of the vectors, dsyevr is the faster one.
constexpr index_t some_from = 150;

// Threads gain nothing on such matrices, and OpenBLAS's would spin on for a while on the processors that the next
// product needs: a whole iteration took twice as long.
class OneThread {
 public:
  OneThread() : threads_(lapack().set_threads ? lapack().set_threads(1) : 0) {}
  ~OneThread() {
    if (lapack().set_threads) lapack().set_threads(threads_);
  }
  OneThread(const OneThread&) = delete;
  OneThread& operator=(const OneThread&) = delete;

 private:
  int threads_;
};

std::size_t at(index_t i) {
  return static_cast<std::size_t>(i);
}

std::vector<double> copied(const Small& matrix, index_t size) {
  std::vector<double> copy;
  copy.reserve(at(size * size));
  for (index_t i = 0; i < size; ++i)
    copy.insert(copy.end(), matrix.data() + i * matrix.cols(), matrix.data() + i * matrix.cols() + size);
  return copy;
}

// Values and vectors as LAPACK gives them, ascending and by columns, with the largest last.
SmallEigen reversed(const std::vector<double>& values, const std::vector<double>& vectors, index_t size,
                    index_t count) {
  SmallEigen result{{}, Small(count, size)};
  const index_t given = static_cast<index_t>(values.size());
  for (index_t i = 0; i < count; ++i) {
    result.values.push_back(values[at(given - 1 - i)]);
    std::copy_n(vectors.data() + (given - 1 - i) * size, size, result.vectors.data() + i * size);
  }
  return result;
}

SmallEigen all(const Small& matrix, index_t size, index_t count, char job) {
  int n = static_cast<int>(size), info = 0;
  int work_size = job == 'V' ? 1 + 6 * n + 2 * n * n : 2 * n + 1, index_size = job == 'V' ? 3 + 5 * n : 1;
  std::vector<double> vectors = copied(matrix, size), values(at(size)), work(at(work_size));
  std::vector<int> index(at(index_size));
  char uplo = 'L';
  const OneThread one;
  lapack().dsyevd(&job, &uplo, &n, vectors.data(), &n, values.data(), work.data(), &work_size, index.data(),
                  &index_size, &info);
  if (info != 0) throw std::runtime_error("LAPACK's dsyevd failed with info = " + std::to_string(info));
  return reversed(values, vectors, size, count);
}

// False where LAPACK gives up, which it does not for all of them.
bool some(const Small& matrix, index_t size, index_t count, SmallEigen& result) {
  int n = static_cast<int>(size), wanted = static_cast<int>(count), found = 0, info = 0;
  int first = n - wanted + 1, work_size = 80 * n, index_size = 10 * n;
  double unused = 0, tolerance = 0;
  std::vector<double> copy = copied(matrix, size), values(at(size)), vectors(at(size * count)), work(at(work_size));
  std::vector<int> index(at(index_size)), support(2 * at(count));
  char job = 'V', range = 'I', uplo = 'L';
  const OneThread one;
  lapack().dsyevr(&job, &range, &uplo, &n, copy.data(), &n, &unused, &unused, &first, &n, &tolerance, &found,
                  values.data(), vectors.data(), &n, support.data(), work.data(), &work_size, index.data(), &index_size,
                  &info);
  if (info != 0 || found != wanted) return false;
  values.resize(at(count));
  result = reversed(values, vectors, size, count);
  return true;
}

}  // namespace

SmallEigen eigen_symmetric(const Small& matrix, index_t size, index_t count) {
  SmallEigen result;
  const bool few = size >= some_from && 2 * count < size && lapack().dsyevr;
  return few && some(matrix, size, count, result) ? result : all(matrix, size, count, 'V');
}

double largest_eigenvalue(const Small& matrix) {
  return all(matrix, matrix.rows(), 1, 'N').values.front();
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
    if (gram(j, j) > least[at(j)]) kept.push_back(j);
  }
  const auto size = static_cast<index_t>(kept.size());
  if (size == 0) return Small(gram.cols(), 0);
  auto column = [&](index_t i) { return kept[at(i)]; };
  auto length = [&](index_t i) { return std::sqrt(gram(column(i), column(i))); };
  Small unit(size, size);
  for (index_t i = 0; i < size; ++i) {
    for (index_t j = 0; j < size; ++j) unit(i, j) = gram(column(i), column(j)) / (length(i) * length(j));
  }
  // Most blocks are far from dependent: then a triangle takes a small part of the time of the eigenvectors.
  Small triangle = unit;
  if (size <= most && inverse_cholesky(triangle, safe_pivot * dependent)) {
    Small x(gram.cols(), size);
    for (index_t i = 0; i < size; ++i) {
      for (index_t j = i; j < size; ++j) x(column(i), j) = triangle(j, i) / length(i);
    }
    return x;
  }
  const SmallEigen pairs = eigen_symmetric(unit, size, size);
  index_t count = 0;
  while (count < std::min(size, most) && pairs.values[at(count)] > dependent) ++count;
  Small x(gram.cols(), count);
  for (index_t i = 0; i < size; ++i) {
    for (index_t j = 0; j < count; ++j) {
      x(column(i), j) = pairs.vectors(j, i) / (length(i) * std::sqrt(pairs.values[at(j)]));
    }
  }
  return x;
}

}  // namespace eigen
}  // namespace kernelgrowth
