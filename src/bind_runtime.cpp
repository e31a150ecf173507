#include <pybind11/stl.h>

#include "bindings.hpp"

namespace kernelgrowth::python {

void register_runtime(py::module_& m) {
  m.def("default_threads", &default_threads);
  m.def("available_isas", &available_isas);
  m.def("active_isa", &active_isa);
}

}  // namespace kernelgrowth::python
