// The eigensolver on the GPU, its kernels run on the host: blocks of vectors compared with plain loops, and eigenpairs
// of matrices with a known spectrum.
#include <cstdlib>
#include <limits>
#include <memory>

#include "cuda/device.hpp"
#include "cuda/tall_skinny.hpp"
#include "eigen/normal_numbers.hpp"
#include "eigen_case.hpp"
#include "fuzz.hpp"
#include "jacobi.hpp"
#include "kernelgrowth/cuda_eigen.hpp"

using namespace kernelgrowth;
using namespace kernelgrowth::testing;

namespace {

void choose_order(Random& random) {
  cuda::emulated::device.order =
      random.integer(0, 1) == 1 ? cuda::emulated::Order::forwards : cuda::emulated::Order::backwards;
}

// Memory that holds NaN.
std::shared_ptr<void> poisoned(std::size_t bytes) {
  auto memory = std::make_shared<std::vector<double>>(bytes / sizeof(double) + 1, poison<double>());
  return {memory, memory->data()};
}

// A block in the middle of longer rows, none of whose neighbours may be touched; the last row ends where the block
// does.
template <class T>
struct TallBlock {
  index_t rows, cols, stride;
  std::vector<T> values;

  TallBlock(Random& random, index_t rows_, index_t cols_)
      : rows(rows_), cols(cols_), stride(cols_ + random.integer(0, 5)), values(random.normals<T>(rows_ * stride)) {
    values.resize(at((rows - 1) * stride + cols));
  }
  MatrixView<T> view() { return {values.data(), rows, cols, stride}; }
  MatrixView<const T> view() const { return {values.data(), rows, cols, stride}; }
};

template <class T>
void check_only_block_changed(const TallBlock<T>& before, const TallBlock<T>& after) {
  for (std::size_t i = 0; i < before.values.size(); ++i) {
    CHECK(static_cast<index_t>(i) % before.stride < before.cols || before.values[i] == after.values[i]);
  }
}

template <class T>
void products(Random& random, index_t rows, index_t left, index_t right) {
  const TallBlock<T> a(random, rows, left), b(random, rows, right);
  std::vector<double> found(at(left * right), poison<double>());
  const auto memory = poisoned(cuda::tall_scratch(rows, left, right));
  cuda::tall_products<T>(a.view(), b.view(), found.data(), {memory.get(), nullptr});
  check_products<T>(a.view(), b.view(), found);
}

template <class T>
void multiples(Random& random, index_t rows, index_t depth, index_t cols) {
  const TallBlock<T> a(random, rows, depth), before(random, rows, cols);
  const std::vector<T> s = random.normals<T>(depth * cols);
  const auto memory = poisoned(cuda::tall_scratch(rows, depth, cols));
  for (const bool accumulate : {false, true}) {
    TallBlock<T> out = before;
    cuda::tall_multiply<T>(a.view(), s.data(), out.view(), accumulate, {memory.get(), nullptr});
    check_only_block_changed(before, out);
    for (index_t i = 0; i < rows; ++i) {
      for (index_t j = 0; j < cols; ++j) {
        double sum = accumulate ? static_cast<double>(before.view().row(i)[j]) : 0, size = std::abs(sum);
        for (index_t k = 0; k < depth; ++k) {
          const double product = static_cast<double>(a.view().row(i)[k]) * static_cast<double>(s[at(k * cols + j)]);
          sum += product;
          size += std::abs(product);
        }
        const double allowed = 8 * static_cast<double>(std::numeric_limits<T>::epsilon()) * size;
        CHECK(std::abs(static_cast<double>(out.view().row(i)[j]) - sum) <= allowed);
      }
    }
  }
}

template <class T>
void entries(Random& random, index_t rows, index_t cols) {
  const TallBlock<T> before(random, rows, cols);
  TallBlock<T> block = before;
  const int exponent = static_cast<int>(random.integer(-20, 20));
  cuda::tall_scale<T>(block.view(), exponent, nullptr);
  check_only_block_changed(before, block);
  double largest = 0;
  for (index_t i = 0; i < rows; ++i) {
    for (index_t j = 0; j < cols; ++j) {
      CHECK(block.view().row(i)[j] == std::ldexp(before.view().row(i)[j], exponent));
      largest = std::max(largest, std::abs(static_cast<double>(block.view().row(i)[j])));
    }
  }
  const auto memory = poisoned(cuda::tall_scratch(rows, 1, 1));
  const TallBlock<T>& scaled = block;
  CHECK(cuda::tall_largest<T>(scaled.view(), {memory.get(), nullptr}) == largest);
  block.view().row(random.integer(0, rows - 1))[random.integer(0, cols - 1)] = std::numeric_limits<T>::quiet_NaN();
  CHECK(std::isnan(cuda::tall_largest<T>(scaled.view(), {memory.get(), nullptr})));

  block = before;
  cuda::tall_normal<T>(block.view(), 7, nullptr);
  check_only_block_changed(before, block);
  for (index_t i = 0; i < rows; ++i) {
    for (index_t j = 0; j < cols; ++j) {
      const double wanted = eigen::normal_number(7, static_cast<std::uint64_t>(i), static_cast<std::uint64_t>(j));
      CHECK(block.view().row(i)[j] == static_cast<T>(wanted));
    }
  }
  TallBlock<T> copy(random, rows, cols);
  const TallBlock<T> other = copy;
  cuda::copy<T>(before.view(), copy.view(), nullptr);
  check_only_block_changed(other, copy);
  for (index_t i = 0; i < rows; ++i)
    CHECK(std::equal(copy.view().row(i), copy.view().row(i) + cols, before.view().row(i)));
}

template <class T>
void eigenpairs(Random& random) {
  const index_t n = random.integer(1, 40);
  const Matrix<T> matrix(random, spectrum(random, n));
  KrylovOptions options;
  options.wanted = random.integer(1, std::min<index_t>(n, 6));
  options.width = std::min(n, options.wanted + random.integer(0, 8));
  options.columns = random.integer(0, 1) == 1 ? n : 0;
  options.tolerance = std::is_same_v<T, float> ? 2e-5 : 1e-8;
  options.max_passes = 200;
  const Solver<T> solver = [](const BlockProduct<T>& product, const KrylovStart<T>& start, const MatrixView<T>& vectors,
                              const KrylovOptions& given) {
    return cuda::block_krylov<T>(product, start, vectors, given, {&poisoned, nullptr});
  };
  const auto solution = solve<T>(random, n, matrix.product(), options, {}, solver);
  check_solution(matrix, solution, options.wanted, 10 * options.tolerance);
  CHECK(solution.result.accepted || solution.result.exhausted);
}

template <class T>
void random_case(Random& random) {
  auto size = [&] { return random.integer(0, 3) == 0 ? random.integer(60, 140) : random.integer(1, 40); };
  const index_t rows = random.integer(0, 3) == 0 ? random.integer(500, 9000) / 16 : size();
  products<T>(random, rows, size(), size());
  multiples<T>(random, size(), random.integer(0, 9) == 0 ? random.integer(250, 600) : size(), size());
  entries<T>(random, size(), size());
  eigenpairs<T>(random);
}

}  // namespace

int main(int argc, char** argv) {
  const long cases = argc > 1 ? std::strtol(argv[1], nullptr, 10) : 20;
  const long seed = argc > 2 ? std::strtol(argv[2], nullptr, 10) : 1;
  use_jacobi();
  for (long i = 0; i < cases; ++i) {
    Random random(seed, i);
    choose_order(random);
    random.integer(0, 1) == 1 ? random_case<float>(random) : random_case<double>(random);
  }
  Random random(seed, cases);
  products<float>(random, 9000, 3, 5);  // as many slabs as there may be
}
