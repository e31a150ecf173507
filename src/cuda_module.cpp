#include <pybind11/pybind11.h>

#include "bindings.hpp"
#include "kernelgrowth/cuda.hpp"
#include "kernelgrowth/error.hpp"

namespace py = pybind11;
namespace cuda = kernelgrowth::cuda;
using namespace py::literals;

PYBIND11_MODULE(_cuda, m, py::mod_gil_not_used()) {
  m.doc() = "The compiled CUDA part. Importing it needs neither a GPU nor a driver.";
  py::register_local_exception<kernelgrowth::WorkspaceTooSmall>(m, "WorkspaceTooSmall", PyExc_MemoryError);
  kernelgrowth::python::register_lapack(m);
  kernelgrowth::python::register_cuda_eigen(m);
  kernelgrowth::python::register_cuda_gram(m);
  kernelgrowth::python::register_cuda_statistics(m);
  m.def("compiled_architectures", &cuda::compiled_architectures);
  m.def("runtime_version", &cuda::runtime_version);
  m.def("driver_version", &cuda::driver_version);
  m.def(
      "devices",
      [] {
        std::string problem;
        py::list list;
        for (const auto& device : cuda::devices(problem)) {
          list.append(py::dict("name"_a = device.name, "compute_capability"_a = device.compute_capability,
                               "memory_bytes"_a = device.memory_bytes, "runs_this_build"_a = device.runs_this_build,
                               "problem"_a = device.problem));
        }
        return py::make_tuple(list, problem);
      },
      "The devices CUDA sees, and CUDA's own words where it sees none.");
}
