#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <vector>

#include "bindings.hpp"
#include "kernelgrowth/statistics.hpp"

namespace kernelgrowth::python {
namespace {

template <class T>
MatrixView<const T> matrix_view(const py::array& array, const char* what) {
  if (!py::isinstance<py::array_t<T>>(array)) throw py::type_error(std::string("statistics: wrong dtype of ") + what);
  const auto item = static_cast<index_t>(sizeof(T));
  if (array.ndim() != 2 || (array.shape(1) > 1 && array.strides(1) != item) || array.strides(0) % item != 0) {
    throw py::value_error(std::string("statistics: ") + what + " must be a matrix with contiguous rows");
  }
  return {static_cast<const T*>(array.data()), array.shape(0), array.shape(1), array.strides(0) / item};
}

py::array_t<double> to_array(const std::vector<double>& values) {
  return py::array_t<double>(static_cast<py::ssize_t>(values.size()), values.data());
}

template <class T>
py::dict run(const py::array& kernel, const std::optional<py::array>& targets, const std::optional<py::array>& other,
             const StatisticsOptions& options) {
  const auto k = matrix_view<T>(kernel, "kernel");
  const auto y = targets ? matrix_view<double>(*targets, "targets") : MatrixView<const double>{};
  const auto second = other ? matrix_view<T>(*other, "other") : MatrixView<const T>{};
  Statistics s;
  {
    const py::gil_scoped_release release;
    s = statistics<T>(k, y, second, options);
  }
  using namespace py::literals;
  return py::dict("squared_norm"_a = s.squared_norm, "trace"_a = s.trace, "row_sums"_a = to_array(s.row_sums),
                  "column_sums"_a = to_array(s.column_sums), "quadratic_forms"_a = to_array(s.quadratic_forms),
                  "inner_product"_a = s.inner_product, "other_squared_norm"_a = s.other_squared_norm,
                  "other_row_sums"_a = to_array(s.other_row_sums),
                  "other_column_sums"_a = to_array(s.other_column_sums));
}

py::dict bind_statistics(const py::array& kernel, const std::optional<py::array>& targets,
                         const std::optional<py::array>& other, int threads, const std::string& isa) {
  const StatisticsOptions options{threads, isa, signal_poll()};
  if (py::isinstance<py::array_t<float>>(kernel)) return run<float>(kernel, targets, other, options);
  return run<double>(kernel, targets, other, options);
}

template <class T>
py::dict run_symmetry(const py::array& matrix, const StatisticsOptions& options) {
  const auto view = matrix_view<T>(matrix, "matrix");
  Symmetry s;
  {
    const py::gil_scoped_release release;
    s = symmetry<T>(view, options);
  }
  using namespace py::literals;
  return py::dict("largest"_a = s.largest, "gap"_a = s.gap, "row"_a = s.row, "column"_a = s.column,
                  "squared_norm"_a = s.squared_norm, "trace"_a = s.trace, "finite"_a = s.finite);
}

py::dict bind_symmetry(const py::array& matrix, int threads, const std::string& isa) {
  const StatisticsOptions options{threads, isa, signal_poll()};
  if (py::isinstance<py::array_t<float>>(matrix)) return run_symmetry<float>(matrix, options);
  return run_symmetry<double>(matrix, options);
}

}  // namespace

void register_statistics(py::module_& m) {
  using namespace py::literals;
  m.def("statistics", &bind_statistics, "kernel"_a, "targets"_a = py::none(), "other"_a = py::none(), py::kw_only(),
        "threads"_a = 0, "isa"_a = "");
  m.def("symmetry", &bind_symmetry, "matrix"_a, py::kw_only(), "threads"_a = 0, "isa"_a = "");
}

}  // namespace kernelgrowth::python
