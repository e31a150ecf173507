// What both modules' eigensolvers are told and tell.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <exception>
#include <string>

#include "kernelgrowth/eigen.hpp"

namespace kernelgrowth::python {

namespace py = pybind11;

// The options by name; those that are not given stay as they are.
inline KrylovOptions krylov_options(const py::kwargs& given) {
  KrylovOptions options;
  std::size_t taken = 0;
  auto take = [&]<class Value>(const char* name, Value& value) {
    if (!given.contains(name)) return;
    value = given[name].cast<Value>();
    ++taken;
  };
  take("wanted", options.wanted);
  take("required", options.required);
  take("width", options.width);
  take("tolerance", options.tolerance);
  take("least_scale", options.least_scale);
  take("threshold", options.threshold);
  take("max_passes", options.max_passes);
  take("time_limit", options.time_limit);
  take("first_check", options.first_check);
  take("pass_operations", options.pass_operations);
  take("symmetry_tolerance", options.symmetry_tolerance);
  take("seed", options.seed);
  take("threads", options.threads);
  take("isa", options.isa);
  options.choose_exponent = !given.contains("exponent");
  take("exponent", options.exponent);
  if (taken != given.size()) throw py::type_error("block_krylov: there is an option of another name");
  return options;
}

inline py::object interruption(const std::exception_ptr& error) {
  if (!error) return py::none();
  try {
    std::rethrow_exception(error);
  } catch (py::error_already_set& raised) {
    if (raised.matches(PyExc_KeyboardInterrupt)) return raised.value();
    throw;
  }
}

inline py::dict krylov_result(const KrylovResult& result) {
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

}  // namespace kernelgrowth::python
