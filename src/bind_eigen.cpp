#include <pybind11/stl.h>

#include <optional>
#include <string>

#include "bindings.hpp"
#include "kernelgrowth/eigen.hpp"
#include "krylov_arguments.hpp"

namespace kernelgrowth::python {
namespace {

using OptionalArray = std::optional<py::array>;

template <class T>
MatrixView<const T> columns(const OptionalArray& array, const char* name) {
  if (!array) return {};
  if (!py::isinstance<py::array_t<T, py::array::c_style>>(*array) || array->ndim() != 2) {
    throw py::type_error(std::string("block_krylov: ") + name + " must be a contiguous matrix of the vectors' dtype");
  }
  return {static_cast<const T*>(array->data()), array->shape(0), array->shape(1), array->shape(1)};
}

template <class T>
BlockProduct<T> stored(const py::array& matrix, index_t rows, const KrylovOptions& options) {
  constexpr auto size = static_cast<py::ssize_t>(sizeof(T));
  if (!py::isinstance<py::array_t<T>>(matrix) || matrix.ndim() != 2 || matrix.shape(0) != rows ||
      matrix.shape(1) != rows || matrix.strides(0) % size != 0 || matrix.strides(1) % size != 0) {
    throw py::type_error("block_krylov: a stored operator must be a square matrix of the vectors' rows and dtype");
  }
  const StridedMatrix<T> view{static_cast<const T*>(matrix.data()), rows, rows, matrix.strides(0) / size,
                              matrix.strides(1) / size};
  return stored_product<T>(view, {options.threads, options.isa, options.poll, false});
}

// A function of a contiguous block that returns one.
template <class T>
BlockProduct<T> called(const py::function& function) {
  return [&function](const MatrixView<const T>& v, const MatrixView<T>& out) {
    const py::gil_scoped_acquire gil;
    py::array_t<T> block({v.rows, v.cols});
    for (index_t i = 0; i < v.rows; ++i) std::copy_n(v.row(i), v.cols, block.mutable_data() + i * v.cols);
    const py::array product = function(block);
    if (!py::isinstance<py::array_t<T, py::array::c_style>>(product) || product.ndim() != 2 ||
        product.shape(0) != v.rows || product.shape(1) != v.cols) {
      throw py::value_error("block_krylov: the operator must return a contiguous block of the shape and dtype it got");
    }
    const T* data = static_cast<const T*>(product.data());
    for (index_t i = 0; i < v.rows; ++i) std::copy_n(data + i * v.cols, v.cols, out.row(i));
  };
}

template <class T>
py::dict run(const py::object& matrix, const OptionalArray& block, const OptionalArray& locked,
             const OptionalArray& probes, py::array& vectors, const KrylovOptions& options) {
  const KrylovStart<T> start{columns<T>(block, "start"), columns<T>(locked, "locked"), columns<T>(probes, "probes")};
  const auto out = columns<T>(vectors, "vectors");
  const MatrixView<T> view{static_cast<T*>(vectors.mutable_data()), out.rows, out.cols, out.row_stride};
  const bool is_stored = py::isinstance<py::array>(matrix);
  const py::function function = is_stored ? py::function() : py::function(matrix);
  const BlockProduct<T> product = is_stored ? stored<T>(py::array(matrix), out.rows, options) : called<T>(function);
  KrylovResult result;
  {
    const py::gil_scoped_release release;
    result = block_krylov<T>(product, start, view, options);
  }
  return krylov_result(result);
}

py::dict bind_krylov(const py::object& operator_, const OptionalArray& start, const OptionalArray& locked,
                     const OptionalArray& probes, py::array vectors, const py::kwargs& given) {
  KrylovOptions options = krylov_options(given);
  options.poll = signal_poll();
  if (py::isinstance<py::array_t<float>>(vectors)) {
    return run<float>(operator_, start, locked, probes, vectors, options);
  }
  return run<double>(operator_, start, locked, probes, vectors, options);
}

}  // namespace

void register_eigen(py::module_& m) {
  using namespace py::literals;
  m.def("block_krylov", &bind_krylov, "operator"_a, "start"_a, "locked"_a, "probes"_a, py::arg("vectors").noconvert());
}

}  // namespace kernelgrowth::python
