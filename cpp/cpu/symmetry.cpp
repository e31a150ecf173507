#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu/dispatch.hpp"
#include "cpu/packing.hpp"
#include "kernelgrowth/error.hpp"
#include "kernelgrowth/statistics.hpp"

namespace kernelgrowth {
namespace cpu {
namespace {

// Squares that are compared with their mirror images; a multiple of every vector's lanes.
constexpr index_t tile = 64;

struct Part {
  double largest = 0, gap = 0, squares = 0, poison = 0;
  index_t row = 0, column = 0;
};

template <class T>
class Mirror {
 public:
  Mirror(const MatrixView<const T>& matrix, const KernelTable<T>& kernels) : matrix_(matrix), kernels_(kernels) {}

  // All tiles of a row of them, from the diagonal on.
  void compare(index_t first, Part& part) const {
    const index_t height = std::min(tile, matrix_.rows - first);
    for (index_t j = first; j < matrix_.cols; j += tile) {
      const index_t width = std::min(tile, matrix_.cols - j);
      T below[tile * tile];
      turn(j, width, first, height, below);
      const auto found = kernels_.compare(matrix_.row(first) + j, matrix_.row_stride, below, tile,
                                          static_cast<std::size_t>(height), static_cast<std::size_t>(width));
      part.largest = std::max(part.largest, found.largest);
      part.squares += j == first ? found.squares : found.squares + found.other_squares;
      part.poison += found.poison;
      if (found.gap > part.gap) locate(found.gap, first, j, height, width, part);
    }
  }

 private:
  // target[c * tile + r] = matrix(first + r, column + c)
  void turn(index_t first, index_t rows, index_t column, index_t columns, T* target) const {
    const auto lanes = static_cast<index_t>(kernels_.lanes);
    const index_t whole_rows = round_down(rows, lanes), whole_columns = round_down(columns, lanes);
    for (index_t r = 0; r < whole_rows; r += lanes) {
      for (index_t c = 0; c < whole_columns; c += lanes) {
        kernels_.transpose(matrix_.row(first + r) + column + c, matrix_.row_stride, target + c * tile + r, tile);
      }
    }
    for (index_t r = 0; r < rows; ++r) {
      for (index_t c = r < whole_rows ? whole_columns : 0; c < columns; ++c) {
        target[c * tile + r] = matrix_.row(first + r)[column + c];
      }
    }
  }

  void locate(double gap, index_t first, index_t column, index_t height, index_t width, Part& part) const {
    part.gap = gap;
    for (index_t i = first; i < first + height; ++i) {
      for (index_t j = std::max(i, column); j < column + width; ++j) {
        if (std::abs(static_cast<double>(matrix_.row(i)[j] - matrix_.row(j)[i])) == gap) {
          part.row = i;
          part.column = j;
          return;
        }
      }
    }
  }

  const MatrixView<const T>& matrix_;
  const KernelTable<T>& kernels_;
};

}  // namespace
}  // namespace cpu

template <class T>
Symmetry symmetry(MatrixView<const T> matrix, const StatisticsOptions& options) {
  if (matrix.rows < 1 || matrix.rows != matrix.cols) throw InvalidArgument("symmetry: the matrix is not square");
  const auto& kernels = cpu::kernel_table<T>(options.isa);
  const index_t rows = cpu::ceil_div(matrix.rows, cpu::tile);
  std::vector<cpu::Part> parts(static_cast<std::size_t>(rows));
  const cpu::Mirror<T> mirror(matrix, kernels);
  parallel_for(
      rows, options.threads > 0 ? options.threads : default_threads(),
      [&](index_t i, int) { mirror.compare(i * cpu::tile, parts[static_cast<std::size_t>(i)]); }, options.poll);

  Symmetry result;
  double poison = 0;
  for (const cpu::Part& part : parts) {
    result.largest = std::max(result.largest, part.largest);
    result.squared_norm += part.squares;
    poison += part.poison;
    if (part.gap > result.gap) {
      result.gap = part.gap;
      result.row = part.row;
      result.column = part.column;
    }
  }
  for (index_t i = 0; i < matrix.rows; ++i) result.trace += static_cast<double>(matrix.row(i)[i]);
  result.finite = poison == 0;
  return result;
}

template Symmetry symmetry(MatrixView<const float>, const StatisticsOptions&);
template Symmetry symmetry(MatrixView<const double>, const StatisticsOptions&);

}  // namespace kernelgrowth
