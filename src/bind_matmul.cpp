#include "kernelgrowth/matmul.hpp"

#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <utility>

#include "bindings.hpp"

namespace kernelgrowth::python {
namespace {

using OptionalArray = std::optional<py::array>;
using Sides = std::pair<py::array, py::array>;  // activations (N, T, inputs), backprops (N, C, T, units)

template <class T>
const T* checked(const py::array& array, int ndim, const char* name) {
  if (!py::isinstance<py::array_t<T>>(array)) {
    throw py::type_error(std::string("matmul: ") + name + " must have the dtype of the activations");
  }
  if (array.ndim() != ndim) throw py::value_error(std::string("matmul: wrong number of dimensions of ") + name);
  for (int d = 0; d < ndim; ++d) {
    if (array.shape(d) > 1 && array.strides(d) % static_cast<index_t>(sizeof(T)) != 0) {
      throw py::value_error(std::string("matmul: a stride of ") + name + " is no multiple of the item size");
    }
  }
  return static_cast<const T*>(array.data());
}

template <class T>
index_t stride(const py::array& array, int d) {
  return array.strides(d) / static_cast<index_t>(sizeof(T));
}

template <class T>
OuterProducts<T> outer_products(const Sides& sides) {
  const auto& [a, d] = sides;
  OuterProducts<T> view;
  view.activations = checked<T>(a, 3, "activations");
  view.backprops = checked<T>(d, 4, "backprops");
  if (a.shape(0) != d.shape(0) || a.shape(1) != d.shape(2)) {
    throw py::value_error("matmul: activations and backprops differ in examples or positions");
  }
  view.examples = a.shape(0);
  view.positions = a.shape(1);
  view.inputs = a.shape(2);
  view.outputs = d.shape(1);
  view.units = d.shape(3);
  for (int i = 0; i < 3; ++i) view.activation_strides[i] = stride<T>(a, i);
  for (int i = 0; i < 4; ++i) view.backprop_strides[i] = stride<T>(d, i);
  return view;
}

template <class T>
ProductTerm<T> make_term(const Sides& left, const std::optional<Sides>& right, bool bias, bool fold) {
  ProductTerm<T> term;
  term.left = outer_products<T>(left);
  term.right = right ? outer_products<T>(*right) : term.left;
  term.bias = bias;
  term.fold = fold;
  return term;
}

template <class T>
const T* contiguous(const OptionalArray& array, index_t size) {
  if (!array) return nullptr;
  if (!py::isinstance<py::array_t<T, py::array::c_style>>(*array) || array->size() != size) {
    throw py::value_error("matmul: weights must be contiguous and of the shape and dtype of the gradient");
  }
  return static_cast<const T*>(array->data());
}

template <class T>
void run_matmul(const Sides& left, const std::optional<Sides>& right, const py::array& v, py::array_t<double>& out,
                bool bias, bool fold, const OptionalArray& weights, const OptionalArray& bias_weights, double scale,
                const ProductOptions& options) {
  ProductTerm<T> term = make_term<T>(left, right, bias, fold);
  term.scale = scale;
  term.weights = contiguous<T>(weights, term.left.units * term.left.inputs);
  term.bias_weights = contiguous<T>(bias_weights, term.left.units);
  const VectorsView<T> vectors{checked<T>(v, 2, "v"), v.shape(0), v.shape(1), stride<T>(v, 0), stride<T>(v, 1)};
  if (out.ndim() != 2 || (out.shape(1) > 1 && out.strides(1) != static_cast<index_t>(sizeof(double)))) {
    throw py::value_error("matmul: out must be a matrix with contiguous rows");
  }
  const MatrixView<double> view{out.mutable_data(), out.shape(0), out.shape(1), stride<double>(out, 0)};
  const py::gil_scoped_release release;
  matmul<T>(term, vectors, view, options);
}

void bind_matmul(const Sides& left, const std::optional<Sides>& right, const py::array& v, py::array_t<double> out,
                 bool bias, bool fold, const OptionalArray& weights, const OptionalArray& bias_weights, double scale,
                 bool accumulate, std::size_t workspace, int threads, const std::string& isa) {
  const ProductOptions options{accumulate, workspace, threads, isa, signal_poll()};
  if (py::isinstance<py::array_t<float>>(left.first)) {
    run_matmul<float>(left, right, v, out, bias, fold, weights, bias_weights, scale, options);
  } else if (py::isinstance<py::array_t<double>>(left.first)) {
    run_matmul<double>(left, right, v, out, bias, fold, weights, bias_weights, scale, options);
  } else {
    throw py::type_error("matmul: activations must be float32 or float64");
  }
}

std::pair<std::size_t, std::size_t> bind_workspace(const Sides& left, const std::optional<Sides>& right,
                                                   index_t vectors, bool bias, bool fold, int threads) {
  ProductOptions options;
  options.threads = threads;
  auto measure = [&]<class T>(T) {
    const ProductWorkspace need = matmul_workspace<T>(make_term<T>(left, right, bias, fold), vectors, options);
    return std::pair{need.minimum, need.full};
  };
  return py::isinstance<py::array_t<float>>(left.first) ? measure(float{}) : measure(double{});
}

}  // namespace

void register_matmul(py::module_& m) {
  using namespace py::literals;
  m.def("matmul", &bind_matmul, "left"_a, "right"_a, "v"_a, py::arg("out").noconvert(), py::kw_only(), "bias"_a,
        "fold"_a, "weights"_a = py::none(), "bias_weights"_a = py::none(), "scale"_a = 1.0, "accumulate"_a = false,
        "workspace"_a = 0, "threads"_a = 0, "isa"_a = "");
  m.def("matmul_workspace", &bind_workspace, "left"_a, "right"_a, "vectors"_a, py::kw_only(), "bias"_a, "fold"_a,
        "threads"_a = 0);
}

}  // namespace kernelgrowth::python
