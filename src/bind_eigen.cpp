#include <dlfcn.h>
#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <string_view>

#include "bindings.hpp"
#include "kernelgrowth/eigen.hpp"
#include "kernelgrowth/lapack.hpp"
#include "kernelgrowth/statistics.hpp"

namespace kernelgrowth::python {
namespace {

using OptionalArray = std::optional<py::array>;

// SciPy's pointers to LAPACK are capsules named by the signature, of which only that with C's int is known here.
template <class Routine>
void take(const py::capsule& capsule, const char* name, int integers, Routine& routine) {
  const std::string_view signature = capsule.name();
  int found = 0;
  for (std::size_t at = 0; (at = signature.find(", int *", at)) != std::string_view::npos; ++at) ++found;
  if (!signature.starts_with("void (char *, char *,") || found != integers) {
    throw py::type_error(std::string("set_lapack: ") + name + " has another signature: " + std::string(signature));
  }
  routine = reinterpret_cast<Routine>(capsule.get_pointer<void>());
}

void bind_lapack(const py::capsule& dsyevd, const py::capsule& dsyevr) {
  Lapack table;
  take(dsyevd, "dsyevd", 6, table.dsyevd);
  take(dsyevr, "dsyevr", 11, table.dsyevr);
  // The OpenBLAS behind it, if it is one, is found through the library that the pointer lies in: there may be others.
  Dl_info where;
  if (dladdr(dsyevd.get_pointer<void>(), &where) != 0) {
    if (void* library = dlopen(where.dli_fname, RTLD_LAZY | RTLD_NOLOAD)) {
      table.set_threads =
          reinterpret_cast<decltype(table.set_threads)>(dlsym(library, "openblas_set_num_threads_local"));
      dlclose(library);
    }
  }
  set_lapack(table);
}

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

py::object interruption(const std::exception_ptr& error) {
  if (!error) return py::none();
  try {
    std::rethrow_exception(error);
  } catch (py::error_already_set& raised) {
    if (raised.matches(PyExc_KeyboardInterrupt)) return raised.value();
    throw;
  }
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
  using namespace py::literals;
  return py::dict(
      "values"_a = py::array_t<double>(static_cast<py::ssize_t>(result.values.size()), result.values.data()),
      "residuals"_a = py::array_t<double>(static_cast<py::ssize_t>(result.residuals.size()), result.residuals.data()),
      "scale"_a = result.scale, "exponent"_a = result.exponent, "passes"_a = result.passes,
      "accepted"_a = result.accepted, "exhausted"_a = result.exhausted, "next_value"_a = result.next_value,
      "projected_squares"_a = result.projected_squares, "projected_trace"_a = result.projected_trace,
      "rest_squares"_a = result.rest_squares, "rest_norm"_a = result.rest_norm,
      "probe_squares"_a = result.probe_squares, "interrupted"_a = interruption(result.error));
}

py::dict bind_krylov(const py::object& operator_, const OptionalArray& start, const OptionalArray& locked,
                     const OptionalArray& probes, py::array vectors, index_t wanted, index_t required, index_t width,
                     double tolerance, double least_scale, double threshold, index_t max_passes, double time_limit,
                     index_t first_check, double pass_operations, std::optional<int> exponent,
                     double symmetry_tolerance, std::uint64_t seed, int threads, const std::string& isa) {
  KrylovOptions options;
  options.wanted = wanted;
  options.required = required;
  options.width = width;
  options.tolerance = tolerance;
  options.least_scale = least_scale;
  options.threshold = threshold;
  options.max_passes = max_passes;
  options.time_limit = time_limit;
  options.first_check = first_check;
  options.pass_operations = pass_operations;
  options.exponent = exponent.value_or(0);
  options.choose_exponent = !exponent;
  options.symmetry_tolerance = symmetry_tolerance;
  options.seed = seed;
  options.threads = threads;
  options.isa = isa;
  options.poll = signal_poll();
  if (py::isinstance<py::array_t<float>>(vectors)) {
    return run<float>(operator_, start, locked, probes, vectors, options);
  }
  return run<double>(operator_, start, locked, probes, vectors, options);
}

}  // namespace

void register_eigen(py::module_& m) {
  using namespace py::literals;
  m.def("set_lapack", &bind_lapack, py::kw_only(), "dsyevd"_a, "dsyevr"_a);
  m.def("block_krylov", &bind_krylov, "operator"_a, "start"_a, "locked"_a, "probes"_a, py::arg("vectors").noconvert(),
        py::kw_only(), "wanted"_a, "required"_a, "width"_a, "tolerance"_a, "least_scale"_a, "threshold"_a,
        "max_passes"_a, "time_limit"_a, "first_check"_a, "pass_operations"_a, "exponent"_a, "symmetry_tolerance"_a,
        "seed"_a, "threads"_a = 0, "isa"_a = "");
}

}  // namespace kernelgrowth::python
