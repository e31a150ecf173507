#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <chrono>

#include "kernelgrowth/runtime.hpp"

namespace kernelgrowth::python {

namespace py = pybind11;

void register_runtime(py::module_& m);
void register_eigen(py::module_& m);
void register_lapack(py::module_& m);
void register_gram(py::module_& m);
void register_gemm(py::module_& m);
void register_matmul(py::module_& m);
void register_im2col(py::module_& m);
void register_statistics(py::module_& m);

void register_cuda_eigen(py::module_& m);
void register_cuda_gram(py::module_& m);
void register_cuda_statistics(py::module_& m);

// Answers Ctrl-C from inside a long call: takes the GIL a few times a second and raises what a signal handler raised.
// Python runs signal handlers on its main thread only. Other threads must not ask: while the interpreter shuts down,
// asking for the GIL ends a daemon thread by a forced unwinding, which C++ frames on the way would turn into an abort.
// Call it with the GIL held.
inline Poll signal_poll() {
  const auto threading = py::module_::import("threading");
  if (!threading.attr("get_ident")().equal(threading.attr("main_thread")().attr("ident"))) return {};
  using clock = std::chrono::steady_clock;
  return [last = clock::now()]() mutable {
    const auto now = clock::now();
    if (now - last < std::chrono::milliseconds(50)) return;
    last = now;
    const py::gil_scoped_acquire gil;
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
  };
}

}  // namespace kernelgrowth::python
