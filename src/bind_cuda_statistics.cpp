#include <cstdint>
#include <optional>
#include <string>
#include <tuple>

#include "bindings.hpp"
#include "device_array.hpp"
#include "kernelgrowth/cuda_statistics.hpp"

namespace kernelgrowth::python {
namespace {

template <class T>
MatrixView<const T> rows_of(const DeviceArray& array, const char* name) {
  constexpr auto item = static_cast<index_t>(sizeof(T));
  const bool fits = array.ndim() == 2 && holds<T>(array) && (array.shape(1) < 2 || array.strides(1) == item) &&
                    array.strides(0) % item == 0;
  if (!fits) {
    throw py::value_error(std::string("statistics: ") + name + " must be a matrix with contiguous rows, of one dtype");
  }
  return {static_cast<const T*>(array.data()), array.shape(0), array.shape(1), array.strides(0) / item};
}

template <class T>
void run_statistics(const DeviceArray& kernel, const std::optional<DeviceArray>& targets,
                    const std::optional<DeviceArray>& other, const DeviceArray& results,
                    const cuda::StatisticsOptions& options) {
  const auto k = rows_of<T>(kernel, "kernel");
  const auto y = targets ? rows_of<double>(*targets, "targets") : MatrixView<const double>{};
  const auto k2 = other ? rows_of<T>(*other, "other") : MatrixView<const T>{};
  if (k.rows < 1 || k.cols < 1) throw py::value_error("statistics: kernel must not be empty");
  if (other && (k2.rows != k.rows || k2.cols != k.cols)) {
    throw py::value_error("statistics: the two kernels differ in shape");
  }
  if (targets && (k.rows != k.cols || y.cols != k.rows)) {
    throw py::value_error("statistics: targets need a square kernel of their length");
  }
  const cuda::StatisticsLayout layout{k.rows, k.cols, y.rows, other.has_value()};
  const bool enough = holds<double>(results) && results.ndim() == 1 && results.shape(0) == layout.size() &&
                      results.strides(0) == static_cast<index_t>(sizeof(double));
  if (!enough) throw py::value_error("statistics: results must be doubles, as many as are found");
  auto* out = static_cast<double*>(results.mutable_data());
  const py::gil_scoped_release release;
  cuda::statistics<T>(k, y, k2, out, options);
}

void bind_statistics(const DeviceArray& kernel, const std::optional<DeviceArray>& targets,
                     const std::optional<DeviceArray>& other, const DeviceArray& results, std::uintptr_t workspace,
                     std::uintptr_t stream) {
  const cuda::StatisticsOptions options{reinterpret_cast<void*>(workspace), reinterpret_cast<void*>(stream)};
  if (holds<float>(kernel)) {
    run_statistics<float>(kernel, targets, other, results, options);
  } else if (holds<double>(kernel)) {
    run_statistics<double>(kernel, targets, other, results, options);
  } else {
    throw py::type_error("statistics: kernel must be float32 or float64");
  }
}

}  // namespace

void register_cuda_statistics(py::module_& m) {
  using namespace py::literals;
  m.def("statistics", &bind_statistics, "kernel"_a, "targets"_a, "other"_a, "results"_a, py::kw_only(), "workspace"_a,
        "stream"_a = 0);
  m.def(
      "statistics_layout",
      [](index_t rows, index_t columns, index_t targets, bool two) {
        const cuda::StatisticsLayout layout{rows, columns, targets, two};
        py::dict first;
        first["row_sums"] = py::make_tuple(layout.row_sums(), rows);
        first["column_sums"] = py::make_tuple(layout.column_sums(), columns);
        first["other_row_sums"] = py::make_tuple(layout.other_row_sums(), two ? rows : 0);
        first["other_column_sums"] = py::make_tuple(layout.other_column_sums(), two ? columns : 0);
        first["quadratic_forms"] = py::make_tuple(layout.quadratic_forms(), targets);
        first["squared_norm"] = layout.squared_norm();
        first["trace"] = layout.trace();
        first["inner_product"] = layout.inner_product();
        first["other_squared_norm"] = layout.other_squared_norm();
        return py::make_tuple(first, layout.size(), cuda::statistics_workspace(layout));
      },
      "Where each result lies (and how many there are, where there may be several), how many doubles they are, and the "
      "bytes of workspace.",
      "rows"_a, "columns"_a, "targets"_a, "two"_a);
}

}  // namespace kernelgrowth::python
