// The one-pass statistics of the GPU, its kernels run on the host, compared with plain loops.
#include "cuda/device.hpp"
#include "exact_statistics.hpp"
#include "fuzz.hpp"
#include "kernelgrowth/cuda_statistics.hpp"

using namespace kernelgrowth;
using namespace kernelgrowth::testing;

namespace {

template <class T>
void random_case(Random& random) {
  cuda::emulated::device.order =
      random.integer(0, 1) == 1 ? cuda::emulated::Order::forwards : cuda::emulated::Order::backwards;
  auto size = [&] { return random.integer(0, 4) == 0 ? random.integer(250, 300) : random_size(random); };
  const index_t rows = size(), cols = random.integer(0, 1) == 1 ? rows : size();
  const index_t count = rows == cols ? random.integer(0, 9) : 0;
  const StridedArray<T> kernel(random, {rows, cols}, Strides::contiguous_rows);
  const StridedArray<T> other(random, {rows, cols}, Strides::contiguous_rows);
  const StridedArray<double> targets(random, {count, rows}, Strides::contiguous_rows);
  const bool two = random.integer(0, 1) == 1;
  const cuda::StatisticsLayout layout{rows, cols, count, two};
  std::vector<double> results(at(layout.size()), poison<double>());
  std::vector<double> workspace(cuda::statistics_workspace(layout) / sizeof(double), poison<double>());
  cuda::StatisticsOptions options;
  options.workspace = workspace.data();
  cuda::statistics<T>(matrix(kernel), matrix(targets), two ? matrix(other) : MatrixView<const T>{}, results.data(),
                      options);

  auto part = [&](index_t first, index_t length) {
    return std::vector<double>(results.begin() + first, results.begin() + first + length);
  };
  const Exact<T> exact(kernel), exact_other(other);
  check_sums(exact.rows, part(layout.row_sums(), rows));
  check_sums(exact.columns, part(layout.column_sums(), cols));
  CHECK(exact.squares.matches(results[at(layout.squared_norm())]));
  CHECK(exact.trace.matches(results[at(layout.trace())]));
  if (two) {
    Sum inner;
    for (std::size_t i = 0; i < kernel.values.size(); ++i) inner.add(kernel.values[i] * other.values[i]);
    CHECK(inner.matches(results[at(layout.inner_product())]));
    CHECK(exact_other.squares.matches(results[at(layout.other_squared_norm())]));
    check_sums(exact_other.rows, part(layout.other_row_sums(), rows));
    check_sums(exact_other.columns, part(layout.other_column_sums(), cols));
  }
  for (index_t t = 0; t < count; ++t) {
    Sum form;
    for (index_t i = 0; i < rows; ++i) {
      for (index_t j = 0; j < rows; ++j) {
        form.add(targets.values[at(t * rows + i)] * kernel.values[at(i * rows + j)] * targets.values[at(t * rows + j)]);
      }
    }
    CHECK(form.matches(results[at(layout.quadratic_forms() + t)]));
  }
}

}  // namespace

int main(int argc, char** argv) {
  const long cases = argc > 1 ? std::strtol(argv[1], nullptr, 10) : 100;
  const long seed = argc > 2 ? std::strtol(argv[2], nullptr, 10) : 1;
  for (long i = 0; i < cases; ++i) {
    Random random(seed, i);
    random.integer(0, 1) == 1 ? random_case<float>(random) : random_case<double>(random);
  }
}
