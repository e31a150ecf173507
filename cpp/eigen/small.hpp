// Small dense matrices on the host, in double, and their eigenvalues through the LAPACK table.
#pragma once

#include <cstddef>
#include <vector>

#include "kernelgrowth/view.hpp"

namespace kernelgrowth::eigen {

class Small {
 public:
  Small() = default;
  Small(index_t rows, index_t cols)
      : rows_(rows), cols_(cols), values_(static_cast<std::size_t>(rows) * static_cast<std::size_t>(cols)) {}

  index_t rows() const { return rows_; }
  index_t cols() const { return cols_; }
  double* data() { return values_.data(); }
  const double* data() const { return values_.data(); }
  double& operator()(index_t i, index_t j) { return values_[static_cast<std::size_t>(i * cols_ + j)]; }
  double operator()(index_t i, index_t j) const { return values_[static_cast<std::size_t>(i * cols_ + j)]; }

 private:
  index_t rows_ = 0, cols_ = 0;
  std::vector<double> values_;  // by rows
};

struct SmallEigen {
  std::vector<double> values;  // descending
  Small vectors;               // row i belongs to values[i]
};

// The `count` largest eigenvalues of the leading `size` rows and columns of a symmetric matrix, and their vectors.
SmallEigen eigen_symmetric(const Small& matrix, index_t size, index_t count);

double largest_eigenvalue(const Small& matrix);

std::vector<double> diagonal(const Small& matrix);

double distance_from_identity(const Small& matrix);

// X, of at most `most` columns, such that V X is orthonormal for columns V with inner products `gram` (Stathopoulos and
// Wu 2002). Columns with squares of at most `least` are left out, and directions of the others, scaled to length one,
// with squares of at most `dependent`.
Small whitening(const Small& gram, const std::vector<double>& least, double dependent, index_t most);

}  // namespace kernelgrowth::eigen
