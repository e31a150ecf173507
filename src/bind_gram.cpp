#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "bindings.hpp"
#include "kernelgrowth/gram.hpp"

namespace kernelgrowth::python {
namespace {

using OptionalArray = std::optional<py::array>;
// first left, first right, second left, second right, offset, scale
using TermArguments = std::tuple<py::array, OptionalArray, OptionalArray, OptionalArray, double, double>;

template <class T>
FactorView<T> factor_view(const py::array& array) {
  if (!py::isinstance<py::array_t<T>>(array)) throw py::type_error("gram: factors and out must share one dtype");
  if (array.ndim() != 3) throw py::value_error("gram: a factor must have the shape (examples, outputs, length)");
  const auto item = static_cast<index_t>(sizeof(T));
  for (int d = 0; d < 3; ++d) {
    if (array.shape(d) > 1 && array.strides(d) % item != 0) {
      throw py::value_error("gram: a stride is no multiple of the item size");
    }
  }
  return {static_cast<const T*>(array.data()),
          array.shape(0),
          array.shape(1),
          array.shape(2),
          array.strides(0) / item,
          array.strides(1) / item,
          array.strides(2) / item};
}

template <class T>
FactorPair<T> factor_pair(const py::array& left, const OptionalArray& right, bool symmetric) {
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

template <class T>
void run_gram(const std::vector<TermArguments>& arguments, py::array& out, GramOptions options) {
  if (out.ndim() != 2 || (out.shape(1) > 1 && out.strides(1) != static_cast<index_t>(sizeof(T))) ||
      (out.shape(0) > 1 && out.strides(0) % static_cast<index_t>(sizeof(T)) != 0)) {
    throw py::value_error("gram: out must be a matrix with contiguous rows");
  }
  const auto terms = make_terms<T>(arguments, options.symmetric);
  const MatrixView<T> view{static_cast<T*>(out.mutable_data()), out.shape(0), out.shape(1),
                           out.strides(0) / static_cast<index_t>(sizeof(T))};
  const py::gil_scoped_release release;
  gram<T>(terms, view, options);
}

void bind_gram(const std::vector<TermArguments>& terms, py::array out, bool symmetric, bool accumulate,
               std::size_t workspace, int threads, const std::string& isa) {
  const GramOptions options{symmetric, accumulate, workspace, threads, isa, signal_poll()};
  if (py::isinstance<py::array_t<float>>(out)) {
    run_gram<float>(terms, out, options);
  } else if (py::isinstance<py::array_t<double>>(out)) {
    run_gram<double>(terms, out, options);
  } else {
    throw py::type_error("gram: out must be float32 or float64");
  }
}

std::pair<std::size_t, std::size_t> bind_workspace(const std::vector<TermArguments>& terms, index_t rows, index_t cols,
                                                   bool symmetric, int threads) {
  GramOptions options;
  options.symmetric = symmetric;
  options.threads = threads;
  auto measure = [&]<class T>(T) {
    const auto list = make_terms<T>(terms, symmetric);
    const GramWorkspace need = gram_workspace<T>(list, MatrixView<T>{nullptr, rows, cols, cols}, options);
    return std::pair{need.minimum, need.full};
  };
  if (!terms.empty() && py::isinstance<py::array_t<float>>(std::get<0>(terms.front()))) return measure(float{});
  return measure(double{});
}

}  // namespace

void register_gram(py::module_& m) {
  using namespace py::literals;
  m.def("gram", &bind_gram, "terms"_a, "out"_a, py::kw_only(), "symmetric"_a, "accumulate"_a = false, "workspace"_a = 0,
        "threads"_a = 0, "isa"_a = "");
  m.def("gram_workspace", &bind_workspace, "terms"_a, "rows"_a, "cols"_a, py::kw_only(), "symmetric"_a,
        "threads"_a = 0);
}

}  // namespace kernelgrowth::python
