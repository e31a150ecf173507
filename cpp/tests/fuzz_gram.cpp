#include "gram_case.hpp"
#include "kernelgrowth/error.hpp"

namespace kernelgrowth::testing {
namespace {

// Some examples of a factor.
template <class T>
FactorView<T> some(FactorView<T> factor, index_t first, index_t count) {
  factor.examples = count;
  if (factor.outer_product) {
    auto& [activations, backprops, positions, bias, folded] = *factor.outer_product;
    activations.data = activations.at(first, 0);
    backprops.data = backprops.at(first, 0);
  } else {
    factor.data += first * factor.example_stride;
  }
  return factor;
}

// A part of the kernel, computed alone and not as a symmetric one, has the bits of the whole.
template <class T>
void check_part(Random& random, const GramCase<T>& c, const std::vector<T>& whole, GramOptions options) {
  const index_t row = random.integer(0, c.left - 1), rows = random.integer(1, c.left - row);
  const index_t col = random.integer(0, c.right - 1), cols = random.integer(1, c.right - col);
  std::vector<Term<T>> terms = c.views();
  for (auto& term : terms) {
    auto take = [&](FactorPair<T>& pair) {
      pair = {some(pair.left, row, rows), some(c.symmetric ? pair.left : pair.right, col, cols)};
    };
    take(term.first);
    if (term.second) take(*term.second);
  }
  options.symmetric = false;
  options.workspace = 0;
  StridedOutput<T> out(random, c.kernels, rows * c.outputs, cols * c.outputs);
  options.kernel_stride = out.matrix_stride();
  gram<T>(terms, out.view(), options);
  std::vector<T> wanted;
  for (index_t k = 0; k < c.kernels; ++k) {
    for (index_t i = row * c.outputs; i < (row + rows) * c.outputs; ++i) {
      const auto begin = whole.begin() + (k * c.rows() + i) * c.cols() + col * c.outputs;
      wanted.insert(wanted.end(), begin, begin + cols * c.outputs);
    }
  }
  CHECK(same_bits(out.values(), wanted));
}

template <class T>
void random_case(Random& random) {
  const GramCase<T> c(random);
  const std::vector<Term<T>> terms = c.views();
  const index_t rows = c.rows(), cols = c.cols();
  GramOptions options;
  options.symmetric = c.symmetric;
  options.kernels = c.kernels;
  options.accumulate = random.integer(0, 3) == 0;
  options.isa = random_isa(random);
  options.bf16 = std::is_same_v<T, float> && has_bf16() && options.isa == "avx512" && random.integer(0, 4) == 0;
  options.threads = static_cast<int>(random.integer(1, 3));
  const auto before = random.normals<T>(c.kernels * rows * cols);

  auto run = [&](bool one_by_one) {
    StridedOutput<T> out(random, c.kernels, rows, cols);
    if (options.accumulate) out.assign(before);
    GramOptions own = options;
    own.kernel_stride = out.matrix_stride();
    if (one_by_one) {
      for (const Term<T>& term : terms) {
        gram<T>({&term, 1}, out.view(), own);
        own.accumulate = true;
      }
    } else {
      gram<T>(terms, out.view(), own);
    }
    return out.values();
  };
  const std::vector<T> result = run(false);
  const double precision = options.bf16 ? 0.02 : promise<T>;
  check_entries(c, result, options.accumulate ? &before : nullptr, precision);

  options.threads = static_cast<int>(random.integer(1, 3));
  const GramWorkspace need = gram_workspace<T>(terms, {nullptr, rows, cols, cols}, options);
  options.workspace = need.minimum;
  if (random.integer(0, 1) == 1) {
    options.workspace += at(random.integer(0, static_cast<index_t>(need.full - need.minimum)));
  }
  CHECK(same_bits(run(false), result));
  options.workspace = need.minimum - 1;
  CHECK_THROWS(WorkspaceTooSmall, run(false));
  options.workspace = 0;
  if (terms.size() > 1) CHECK(same_bits(run(true), result));
  if (!options.accumulate) check_part(random, c, result, options);
}

// One thing that is wrong: refused before anything is read or written.
template <class T>
void refusal(Random& random) {
  const GramCase<T> c(random);
  std::vector<Term<T>> terms = c.views();
  GramOptions options;
  options.symmetric = c.symmetric;
  options.kernels = c.kernels;
  options.isa = random_isa(random);
  MatrixView<T> out{nullptr, c.rows(), c.cols(), c.cols()};
  Term<T>& term = terms[at(random.integer(0, static_cast<index_t>(terms.size()) - 1))];
  FactorPair<T>& pair = term.second && random.integer(0, 1) == 1 ? *term.second : term.first;
  switch (random.integer(0, 7)) {
    case 0:
      terms.clear();
      break;
    case 1:
      options.isa = "mmx";
      break;
    case 2:
      options.kernels = -random.integer(0, 2);
      break;
    case 3: {
      index_t& size = random.integer(0, 1) == 1 ? out.rows : out.cols;
      size += random.integer(0, 1) == 1 ? 1 : -size - random.integer(0, 2);
      break;
    }
    case 4:
      out.rows *= 2, out.cols *= 2;
      break;
    case 5:
      if (c.symmetric) {
        pair.left.examples += 1;
      } else {
        pair.right.length += 1;
      }
      break;
    default:
      break_factor(random, c.symmetric || random.integer(0, 1) == 0 ? pair.left : pair.right);
  }
  CHECK_THROWS(InvalidArgument, gram_workspace<T>(terms, out, options));
  CHECK_THROWS(InvalidArgument, gram<T>(terms, out, options));
}

// Shapes that no memory holds can be asked about: their numbers are counted without overflow.
void large_workspace(Random& random) {
  auto size = [&](int bits) { return random.integer(1, index_t{1} << random.integer(0, bits)); };
  FactorView<float> factor;
  factor.examples = size(30);
  factor.outputs = size(4);
  factor.length = size(20);
  factor.example_stride = size(60);
  GramOptions options;
  options.threads = static_cast<int>(size(6));
  options.isa = random_isa(random);
  options.symmetric = random.integer(0, 1) == 1;
  const std::vector<Term<float>> terms{{{factor, factor}, {}, 0, 1}};
  const GramWorkspace need = gram_workspace<float>(terms, {nullptr, factor.rows(), factor.rows(), 1}, options);
  CHECK(need.minimum > 0 && need.minimum <= need.full);
  const std::size_t all = sizeof(float) * at(factor.rows()) * at(factor.length);
  CHECK(need.full >= all && need.full / 100 <= all + (std::size_t{1} << 30));
}

}  // namespace

void fuzz_gram(Random& random) {
  const index_t draw = random.integer(0, 39);
  if (draw == 0) {
    large_workspace(random);
  } else if (draw <= 2) {
    random.integer(0, 1) == 1 ? refusal<float>(random) : refusal<double>(random);
  } else {
    random.integer(0, 1) == 1 ? random_case<float>(random) : random_case<double>(random);
  }
}

}  // namespace kernelgrowth::testing
