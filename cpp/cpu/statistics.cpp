#include "kernelgrowth/statistics.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/dispatch.hpp"
#include "cpu/packing.hpp"
#include "kernelgrowth/error.hpp"

namespace kernelgrowth {
namespace {

// Chunks depend on the number of rows alone, so the order of every sum does too. At most this many keep their own
// column sums.
constexpr index_t max_chunks = 64;
constexpr index_t min_chunk_rows = 32;

void add(std::vector<double>& total, const double* part) {
  for (std::size_t i = 0; i < total.size(); ++i) total[i] += part[i];
}

}  // namespace

template <class T>
Statistics statistics(MatrixView<const T> kernel, MatrixView<const double> targets, MatrixView<const T> other,
                      const StatisticsOptions& options) {
  if (kernel.rows < 0 || kernel.cols < 0 || targets.rows < 0) {
    throw InvalidArgument("statistics: a shape is negative");
  }
  const bool two = other.data != nullptr;
  if (two && (other.rows != kernel.rows || other.cols != kernel.cols)) {
    throw InvalidArgument("statistics: the two kernels differ in shape");
  }
  if (targets.rows > 0 && (kernel.rows != kernel.cols || targets.cols != kernel.rows)) {
    throw InvalidArgument("statistics: targets need a square kernel of their length");
  }
  const auto& table = cpu::kernel_table<T>(options.isa);
  const std::size_t rows = static_cast<std::size_t>(kernel.rows), cols = static_cast<std::size_t>(kernel.cols);

  Statistics result;
  result.row_sums.resize(rows);
  result.column_sums.resize(cols);
  if (two) {
    result.other_row_sums.resize(rows);
    result.other_column_sums.resize(cols);
  }
  result.quadratic_forms.resize(static_cast<std::size_t>(targets.rows));

  const index_t chunk_rows = std::max(min_chunk_rows, cpu::ceil_div(kernel.rows, max_chunks));
  const index_t chunks = cpu::ceil_div(kernel.rows, chunk_rows);
  struct Part {
    double squares = 0, other_squares = 0, inner = 0;
    std::vector<double> columns, other_columns, forms;
  };
  std::vector<Part> parts(static_cast<std::size_t>(chunks));
  parallel_for(
      chunks, options.threads > 0 ? options.threads : default_threads(),
      [&](index_t chunk, int) {
        Part& part = parts[static_cast<std::size_t>(chunk)];
        part.columns.resize(cols);
        if (two) part.other_columns.resize(cols);
        part.forms.resize(result.quadratic_forms.size());
        for (index_t i = chunk * chunk_rows; i < std::min((chunk + 1) * chunk_rows, kernel.rows); ++i) {
          const auto sums = table.row_sums(kernel.row(i), two ? other.row(i) : nullptr, cols, part.columns.data(),
                                           two ? part.other_columns.data() : nullptr);
          const std::size_t row = static_cast<std::size_t>(i);
          result.row_sums[row] = sums.sum;
          part.squares += sums.squares;
          if (two) {
            result.other_row_sums[row] = sums.other_sum;
            part.other_squares += sums.other_squares;
            part.inner += sums.inner_product;
          }
          for (index_t t = 0; t < targets.rows; ++t) {
            const double* y = targets.row(t);
            part.forms[static_cast<std::size_t>(t)] += y[i] * table.dot(kernel.row(i), y, cols);
          }
        }
      },
      options.poll);

  for (const Part& part : parts) {
    result.squared_norm += part.squares;
    result.other_squared_norm += part.other_squares;
    result.inner_product += part.inner;
    add(result.column_sums, part.columns.data());
    if (two) add(result.other_column_sums, part.other_columns.data());
    add(result.quadratic_forms, part.forms.data());
  }
  result.trace = kernel.rows == kernel.cols ? 0 : std::numeric_limits<double>::quiet_NaN();
  if (kernel.rows == kernel.cols) {
    for (index_t i = 0; i < kernel.rows; ++i) result.trace += kernel.row(i)[i];
  }
  return result;
}

template Statistics statistics(MatrixView<const float>, MatrixView<const double>, MatrixView<const float>,
                               const StatisticsOptions&);
template Statistics statistics(MatrixView<const double>, MatrixView<const double>, MatrixView<const double>,
                               const StatisticsOptions&);

}  // namespace kernelgrowth
