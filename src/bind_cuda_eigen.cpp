#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "bindings.hpp"
#include "device_array.hpp"
#include "kernelgrowth/cuda_eigen.hpp"
#include "krylov_arguments.hpp"

namespace kernelgrowth::python {
namespace {

using OptionalArray = std::optional<DeviceArray>;

template <class T>
MatrixView<const T> columns(const OptionalArray& array, const char* name) {
  if (!array) return {};
  constexpr auto item = static_cast<py::ssize_t>(sizeof(T));
  const bool fits = holds<T>(*array) && array->ndim() == 2 && (array->shape(1) < 2 || array->strides(1) == item) &&
                    (array->shape(0) < 2 || array->strides(0) == array->shape(1) * item);
  if (!fits) {
    throw py::type_error(std::string("block_krylov: ") + name + " must be a contiguous matrix of the vectors' dtype");
  }
  return {static_cast<const T*>(array->data()), array->shape(0), array->shape(1), array->shape(1)};
}

// Memory of Python's, an object with its address as `ptr`.
cuda::Room room(const py::function& allocate, void* stream) {
  auto take = [&allocate](std::size_t bytes) {
    const py::gil_scoped_acquire gil;
    auto memory = std::make_unique<py::object>(allocate(bytes));
    void* address = reinterpret_cast<void*>(memory->attr("ptr").cast<std::uintptr_t>());
    auto release = [](py::object* held) {
      const py::gil_scoped_acquire again;
      delete held;
    };
    const std::shared_ptr<py::object> holder(memory.release(), release);
    return std::shared_ptr<void>(holder, address);
  };
  return {take, stream};
}

// A function of a contiguous block that returns one.
template <class T>
BlockProduct<T> called(const py::function& function, const py::function& new_block, void* stream) {
  return [&function, &new_block, stream](const MatrixView<const T>& v, const MatrixView<T>& out) {
    const py::gil_scoped_acquire gil;
    const py::object block = new_block(v.rows, v.cols);
    const auto given = columns<T>(DeviceArray(block), "a block");
    cuda::copy<T>(v, {const_cast<T*>(given.data), v.rows, v.cols, given.row_stride}, stream);
    const py::object result = function(block);
    const auto product = columns<T>(DeviceArray(result), "a product");
    if (product.rows != v.rows || product.cols != v.cols) {
      throw py::value_error("block_krylov: the operator must return a block of the shape it got");
    }
    cuda::copy<T>(product, out, stream);
  };
}

template <class T>
py::dict run(const py::function& function, const OptionalArray& block, const OptionalArray& locked,
             const OptionalArray& probes, const DeviceArray& vectors, const KrylovOptions& options,
             const py::function& new_block, const cuda::Room& room) {
  const KrylovStart<T> start{columns<T>(block, "start"), columns<T>(locked, "locked"), columns<T>(probes, "probes")};
  const auto out = columns<T>(vectors, "vectors");
  const MatrixView<T> view{static_cast<T*>(vectors.mutable_data()), out.rows, out.cols, out.row_stride};
  const BlockProduct<T> product = called<T>(function, new_block, room.stream);
  KrylovResult result;
  {
    const py::gil_scoped_release release;
    result = cuda::block_krylov<T>(product, start, view, options, room);
  }
  return krylov_result(result);
}

py::dict bind_krylov(const py::function& function, const OptionalArray& start, const OptionalArray& locked,
                     const OptionalArray& probes, const DeviceArray& vectors, const py::function& new_block,
                     const py::function& allocate, std::uintptr_t stream, const py::kwargs& given) {
  const KrylovOptions options = krylov_options(given);
  const cuda::Room memory = room(allocate, reinterpret_cast<void*>(stream));
  if (holds<float>(vectors)) {
    return run<float>(function, start, locked, probes, vectors, options, new_block, memory);
  }
  return run<double>(function, start, locked, probes, vectors, options, new_block, memory);
}

}  // namespace

void register_cuda_eigen(py::module_& m) {
  using namespace py::literals;
  m.def("block_krylov", &bind_krylov, "operator"_a, "start"_a, "locked"_a, "probes"_a, "vectors"_a, "new_block"_a,
        "allocate"_a, "stream"_a);
}

}  // namespace kernelgrowth::python
