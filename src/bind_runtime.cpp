#include <pybind11/stl.h>

#include "bindings.hpp"
#include "kernelgrowth/peak.hpp"

namespace kernelgrowth::python {

void register_runtime(py::module_& m) {
  m.def("default_threads", &default_threads);
  m.def("available_isas", &available_isas);
  m.def("active_isa", &active_isa);
  m.def("has_bf16", &has_bf16);
  m.def(
      "multiply_add_peak",
      [](bool double_precision, int threads, const std::string& isa, bool quick) {
        const py::gil_scoped_release release;
        return double_precision ? multiply_add_peak<double>(threads, isa, quick)
                                : multiply_add_peak<float>(threads, isa, quick);
      },
      py::kw_only(), py::arg("double_precision") = false, py::arg("threads") = 0, py::arg("isa") = "",
      py::arg("quick") = false);
  m.def(
      "copy_bandwidth",
      [](int threads) {
        const py::gil_scoped_release release;
        return copy_bandwidth(threads);
      },
      py::kw_only(), py::arg("threads") = 0);
}

}  // namespace kernelgrowth::python
