#pragma once

#include <algorithm>
#include <iterator>

#include "fuzz_factors.hpp"

namespace kernelgrowth::testing {

// Terms drawn at random, and the matrix that they are the entries of.
template <class T>
struct GramCase {
  bool symmetric = true;
  index_t kernels = 1, outputs = 1;
  index_t left = 1, right = 1, left_positions = 1, right_positions = 1;  // examples, and positions of each
  std::vector<RandomTerm<T>> terms;

  index_t rows() const { return left * outputs; }
  index_t cols() const { return right * outputs; }

  explicit GramCase(Random& random) {
    const bool threads = random.integer(0, 399) == 0;
    const bool pairs = !threads && random.integer(0, 3) == 0;
    symmetric = random.integer(0, 1) == 1;
    if (random.integer(0, 3) == 0) {
      kernels = random.integer(2, 10);
    } else if (random.integer(0, 2) == 0) {
      outputs = random.integer(2, 5);
    }
    left = threads ? random.integer(150, 200) : random_size(random);
    right = threads ? random.integer(150, 200) : random_size(random);
    left_positions = pairs ? random_size(random) : 1;
    right_positions = pairs ? random_size(random) : 1;

    std::vector<std::vector<FactorShape>> shapes;
    for (index_t b = random.integer(0, 3) > 0 ? 1 : random.integer(2, 3); b > 0; --b) {
      const index_t all = std::max(kernels, outputs);
      const bool two = pairs || random.integer(0, 1) == 1, shared = random.integer(0, 2) > 0;
      auto& shape = shapes.emplace_back();
      shape.push_back(random_factor_shape(random, shared && (two || kernels > 1) ? 1 : all, !pairs));
      if (two) {
        const bool both_shared = kernels > 1 && random.integer(0, 3) == 0;
        const bool second_shared = both_shared || (!shared && random.integer(0, 1) == 1);
        shape.push_back(random_factor_shape(random, second_shared ? 1 : all, !pairs));
      }
      if (threads) shape[0].length = shape[0].units > 0 ? shape[0].length : random.integer(250, 300);
    }
    while (work(shapes) > (threads ? most_work_of_threads : most_work)) {
      index_t* const numbers[] = {&left, &right, &left_positions, &right_positions};
      index_t& largest = **std::max_element(std::begin(numbers), std::end(numbers),
                                            [](const index_t* a, const index_t* b) { return *a < *b; });
      if (largest == 1) break;
      largest /= 2;
    }
    if (symmetric) {
      right = left;
      right_positions = left_positions;
    }
    for (const auto& shape : shapes) add_term(random, shape);
  }

  std::vector<Term<T>> views() const {
    std::vector<Term<T>> result;
    for (const auto& term : terms) result.push_back(term.view());
    return result;
  }

 private:
  // A plain loop takes so many multiplications at most; in a few cases enough for several threads to be used.
  static constexpr index_t most_work = 150000, most_work_of_threads = 15000000;

  index_t work(const std::vector<std::vector<FactorShape>>& shapes) const {
    index_t lengths = 0;
    for (const auto& shape : shapes) {
      for (const auto& factor : shape) lengths += factor.length;
    }
    const index_t a = left * left_positions, b = symmetric ? a : right * right_positions;
    return a * b * outputs * outputs * kernels * lengths;
  }

  void add_term(Random& random, const std::vector<FactorShape>& shapes) {
    RandomTerm<T> term;
    for (const FactorShape& shape : shapes) {
      auto side = [&](std::vector<RandomFactor<T>>& factors, index_t examples, index_t positions) {
        FactorShape own = shape;
        // An outer product on one side may meet vectors that exist on the other.
        if (own.units > 0 && random.integer(0, 9) == 0) own.units = 0;
        if (own.units > 0) positions = random.integer(1, 5);
        factors.emplace_back(random, own, examples, positions);
      };
      side(term.left, left, left_positions);
      if (!symmetric) side(term.right, right, right_positions);
    }
    term.offset = static_cast<T>(random.integer(0, 1));
    term.scale = static_cast<T>(random.integer(-1, 4)) / 2;
    terms.push_back(std::move(term));
  }
};

// Compares a Gram, perhaps added to what was there before, with plain loops; a symmetric one is so to the bit.
template <class T>
void check_entries(const GramCase<T>& c, const std::vector<T>& result, const std::vector<T>* before, double precision) {
  const index_t rows = c.rows(), cols = c.cols();
  for (index_t k = 0; k < c.kernels; ++k) {
    const ExactGram exact = exact_gram(c.terms, rows, cols, c.kernels, k);
    for (index_t i = 0; i < rows; ++i) {
      for (index_t j = c.symmetric ? i : 0; j < cols; ++j) {
        const auto place = at(i * cols + j), whole = at(k * rows * cols) + place;
        const double first = before ? static_cast<double>((*before)[whole]) : 0;
        const double error = std::abs(static_cast<double>(result[whole]) - (exact.values[place] + first));
        CHECK(error <= precision * (exact.sizes[place] + std::abs(first)));
        const auto mirrored = at((k * rows + j) * cols + i);
        CHECK(!c.symmetric || std::memcmp(&result[whole], &result[mirrored], sizeof(T)) == 0);
      }
    }
  }
}

}  // namespace kernelgrowth::testing
