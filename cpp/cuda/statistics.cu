// A block reads a strip of a few rows of K from left to right. Each thread takes every so-manieth column: the column's
// sum over the strip goes to the workspace, sums of rows stay in registers until the end. What is left of each strip is
// added up by a second kernel, in the order of the strips.
#include "cuda/device.hpp"
#include "kernelgrowth/cuda_statistics.hpp"

namespace kernelgrowth::cuda {
namespace {

constexpr int threads = 256, warps = threads / 32;
constexpr int strip_rows = 16;
// Quadratic forms that are made at a time; K is read once more for each further group of them.
constexpr int forms = 4;
// What a strip leaves beside the sums of its columns.
constexpr int squares = 0, trace = 1, inner = 2, other_squares = 3, first_form = 4, scalars = first_form + forms;

template <class T>
struct Arguments {
  const T *kernel, *other;
  Index rows, columns, row_stride, other_row_stride;
  const double* targets;
  Index target_stride;
  int count;  // of the targets, at most `forms`
  bool sums;  // whether anything but quadratic forms is wanted
  double *row_sums, *other_row_sums;
  // Of strips: sums of columns, and scalars.
  double *column_parts, *other_column_parts, *scalar_parts;
};

// The sum over a block's threads, for its first thread.
__device__ double block_sum(double value, double* shared) {
  for (unsigned distance = 16; distance > 0; distance /= 2) value += shuffle_down(value, distance);
  barrier();
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = value;
  barrier();
  double sum = 0;
  for (int i = 0; i < warps; ++i) sum += shared[i];
  return sum;
}

template <class T>
__global__ __launch_bounds__(threads) void strip_kernel(const __grid_constant__ Arguments<T> arguments) {
  double* shared = shared_memory<double>();
  double* own_targets = shared + warps;  // of the strip's rows
  const Index first = static_cast<Index>(blockIdx.x) * strip_rows;
  const int height = static_cast<int>(arguments.rows - first < strip_rows ? arguments.rows - first : strip_rows);
  for (int k = static_cast<int>(threadIdx.x); k < arguments.count * strip_rows; k += threads) {
    const int i = k % strip_rows;
    own_targets[k] = i < height ? arguments.targets[k / strip_rows * arguments.target_stride + first + i] : 0;
  }
  barrier();

  double rows[strip_rows] = {}, other_rows[strip_rows] = {}, totals[scalars] = {};
  for (Index j = threadIdx.x; j < arguments.columns; j += threads) {
    double column = 0, other_column = 0;
    T values[strip_rows];
#pragma unroll
    for (int i = 0; i < strip_rows; ++i) {
      values[i] = i < height ? arguments.kernel[(first + i) * arguments.row_stride + j] : T{0};
    }
    if (arguments.sums) {
#pragma unroll
      for (int i = 0; i < strip_rows; ++i) {
        const double value = values[i];
        column += value;
        rows[i] += value;
        totals[squares] += value * value;
        if (first + i == j && i < height) totals[trace] += value;
        if (arguments.other && i < height) {
          const double other = arguments.other[(first + i) * arguments.other_row_stride + j];
          other_column += other;
          other_rows[i] += other;
          totals[inner] += value * other;
          totals[other_squares] += other * other;
        }
      }
      arguments.column_parts[blockIdx.x * arguments.columns + j] = column;
      if (arguments.other) arguments.other_column_parts[blockIdx.x * arguments.columns + j] = other_column;
    }
#pragma unroll
    for (int t = 0; t < forms; ++t) {
      if (t >= arguments.count) continue;
      double product = 0;
#pragma unroll
      for (int i = 0; i < strip_rows; ++i) product += own_targets[t * strip_rows + i] * static_cast<double>(values[i]);
      totals[first_form + t] += product * arguments.targets[t * arguments.target_stride + j];
    }
  }

#pragma unroll
  for (int k = 0; k < scalars; ++k) {
    const double sum = block_sum(totals[k], shared);
    if (threadIdx.x == 0) arguments.scalar_parts[blockIdx.x * scalars + k] = sum;
  }
  if (!arguments.sums) return;
#pragma unroll
  for (int i = 0; i < strip_rows; ++i) {
    const double sum = block_sum(rows[i], shared), other = block_sum(other_rows[i], shared);
    if (threadIdx.x == 0 && i < height) {
      arguments.row_sums[first + i] = sum;
      if (arguments.other) arguments.other_row_sums[first + i] = other;
    }
  }
}

// out[j] = the sum over strips of parts[strip * stride + j].
__global__ __launch_bounds__(threads) void columns_kernel(const double* parts, Index strips, Index columns,
                                                          double* out) {
  const Index j = static_cast<Index>(blockIdx.x) * threads + threadIdx.x;
  if (j >= columns) return;
  double sum = 0;
  for (Index strip = 0; strip < strips; ++strip) sum += parts[strip * columns + j];
  out[j] = sum;
}

// The same of scalars, of which there are few: a block for each.
__global__ __launch_bounds__(threads) void scalars_kernel(const double* parts, Index strips, int first, double* out) {
  double* shared = shared_memory<double>();
  double sum = 0;
  for (Index strip = threadIdx.x; strip < strips; strip += threads) sum += parts[strip * scalars + first + blockIdx.x];
  sum = block_sum(sum, shared);
  if (threadIdx.x == 0) out[blockIdx.x] = sum;
}

Index strips_of(Index rows) {
  return divide_up(rows, strip_rows);
}

}  // namespace

std::size_t statistics_workspace(const StatisticsLayout& layout) {
  const Index columns = layout.columns * (layout.two ? 2 : 1);
  return static_cast<std::size_t>(strips_of(layout.rows) * (columns + scalars)) * sizeof(double);
}

template <class T>
void statistics(const MatrixView<const T>& kernel, const MatrixView<const double>& targets,
                const MatrixView<const T>& other, double* results, const StatisticsOptions& options) {
  const StatisticsLayout layout{kernel.rows, kernel.cols, targets.rows, other.data != nullptr};
  const Index strips = strips_of(kernel.rows), strip_sums = strips * kernel.cols;
  constexpr int warp_bytes = warps * static_cast<int>(sizeof(double));
  Arguments<T> arguments{};
  arguments.kernel = kernel.data;
  arguments.other = other.data;
  arguments.rows = kernel.rows;
  arguments.columns = kernel.cols;
  arguments.row_stride = kernel.row_stride;
  arguments.other_row_stride = other.row_stride;
  arguments.target_stride = targets.row_stride;
  arguments.row_sums = results + layout.row_sums();
  arguments.other_row_sums = results + layout.other_row_sums();
  arguments.column_parts = static_cast<double*>(options.workspace);
  arguments.other_column_parts = arguments.column_parts + strip_sums;
  arguments.scalar_parts = arguments.other_column_parts + (layout.two ? strip_sums : 0);

  for (Index done = 0; done == 0 || done < targets.rows; done += forms) {
    arguments.sums = done == 0;
    arguments.targets = targets.data ? targets.row(done) : nullptr;
    arguments.count = static_cast<int>(targets.rows - done < forms ? targets.rows - done : forms);
    const int bytes = warp_bytes + arguments.count * strip_rows * static_cast<int>(sizeof(double));
    launch("statistics", &strip_kernel<T>, {strips, 1, 1}, threads, bytes, options.stream, arguments);
    if (done == 0) {
      launch("statistics", &scalars_kernel, {first_form, 1, 1}, threads, warp_bytes, options.stream,
             static_cast<const double*>(arguments.scalar_parts), strips, squares, results + layout.squared_norm());
    }
    if (arguments.count > 0) {
      launch("statistics", &scalars_kernel, {arguments.count, 1, 1}, threads, warp_bytes, options.stream,
             static_cast<const double*>(arguments.scalar_parts), strips, first_form,
             results + layout.quadratic_forms() + done);
    }
  }
  const Index blocks = divide_up(kernel.cols, threads);
  launch("statistics", &columns_kernel, {blocks, 1, 1}, threads, 0, options.stream,
         static_cast<const double*>(arguments.column_parts), strips, static_cast<Index>(kernel.cols),
         results + layout.column_sums());
  if (layout.two) {
    launch("statistics", &columns_kernel, {blocks, 1, 1}, threads, 0, options.stream,
           static_cast<const double*>(arguments.other_column_parts), strips, static_cast<Index>(kernel.cols),
           results + layout.other_column_sums());
  }
}

template void statistics<float>(const MatrixView<const float>&, const MatrixView<const double>&,
                                const MatrixView<const float>&, double*, const StatisticsOptions&);
template void statistics<double>(const MatrixView<const double>&, const MatrixView<const double>&,
                                 const MatrixView<const double>&, double*, const StatisticsOptions&);

}  // namespace kernelgrowth::cuda
