#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "factors.hpp"
#include "kernelgrowth/error.hpp"

using namespace kernelgrowth;
using namespace kernelgrowth::testing;

namespace {

template <class T>
RandomFactor<T> rows(Random& random, index_t examples, index_t outputs, index_t length) {
  FactorShape shape;
  shape.outputs = outputs;
  shape.length = length;
  return {random, shape, examples, 1};
}

template <class T>
std::vector<T> run(const std::vector<Term<T>>& terms, index_t rows, index_t cols, GramOptions options) {
  std::vector<T> out(static_cast<std::size_t>(rows * cols), std::numeric_limits<T>::quiet_NaN());
  gram<T>(terms, {out.data(), rows, cols, cols}, options);
  return out;
}

template <class T>
void random_case(Random& random) {
  // Sizes around the register tile, the strip and the block.
  static const index_t sizes[] = {1, 2, 5, 15, 16, 17, 47, 48, 49, 95, 96, 97, 130, 383, 385, 400};
  const bool symmetric = random.integer(0, 1) == 1, pairs = random.integer(0, 2) == 0;
  const index_t outputs = random.integer(1, 4);
  const index_t left_positions = pairs ? random.integer(1, 20) : 1;
  const index_t right_positions = pairs && !symmetric ? random.integer(1, 20) : left_positions;
  const index_t largest = pairs ? 5 : outputs > 1 ? 12 : 15;
  const index_t left = sizes[random.integer(0, largest)];
  const index_t right = symmetric ? left : sizes[random.integer(0, largest)];
  const index_t rows = left * outputs, cols = right * outputs;

  std::vector<RandomTerm<T>> factors;
  std::vector<Term<T>> terms;
  for (index_t b = random.integer(1, 3); b > 0; --b) {
    RandomTerm<T> term;
    auto add_pair = [&](index_t factor_outputs) {
      FactorShape shape;
      shape.outputs = factor_outputs;
      shape.length = random.integer(0, 9) == 0 ? random.integer(250, 600) : random.integer(1, 40);
      term.left.emplace_back(random, shape, left, left_positions);
      if (!symmetric) term.right.emplace_back(random, shape, right, right_positions);
    };
    if (!pairs && random.integer(0, 2) == 0) {
      add_pair(outputs);
    } else {
      const bool second_shared = random.integer(0, 3) == 0;
      add_pair(second_shared ? outputs : 1);
      add_pair(second_shared ? 1 : outputs);
    }
    term.offset = static_cast<T>(random.integer(0, 1));
    term.scale = static_cast<T>(random.integer(0, 3)) / 2;
    terms.push_back(term.view());
    factors.push_back(std::move(term));
  }

  const ExactGram exact = exact_gram(factors, rows, cols);
  for (const auto& isa : available_isas()) {
    GramOptions options;
    options.symmetric = symmetric;
    options.isa = isa;
    options.threads = 1;
    const auto k = run(terms, rows, cols, options);
    for (std::size_t i = 0; i < k.size(); ++i) {
      CHECK(std::abs(static_cast<double>(k[i]) - exact.values[i]) <= promise<T> * exact.sizes[i]);
    }
    if (symmetric) {
      for (index_t i = 0; i < rows; ++i) {
        for (index_t j = 0; j < i; ++j) {
          CHECK(std::memcmp(&k[static_cast<std::size_t>(i * cols + j)], &k[static_cast<std::size_t>(j * cols + i)],
                            sizeof(T)) == 0);
        }
      }
    }

    options.threads = 3;
    CHECK(same_bits(run(terms, rows, cols, options), k));
    options.workspace = gram_workspace<T>(terms, {nullptr, rows, cols, cols}, options).minimum;
    CHECK(same_bits(run(terms, rows, cols, options), k));
    options.workspace -= 1;
    CHECK_THROWS(WorkspaceTooSmall, run(terms, rows, cols, options));

    options.workspace = 0;
    const std::span<const Term<T>> all(terms);
    auto pieces = run<T>({terms.front()}, rows, cols, options);
    options.accumulate = true;
    for (std::size_t b = 1; b < terms.size(); ++b) {
      gram<T>(all.subspan(b, 1), {pieces.data(), rows, cols, cols}, options);
    }
    CHECK(same_bits(pieces, k));
  }
}

// Kernels of equal parts of the examples have the bits that each part has alone, however many threads share them.
template <class T>
void stacks(Random& random) {
  const index_t stack = random.integer(1, 9), examples = random.integer(1, 40), outputs = random.integer(1, 3);
  const index_t rows = examples * outputs, all = stack * examples;
  const index_t lengths[] = {random.integer(1, 30), random.integer(1, 300)};
  const auto a = random.normals<T>(all * lengths[0]), d = random.normals<T>(all * outputs * lengths[1]);
  auto terms = [&](index_t first, index_t count) {
    const T* left = a.data() + first * lengths[0];
    const T* right = d.data() + first * outputs * lengths[1];
    const FactorView<T> shared{left, count, 1, lengths[0], lengths[0], lengths[0], 1};
    const FactorView<T> own{right, count, outputs, lengths[1], outputs * lengths[1], lengths[1], 1};
    return std::vector<Term<T>>{{{shared, {}}, FactorPair<T>{own, {}}, 1, T(0.5)}, {{own, {}}, {}, 0, 2}};
  };
  for (const int threads : {1, 2, 3}) {
    GramOptions options;
    options.threads = threads;
    std::vector<T> out(static_cast<std::size_t>(stack * rows * rows), std::numeric_limits<T>::quiet_NaN());
    gram_stack<T>(terms(0, all), {out.data(), rows, rows, rows}, stack, rows * rows, options);
    for (index_t s = 0; s < stack; ++s) {
      const auto alone = run(terms(s * examples, examples), rows, rows, options);
      CHECK(std::memcmp(alone.data(), out.data() + s * rows * rows, alone.size() * sizeof(T)) == 0);
    }
    CHECK_THROWS(InvalidArgument, gram_stack<T>(terms(0, all), {out.data(), rows, rows, rows}, all + 1, 0, options));
    CHECK_THROWS(InvalidArgument, gram_stack<T>(terms(0, all), {out.data(), rows, rows, rows}, 0, 0, options));
  }
}

// Rounding must not grow with the length of the sums: equal entries round the same way every time.
void long_sums() {
  const index_t length = 1 << 21;
  const std::vector<float> values(static_cast<std::size_t>(length), 0.1f);
  const std::vector<Term<float>> terms{{{{values.data(), 1, 1, length, length, length, 1}, {}}, {}, 0, 1}};
  const double exact = static_cast<double>(length) * static_cast<double>(0.1f) * static_cast<double>(0.1f);
  for (const auto& isa : available_isas()) {
    GramOptions options;
    options.isa = isa;
    CHECK(std::abs(static_cast<double>(run(terms, 1, 1, options)[0]) - exact) <= 1e-5 * exact);
  }
}

// The same for sums over pairs of many positions, in an order that exchanging the sides does not change.
void many_positions(Random& random) {
  const index_t t = 700, u = 300;
  const std::vector<float> equal(static_cast<std::size_t>(t), 1.88157606f);
  auto view = [](const std::vector<float>& values, index_t positions) {
    FactorView<float> factor{values.data(), 1, 1, 1, positions, positions, 1};
    factor.positions = positions;
    factor.position_stride = 1;
    return factor;
  };
  auto term = [](const FactorView<float>& left, const FactorView<float>& right) {
    return std::vector<Term<float>>{{{left, right}, FactorPair<float>{left, right}, 0, 1}};
  };
  const double exact = static_cast<double>(t * t) * std::pow(static_cast<double>(equal[0]), 4);
  const auto a = random.normals<float>(t), b = random.normals<float>(u);
  for (const auto& isa : available_isas()) {
    GramOptions options;
    options.isa = isa;
    CHECK(std::abs(static_cast<double>(run(term(view(equal, t), {}), 1, 1, options)[0]) - exact) <= 4e-6 * exact);
    options.symmetric = false;
    const auto k = run(term(view(a, t), view(b, u)), 1, 1, options);
    CHECK(same_bits(run(term(view(b, u), view(a, t)), 1, 1, options), k));
  }
}

// Kernels computed at once have the bits of those computed one by one.
template <class T>
void several_kernels(Random& random) {
  const index_t n = random.integer(1, 110), kernels = random.integer(2, 11), positions = random.integer(1, 3);
  const bool symmetric = random.integer(0, 1) == 1;
  const index_t m = symmetric ? n : random.integer(1, 110);
  std::vector<RandomTerm<T>> factors;
  std::vector<Term<T>> terms;
  for (int b = 0; b < 2; ++b) {
    RandomTerm<T> term;
    FactorShape shape;
    shape.length = random.integer(1, 40);
    for (const index_t outputs : {index_t{1}, kernels}) {
      shape.outputs = outputs;
      term.left.emplace_back(random, shape, n, positions);
      if (!symmetric) term.right.emplace_back(random, shape, m, positions);
    }
    term.offset = 1;
    term.scale = T{0.5};
    terms.push_back(term.view());
    factors.push_back(std::move(term));
  }
  GramOptions options;
  options.symmetric = symmetric;
  options.threads = 2;
  std::vector<T> all(static_cast<std::size_t>(kernels * n * m));
  options.kernels = kernels;
  options.kernel_stride = n * m;
  gram<T>(terms, {all.data(), n, m, m}, options);
  options.kernels = 1;
  for (index_t c = 0; c < kernels; ++c) {
    std::vector<Term<T>> own = terms;
    for (auto& term : own) {
      for (auto* view : {&term.second->left, &term.second->right}) {
        view->outputs = 1;
        view->data += c * view->output_stride;
      }
    }
    const auto one = run(own, n, m, options);
    CHECK(std::memcmp(one.data(), all.data() + c * n * m, one.size() * sizeof(T)) == 0);
  }
}

// Rounding to bfloat16 leaves eight bits, whatever the shape.
void bf16(Random& random) {
  const index_t n = random.integer(1, 130), d = random.integer(1, 700);
  std::vector<RandomTerm<float>> factors(1);
  for (int i = 0; i < 2; ++i) factors[0].left.push_back(rows<float>(random, n, 1, d));
  factors[0].offset = 1;
  const std::vector<Term<float>> terms{factors[0].view()};
  GramOptions options;
  options.bf16 = true;
  if (!has_bf16() || active_isa() != "avx512") {
    CHECK_THROWS(InvalidArgument, run(terms, n, n, options));
    return;
  }
  const ExactGram exact = exact_gram(factors, n, n);
  const auto k = run(terms, n, n, options);
  for (index_t i = 0; i < n; ++i) {
    for (index_t j = 0; j < n; ++j) {
      const auto place = static_cast<std::size_t>(i * n + j);
      CHECK(std::abs(static_cast<double>(k[place]) - exact.values[place]) <= 0.02 * exact.sizes[place]);
      CHECK(k[place] == k[static_cast<std::size_t>(j * n + i)]);
    }
  }
  options.threads = 3;
  CHECK(same_bits(run(terms, n, n, options), k));
  options.isa = "scalar";
  CHECK_THROWS(InvalidArgument, run(terms, n, n, options));
}

// More threads than there is work for, and perhaps than the system grants.
void too_many_threads() {
  Random random(3);
  const auto a = rows<double>(random, 700, 1, 5);
  const std::vector<Term<double>> terms{{{a.view, {}}, {}, 0, 1}};
  GramOptions options;
  options.threads = 4096;
  const auto k = run(terms, 700, 700, options);
  options.threads = 1;
  CHECK(same_bits(run(terms, 700, 700, options), k));
}

void refusals() {
  Random random(7);
  const auto a = rows<double>(random, 6, 1, 3), d = rows<double>(random, 6, 2, 3),
             other = rows<double>(random, 5, 2, 3);
  GramOptions options;
  const std::vector<Term<double>> good{{{a.view, {}}, FactorPair<double>{d.view, {}}, 0, 1}};
  run(good, 12, 12, options);
  CHECK_THROWS(InvalidArgument, run<double>({}, 12, 12, options));
  CHECK_THROWS(InvalidArgument, run(good, 13, 13, options));
  CHECK_THROWS(InvalidArgument, run(good, 12, 10, options));
  CHECK_THROWS(InvalidArgument,
               run<double>({{{a.view, {}}, FactorPair<double>{other.view, {}}, 0, 1}}, 12, 12, options));
  CHECK_THROWS(InvalidArgument, run<double>({{{a.view, {}}, {}, 0, 1}}, 12, 12, options));
  // 12 rows may be 6 examples of 2 outputs or 12 of one, but not both at once.
  const auto wide = rows<double>(random, 12, 1, 3);
  CHECK_THROWS(InvalidArgument, run<double>({good.front(), {{wide.view, {}}, {}, 0, 1}}, 12, 12, options));
  options.kernels = 2;
  CHECK_THROWS(InvalidArgument, run<double>({{{a.view, {}}, {}, 0, 1}}, 12, 12, options));
  options = {};
  options.isa = "mmx";
  CHECK_THROWS(InvalidArgument, run(good, 12, 12, options));
  options = {};
  options.poll = [] { throw std::runtime_error("stop"); };
  CHECK_THROWS(std::runtime_error, run(good, 12, 12, options));
}

}  // namespace

int main() {
  Random random(2026);
  for (int i = 0; i < 40; ++i) {
    random_case<float>(random);
    random_case<double>(random);
  }
  for (int i = 0; i < 20; ++i) {
    several_kernels<float>(random);
    several_kernels<double>(random);
  }
  for (int i = 0; i < 20; ++i) bf16(random);
  for (int i = 0; i < 20; ++i) {
    stacks<float>(random);
    stacks<double>(random);
  }
  long_sums();
  many_positions(random);
  too_many_threads();
  refusals();
  return 0;
}
