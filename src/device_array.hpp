// An array on a CUDA device, as __cuda_array_interface__ (version 3) describes it.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace kernelgrowth::python {

namespace py = pybind11;

class DeviceArray {
 public:
  DeviceArray() = default;
  explicit DeviceArray(const py::object& array) {
    const py::dict interface = array.attr("__cuda_array_interface__");
    const auto [address, read_only] = interface["data"].cast<std::pair<std::uintptr_t, bool>>();
    address_ = address;
    read_only_ = read_only;
    type_ = interface["typestr"].cast<std::string>();
    shape_ = interface["shape"].cast<std::vector<py::ssize_t>>();
    py::object strides = py::none();
    if (interface.contains("strides")) strides = interface["strides"];
    if (strides.is_none()) {
      strides_.resize(shape_.size());
      py::ssize_t stride = type_ == "<f8" ? 8 : 4;
      for (std::size_t d = shape_.size(); d-- > 0;) {
        strides_[d] = stride;
        stride *= shape_[d];
      }
    } else {
      strides_ = strides.cast<std::vector<py::ssize_t>>();
    }
  }

  py::ssize_t ndim() const { return static_cast<py::ssize_t>(shape_.size()); }
  py::ssize_t shape(int dimension) const { return shape_[static_cast<std::size_t>(dimension)]; }
  py::ssize_t strides(int dimension) const { return strides_[static_cast<std::size_t>(dimension)]; }
  const void* data() const { return reinterpret_cast<const void*>(address_); }
  void* mutable_data() const {
    if (read_only_) throw py::value_error("out must be writeable");
    return reinterpret_cast<void*>(address_);
  }
  const std::string& type() const { return type_; }

 private:
  std::uintptr_t address_ = 0;
  bool read_only_ = false;
  std::string type_;
  std::vector<py::ssize_t> shape_, strides_;
};

template <class T>
bool holds(const DeviceArray& array) {
  return array.type() == (sizeof(T) == 4 ? "<f4" : "<f8");
}

}  // namespace kernelgrowth::python

namespace pybind11::detail {

template <>
struct type_caster<kernelgrowth::python::DeviceArray> {
  PYBIND11_TYPE_CASTER(kernelgrowth::python::DeviceArray, const_name("object"));

  bool load(handle source, bool) {
    if (!hasattr(source, "__cuda_array_interface__")) return false;
    value = kernelgrowth::python::DeviceArray(reinterpret_borrow<object>(source));
    return true;
  }
};

}  // namespace pybind11::detail
