#include <string>

#include "bindings.hpp"
#include "kernelgrowth/im2col.hpp"

namespace kernelgrowth::python {
namespace {

using Pair = std::pair<index_t, index_t>;

template <class T>
T* contiguous(const py::array& array, const char* what, std::initializer_list<index_t> shape, bool written) {
  if (!py::isinstance<py::array_t<T>>(array)) {
    throw py::type_error("im2col: images and columns must both be float32 or both float64");
  }
  bool fits = array.ndim() == static_cast<py::ssize_t>(shape.size()) &&
              (array.flags() & py::array::c_style) == py::array::c_style;
  for (py::ssize_t d = 0; fits && d < array.ndim(); ++d) fits = array.shape(d) == *(shape.begin() + d);
  if (!fits) throw py::value_error(std::string("im2col: ") + what + " must be contiguous and of the windows' shape");
  if (written && !array.writeable()) throw py::value_error(std::string("im2col: ") + what + " must be writeable");
  return const_cast<T*>(static_cast<const T*>(array.data()));
}

template <class T>
void run(bool transpose, const py::array& images, const py::array& columns, const Windows& w,
         const WindowOptions& options) {
  T* pixels = contiguous<T>(images, "images", {w.images, w.height, w.width, w.channels}, transpose);
  T* rows = contiguous<T>(columns, "columns", {w.images, w.out_height() * w.out_width(), w.column_size()}, !transpose);
  const py::gil_scoped_release release;
  if (transpose) {
    col2im<T>(rows, w, pixels, options);
  } else {
    im2col<T>(pixels, w, rows, options);
  }
}

void bind(bool transpose, const py::array& images, const py::array& columns, Pair kernel, Pair stride, Pair padding,
          int threads) {
  if (images.ndim() != 4) throw py::value_error("im2col: images must have the shape (N, H, W, C)");
  if (std::min(stride.first, stride.second) < 1) throw py::value_error("im2col: stride must be at least 1");
  const Windows windows{images.shape(0), images.shape(1), images.shape(2), images.shape(3), kernel.first,
                        kernel.second,   stride.first,    stride.second,   padding.first,   padding.second};
  const WindowOptions options{threads, signal_poll()};
  if (py::isinstance<py::array_t<float>>(images)) {
    run<float>(transpose, images, columns, windows, options);
  } else {
    run<double>(transpose, images, columns, windows, options);
  }
}

}  // namespace

void register_im2col(py::module_& m) {
  using namespace py::literals;
  m.def(
      "im2col",
      [](const py::array& images, const py::array& columns, Pair kernel, Pair stride, Pair padding, int threads) {
        bind(false, images, columns, kernel, stride, padding, threads);
      },
      "images"_a, "columns"_a, py::kw_only(), "kernel"_a, "stride"_a, "padding"_a, "threads"_a = 0);
  m.def(
      "col2im",
      [](const py::array& columns, const py::array& images, Pair kernel, Pair stride, Pair padding, int threads) {
        bind(true, images, columns, kernel, stride, padding, threads);
      },
      "columns"_a, "images"_a, py::kw_only(), "kernel"_a, "stride"_a, "padding"_a, "threads"_a = 0);
}

}  // namespace kernelgrowth::python
