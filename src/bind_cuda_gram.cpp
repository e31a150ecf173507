#include <cstdint>
#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "device_array.hpp"
#include "gram_arguments.hpp"
#include "kernelgrowth/cuda_gram.hpp"

namespace kernelgrowth::python {
namespace {

using Arguments = GramArguments<DeviceArray>;
using cuda::Precision;

Precision precision_named(const std::string& name) {
  static const std::map<std::string, Precision> names{{"bf16", Precision::bf16},
                                                      {"tf32", Precision::tf32},
                                                      {"float32", Precision::float32},
                                                      {"simt", Precision::simt},
                                                      {"float64", Precision::float64}};
  const auto found = names.find(name);
  if (found == names.end()) throw py::value_error("gram: no precision is named '" + name + "'");
  return found->second;
}

template <class T>
void run_gram(const std::vector<Arguments::Term>& arguments, DeviceArray& out, cuda::GramOptions options) {
  const MatrixView<T> view = Arguments::output<T>(out, options.kernels, options.kernel_stride);
  const auto terms = Arguments::make_terms<T>(arguments, options.symmetric);
  const py::gil_scoped_release release;
  cuda::gram<T>(terms, view, options);
}

void bind_gram(const std::vector<Arguments::Term>& terms, DeviceArray out, bool symmetric, bool accumulate,
               const std::string& precision, std::uintptr_t workspace, std::size_t workspace_bytes,
               std::uintptr_t stream) {
  cuda::GramOptions options;
  options.symmetric = symmetric;
  options.accumulate = accumulate;
  options.precision = precision_named(precision);
  options.workspace = reinterpret_cast<void*>(workspace);
  options.workspace_bytes = workspace_bytes;
  options.stream = reinterpret_cast<void*>(stream);
  if (holds<float>(out)) {
    run_gram<float>(terms, out, options);
  } else if (holds<double>(out)) {
    run_gram<double>(terms, out, options);
  } else {
    throw py::type_error("gram: out must be float32 or float64");
  }
}

std::tuple<std::size_t, std::size_t> bind_workspace(const std::vector<Arguments::Term>& arguments, index_t rows,
                                                    index_t cols, index_t kernels, bool symmetric,
                                                    const std::string& precision) {
  cuda::GramOptions options;
  options.symmetric = symmetric;
  options.kernels = kernels;
  options.precision = precision_named(precision);
  auto measure = [&]<class T>(T) {
    const auto terms = Arguments::make_terms<T>(arguments, symmetric);
    const GramWorkspace need = cuda::gram_workspace<T>(terms, {nullptr, rows, cols, cols}, options);
    return std::tuple{need.minimum, need.full};
  };
  return options.precision == Precision::float64 ? measure(double{}) : measure(float{});
}

}  // namespace

void register_cuda_gram(py::module_& m) {
  using namespace py::literals;
  m.def("gram", &bind_gram, "terms"_a, "out"_a, py::kw_only(), "symmetric"_a, "accumulate"_a = false, "precision"_a,
        "workspace"_a, "workspace_bytes"_a, "stream"_a = 0);
  m.def("gram_workspace", &bind_workspace, "terms"_a, "rows"_a, "cols"_a, py::kw_only(), "kernels"_a = 1, "symmetric"_a,
        "precision"_a);
}

}  // namespace kernelgrowth::python
