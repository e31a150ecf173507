#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <chrono>

#include "kernelgrowth/runtime.hpp"

namespace kernelgrowth::python {

namespace py = pybind11;

void register_runtime(py::module_& m);
void register_gram(py::module_& m);
void register_statistics(py::module_& m);

// Answers Ctrl-C from inside a long call: takes the GIL a few times a second and raises what a signal handler raised.
inline Poll signal_poll() {
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
