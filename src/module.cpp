#include "bindings.hpp"
#include "kernelgrowth/error.hpp"

namespace py = pybind11;

PYBIND11_MODULE(_core, m, py::mod_gil_not_used()) {
  m.doc() = "The compiled CPU core. Arguments are checked by kernelgrowth._backend.native, the only importer.";
  // InvalidArgument is a std::invalid_argument, which pybind11 turns into ValueError.
  py::register_local_exception<kernelgrowth::WorkspaceTooSmall>(m, "WorkspaceTooSmall", PyExc_MemoryError);
  kernelgrowth::python::register_runtime(m);
  kernelgrowth::python::register_lapack(m);
  kernelgrowth::python::register_eigen(m);
  kernelgrowth::python::register_gram(m);
  kernelgrowth::python::register_gemm(m);
  kernelgrowth::python::register_matmul(m);
  kernelgrowth::python::register_im2col(m);
  kernelgrowth::python::register_statistics(m);
}
