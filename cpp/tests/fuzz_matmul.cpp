#include <iterator>
#include <tuple>

#include "fuzz.hpp"
#include "kernelgrowth/error.hpp"
#include "products.hpp"

namespace kernelgrowth::testing {
namespace {

// A plain loop takes so many multiplications at most; in a few cases enough for several threads to be used.
constexpr index_t most_work = 150000, most_work_of_threads = 2000000;

ProductShape random_shape(Random& random) {
  ProductShape shape;
  shape.left = random_size(random);
  shape.right = random_size(random);
  if (random.integer(0, 1) == 1) {
    shape.left_positions = random_length(random);
    shape.right_positions = random.integer(0, 1) == 1 ? random_length(random) : 1;
  }
  shape.outputs = random.integer(0, 1) == 1 ? random.integer(2, 4) : 1;
  shape.inputs = random_length(random);
  shape.units = random.integer(0, 2) > 0 ? random_size(random) : 1;
  shape.vectors = random_size(random);
  shape.symmetric = random.integer(0, 1) == 1;
  shape.bias = random.integer(0, 1) == 1;
  shape.fold = random.integer(0, 1) == 1;
  shape.weighted = random.integer(0, 1) == 1;
  const index_t most = random.integer(0, 99) == 0 ? most_work_of_threads : most_work;
  for (;;) {
    const index_t sides =
        shape.left * (shape.left_positions + shape.vectors) + shape.right * (shape.right_positions + shape.vectors);
    if (sides * shape.outputs * shape.inputs * shape.units <= most) return shape;
    index_t* const numbers[] = {&shape.left,  &shape.right,   &shape.left_positions, &shape.right_positions,
                                &shape.units, &shape.vectors, &shape.inputs};
    **std::max_element(std::begin(numbers), std::end(numbers),
                       [](const index_t* a, const index_t* b) { return *a < *b; }) /= 2;
  }
}

template <class T>
void random_case(Random& random) {
  const RandomProduct<T> product(random, random_shape(random));
  const auto& [term, v] = std::tie(product.term, product.v);
  const index_t rows = term.rows(term.left);
  ProductOptions options;
  options.isa = random_isa(random);
  auto run = [&](const VectorsView<T>& vectors, const std::vector<double>& before = {}) {
    StridedOutput<double> out(random, 1, rows, vectors.count);
    if (options.accumulate) out.assign(before);
    matmul<T>(term, vectors, out.view(), options);
    return out.values();
  };
  options.threads = static_cast<int>(random.integer(1, 3));
  const auto result = run(v);
  for (std::size_t i = 0; i < result.size(); ++i) {
    CHECK(std::abs(result[i] - product.exact[i]) <= promise<T> * product.sizes[i]);
  }

  options.threads = static_cast<int>(random.integer(1, 3));
  const ProductWorkspace need = matmul_workspace<T>(term, v.count, options);
  options.workspace = need.minimum;
  if (random.integer(0, 1) == 1) {
    options.workspace += at(random.integer(0, static_cast<index_t>(need.full - need.minimum)));
  }
  CHECK(same_bits(run(v), result));
  options.workspace = need.minimum - 1;
  CHECK_THROWS(WorkspaceTooSmall, run(v));
  options.workspace = 0;

  // Some of the vectors by themselves.
  const index_t first = random.integer(0, v.count - 1), count = random.integer(1, v.count - first);
  const VectorsView<T> some{v.data + first * v.column_stride, v.rows, count, v.row_stride, v.column_stride};
  const auto part = run(some);
  for (index_t i = 0; i < rows * count; ++i) {
    CHECK(std::memcmp(&part[at(i)], &result[at(i / count * v.count + first + i % count)], sizeof(double)) == 0);
  }

  options.accumulate = true;
  const auto before = random.normals<double>(rows * v.count), sum = run(v, before);
  for (std::size_t i = 0; i < sum.size(); ++i) {
    CHECK(std::abs(sum[i] - before[i] - product.exact[i]) <= promise<T> * (product.sizes[i] + std::abs(before[i])));
  }
}

// One thing that is wrong: refused before anything is read or written.
void refusal(Random& random) {
  const RandomProduct<float> product(random, random_shape(random));
  ProductTerm<float> term = product.term;
  VectorsView<float> v = product.v;
  MatrixView<double> out{nullptr, term.rows(term.left), v.count, v.count};
  ProductOptions options;
  options.isa = random_isa(random);
  OuterProducts<float>& side = random.integer(0, 1) == 1 ? term.left : term.right;
  index_t* const counts[] = {&side.examples, &side.outputs, &side.positions, &side.inputs, &side.units};
  index_t* const shapes[] = {&v.rows, &v.count, &out.rows, &out.cols};
  switch (random.integer(0, 4)) {
    case 0:
      *counts[random.integer(0, 4)] = -random.integer(0, 2);
      break;
    case 1:
      *counts[3 + random.integer(0, 1)] += 1;
      break;
    case 2:
      *shapes[random.integer(0, 3)] += 1;
      break;
    case 3:
      *shapes[random.integer(0, 3)] = -random.integer(0, 2);
      break;
    default:
      options.isa = "mmx";
  }
  CHECK_THROWS(InvalidArgument, matmul<float>(term, v, out, options));
}

}  // namespace

void fuzz_matmul(Random& random) {
  if (random.integer(0, 19) == 0) return refusal(random);
  random.integer(0, 1) == 1 ? random_case<float>(random) : random_case<double>(random);
}

}  // namespace kernelgrowth::testing
