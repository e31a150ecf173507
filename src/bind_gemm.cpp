#include <string>

#include "bindings.hpp"
#include "kernelgrowth/gemm.hpp"

namespace kernelgrowth::python {
namespace {

template <class T>
StridedMatrix<T> strided(const py::array& array, const char* name) {
  const std::string what = std::string("gemm: ") + name;
  if (!py::isinstance<py::array_t<T>>(array)) {
    throw py::type_error("gemm: a, b and out must all be float32 or all float64");
  }
  constexpr py::ssize_t size = sizeof(T);
  if (array.ndim() != 2) throw py::value_error(what + " must be a matrix");
  if (array.strides(0) % size != 0 || array.strides(1) % size != 0) {
    throw py::value_error(what + " has strides between elements");
  }
  return {static_cast<const T*>(array.data()), array.shape(0), array.shape(1), array.strides(0) / size,
          array.strides(1) / size};
}

// Preparing to answer Ctrl-C would cost a small product more than its arithmetic.
constexpr double long_product = 1e8;

template <class T>
void run(const py::array& a, const py::array& b, const py::array& out, GemmOptions options) {
  const auto left = strided<T>(a, "a"), right = strided<T>(b, "b"), result = strided<T>(out, "out");
  if (!out.writeable()) throw py::value_error("gemm: out must be writeable");
  if ((result.cols > 1 && result.col_stride != 1) || (result.rows > 1 && result.row_stride < result.cols)) {
    throw py::value_error("gemm: the rows of out must be contiguous and follow one another");
  }
  const double operations = static_cast<double>(left.rows * left.cols) * static_cast<double>(right.cols);
  if (operations > long_product) options.poll = signal_poll();
  const py::gil_scoped_release release;
  gemm<T>(left, right, {const_cast<T*>(result.data), result.rows, result.cols, result.row_stride}, options);
}

}  // namespace

void register_gemm(py::module_& m) {
  using namespace py::literals;
  m.def(
      "gemm",
      [](const py::array& a, const py::array& b, const py::array& out, int threads, const std::string& isa) {
        const GemmOptions options{threads, isa, {}, false};
        if (py::isinstance<py::array_t<float>>(a)) {
          run<float>(a, b, out, options);
        } else {
          run<double>(a, b, out, options);
        }
      },
      "a"_a, "b"_a, "out"_a, py::kw_only(), "threads"_a = 0, "isa"_a = "");
}

}  // namespace kernelgrowth::python
