#pragma once

#include <cstddef>

#include "kernelgrowth/view.hpp"

namespace kernelgrowth::cuda {

// What kernelgrowth::statistics finds, as doubles on the device, one part after another in this order.
struct StatisticsLayout {
  index_t rows = 0, columns = 0, targets = 0;
  bool two = false;  // whether there is another kernel

  index_t row_sums() const { return 0; }
  index_t column_sums() const { return rows; }
  index_t other_row_sums() const { return rows + columns; }
  index_t other_column_sums() const { return other_row_sums() + (two ? rows : 0); }
  // Of squares of K, its trace, <K, K'>, and of squares of K'.
  index_t squared_norm() const { return other_column_sums() + (two ? columns : 0); }
  index_t trace() const { return squared_norm() + 1; }
  index_t inner_product() const { return squared_norm() + 2; }
  index_t other_squared_norm() const { return squared_norm() + 3; }
  index_t quadratic_forms() const { return squared_norm() + 4; }
  index_t size() const { return quadratic_forms() + targets; }
};

struct StatisticsOptions {
  void* workspace = nullptr;  // on the device, aligned to 256 bytes, of statistics_workspace() bytes
  void* stream = nullptr;     // a cudaStream_t
};

std::size_t statistics_workspace(const StatisticsLayout& layout);

// The twin of kernelgrowth::statistics: all pointers are the current device's, work is queued on the stream, and
// nothing waits for it. The trace is that of the leading square. Always the same bits.
template <class T>
void statistics(const MatrixView<const T>& kernel, const MatrixView<const double>& targets,
                const MatrixView<const T>& other, double* results, const StatisticsOptions& options);

}  // namespace kernelgrowth::cuda
