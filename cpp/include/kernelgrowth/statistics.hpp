#pragma once

#include <string>
#include <vector>

#include "kernelgrowth/runtime.hpp"
#include "kernelgrowth/view.hpp"

namespace kernelgrowth {

// Everything that norms, alignments and their centred forms need, from one reading of K (and of K').
struct Statistics {
  double squared_norm = 0;  // sum of K_ij^2
  double trace = 0;         // NaN unless K is square
  std::vector<double> row_sums;
  std::vector<double> column_sums;
  std::vector<double> quadratic_forms;  // y^T K y of each target
  double inner_product = 0;             // <K, K'>
  double other_squared_norm = 0;
  std::vector<double> other_row_sums;
  std::vector<double> other_column_sums;
};

struct StatisticsOptions {
  int threads = 0;
  std::string isa;
  Poll poll;
};

// targets: one row per target, K.rows columns (K square); other: data null, or the shape of K. Sums in double.
template <class T>
Statistics statistics(MatrixView<const T> kernel, MatrixView<const double> targets, MatrixView<const T> other,
                      const StatisticsOptions& options);

// A square matrix beside its mirror image, every entry compared.
struct Symmetry {
  double largest = 0;           // absolute entry
  double gap = 0;               // largest difference of mirrored entries, at
  index_t row = 0, column = 0;  // with row <= column
  double squared_norm = 0;
  double trace = 0;
  bool finite = true;  // if not, the other numbers mean nothing
};

template <class T>
Symmetry symmetry(MatrixView<const T> matrix, const StatisticsOptions& options);

}  // namespace kernelgrowth
