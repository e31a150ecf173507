#include <pybind11/stl.h>

#include <algorithm>
#include <optional>
#include <string>
#include <tuple>
#include <variant>
#include <vector>

#include "bindings.hpp"
#include "kernelgrowth/gram.hpp"

namespace kernelgrowth::python {
namespace {

using OptionalArray = std::optional<py::array>;
// activations, backprops, bias, fold, weights
using OuterProductArguments = std::tuple<py::array, py::array, bool, bool, OptionalArray>;
// A factor's vectors as they stand, with weights, or written out as they are packed.
using FactorArguments = std::variant<py::array, std::tuple<py::array, py::array>, OuterProductArguments>;
using OptionalFactor = std::optional<FactorArguments>;
// first left, first right, second left, second right, offset, scale
using TermArguments = std::tuple<FactorArguments, OptionalFactor, OptionalFactor, OptionalFactor, double, double>;

template <class T>
void check_array(const py::array& array, int dimensions, const char* shape) {
  if (!py::isinstance<py::array_t<T>>(array)) throw py::type_error("gram: factors and out must share one dtype");
  if (array.ndim() != dimensions) throw py::value_error(std::string("gram: a factor must have the shape ") + shape);
  for (int d = 0; d < dimensions; ++d) {
    if (array.shape(d) > 1 && array.strides(d) % static_cast<index_t>(sizeof(T)) != 0) {
      throw py::value_error("gram: a stride is no multiple of the item size");
    }
  }
}

template <class T>
index_t stride(const py::array& array, int dimension) {
  return array.strides(dimension) / static_cast<index_t>(sizeof(T));
}

template <class T>
const T* weights_of(const py::array& array, index_t length) {
  check_array<T>(array, 1, "(length,) of its weights");
  if (array.shape(0) != length || (length > 1 && stride<T>(array, 0) != 1)) {
    throw py::value_error("gram: weights must be contiguous, one for each entry of a factor's vectors");
  }
  return static_cast<const T*>(array.data());
}

// (examples, outputs, length), or (examples, outputs, positions, length)
template <class T>
FactorView<T> vectors(const py::array& array) {
  const int length = array.ndim() == 4 ? 3 : 2;
  check_array<T>(array, length + 1, "(examples, outputs, [positions,] length)");
  FactorView<T> factor{static_cast<const T*>(array.data()),
                       array.shape(0),
                       array.shape(1),
                       array.shape(length),
                       stride<T>(array, 0),
                       stride<T>(array, 1),
                       stride<T>(array, length)};
  if (length == 3) {
    factor.positions = array.shape(2);
    factor.position_stride = stride<T>(array, 2);
  }
  return factor;
}

template <class T>
FactorView<T> outer_product(const OuterProductArguments& arguments) {
  const auto& [activations, backprops, bias, fold, weights] = arguments;
  check_array<T>(activations, 3, "(examples, positions, length) of its activations");
  check_array<T>(backprops, 4, "(examples, outputs, positions, length) of its backprops");
  if (activations.shape(0) != backprops.shape(0) || activations.shape(1) != backprops.shape(2)) {
    throw py::value_error("gram: activations and backprops differ in examples or positions");
  }
  OuterProductView<T> view;
  view.activations = {static_cast<const T*>(activations.data()),
                      activations.shape(2),
                      stride<T>(activations, 0),
                      0,
                      stride<T>(activations, 1),
                      stride<T>(activations, 2)};
  view.backprops = {static_cast<const T*>(backprops.data()),
                    backprops.shape(3),
                    stride<T>(backprops, 0),
                    stride<T>(backprops, 1),
                    stride<T>(backprops, 2),
                    stride<T>(backprops, 3)};
  view.positions = activations.shape(1);
  view.bias = bias;
  view.folded = fold ? backprops.shape(1) : 1;
  FactorView<T> factor;
  factor.examples = backprops.shape(0);
  factor.outputs = fold ? 1 : backprops.shape(1);
  factor.length = view.length();
  factor.outer_product = view;
  if (weights) factor.weights = weights_of<T>(*weights, factor.length);
  return factor;
}

template <class T>
FactorView<T> factor_view(const FactorArguments& arguments) {
  if (const auto* array = std::get_if<py::array>(&arguments)) return vectors<T>(*array);
  if (const auto* gradients = std::get_if<OuterProductArguments>(&arguments)) return outer_product<T>(*gradients);
  const auto& [array, weights] = std::get<std::tuple<py::array, py::array>>(arguments);
  FactorView<T> factor = vectors<T>(array);
  factor.weights = weights_of<T>(weights, factor.length);
  return factor;
}

bool is_single_precision(const FactorArguments& arguments) {
  return std::visit(
      []<class A>(const A& a) {
        if constexpr (std::is_same_v<A, py::array>) {
          return py::isinstance<py::array_t<float>>(a);
        } else {
          return py::isinstance<py::array_t<float>>(std::get<0>(a));
        }
      },
      arguments);
}

template <class T>
FactorPair<T> factor_pair(const FactorArguments& left, const OptionalFactor& right, bool symmetric) {
  if (symmetric) return {factor_view<T>(left), {}};
  if (!right) throw py::value_error("gram: a rectangular Gram needs right factors");
  return {factor_view<T>(left), factor_view<T>(*right)};
}

template <class T>
std::vector<Term<T>> make_terms(const std::vector<TermArguments>& arguments, bool symmetric) {
  std::vector<Term<T>> terms;
  for (const auto& [first, first_right, second, second_right, offset, scale] : arguments) {
    Term<T> term{factor_pair<T>(first, first_right, symmetric), {}, static_cast<T>(offset), static_cast<T>(scale)};
    if (second) term.second = factor_pair<T>(*second, second_right, symmetric);
    terms.push_back(term);
  }
  return terms;
}

// out: (rows, cols), or (kernels, rows, cols) for several kernels at once
template <class T>
void run_gram(const std::vector<TermArguments>& arguments, py::array& out, GramOptions options) {
  const int rows = out.ndim() == 3 ? 1 : 0, cols = rows + 1;
  bool fits = (out.ndim() == 2 || out.ndim() == 3) && (out.shape(cols) == 1 || stride<T>(out, cols) == 1);
  for (int d = 0; fits && d < cols; ++d) {
    fits = out.shape(d) == 1 || out.strides(d) % static_cast<index_t>(sizeof(T)) == 0;
  }
  if (!fits) throw py::value_error("gram: out must be a matrix with contiguous rows, or several of them");
  if (rows == 1) {
    options.kernels = out.shape(0);
    options.kernel_stride = stride<T>(out, 0);
  }
  const auto terms = make_terms<T>(arguments, options.symmetric);
  const MatrixView<T> view{static_cast<T*>(out.mutable_data()), out.shape(rows), out.shape(cols), stride<T>(out, rows)};
  const py::gil_scoped_release release;
  gram<T>(terms, view, options);
}

void bind_gram(const std::vector<TermArguments>& terms, py::array out, bool symmetric, bool accumulate,
               std::size_t workspace, int threads, const std::string& isa, bool bf16) {
  GramOptions options;
  options.bf16 = bf16;
  options.symmetric = symmetric;
  options.accumulate = accumulate;
  options.workspace = workspace;
  options.threads = threads;
  options.isa = isa;
  options.poll = signal_poll();
  if (py::isinstance<py::array_t<float>>(out)) {
    run_gram<float>(terms, out, options);
  } else if (py::isinstance<py::array_t<double>>(out)) {
    run_gram<double>(terms, out, options);
  } else {
    throw py::type_error("gram: out must be float32 or float64");
  }
}

// minimum and full workspace of all terms together, and the largest minimum of a term alone
std::tuple<std::size_t, std::size_t, std::size_t> bind_workspace(const std::vector<TermArguments>& arguments,
                                                                 index_t rows, index_t cols, index_t kernels,
                                                                 bool symmetric, int threads) {
  GramOptions options;
  options.symmetric = symmetric;
  options.threads = threads;
  options.kernels = kernels;
  auto measure = [&]<class T>(T) {
    const auto terms = make_terms<T>(arguments, symmetric);
    const MatrixView<T> out{nullptr, rows, cols, cols};
    const std::span<const Term<T>> all(terms);
    const GramWorkspace need = gram_workspace<T>(all, out, options);
    std::size_t alone = 0;
    for (std::size_t i = 0; i < terms.size(); ++i) {
      alone = std::max(alone, gram_workspace<T>(all.subspan(i, 1), out, options).minimum);
    }
    return std::tuple{need.minimum, need.full, alone};
  };
  if (!arguments.empty() && is_single_precision(std::get<0>(arguments.front()))) return measure(float{});
  return measure(double{});
}

}  // namespace

void register_gram(py::module_& m) {
  using namespace py::literals;
  m.def("gram", &bind_gram, "terms"_a, "out"_a, py::kw_only(), "symmetric"_a, "accumulate"_a = false, "workspace"_a = 0,
        "threads"_a = 0, "isa"_a = "", "bf16"_a = false);
  m.def("gram_workspace", &bind_workspace, "terms"_a, "rows"_a, "cols"_a, py::kw_only(), "kernels"_a = 1, "symmetric"_a,
        "threads"_a = 0);
}

}  // namespace kernelgrowth::python
