// A Gram's terms as Python hands them over. `Array` is py::array, or a device's array that answers the same questions.
#pragma once

#include <pybind11/stl.h>

#include <algorithm>
#include <optional>
#include <string>
#include <tuple>
#include <variant>
#include <vector>

#include "bindings.hpp"
#include "kernelgrowth/gram.hpp"

namespace kernelgrowth::python {

template <class T>
bool holds(const py::array& array) {
  return py::isinstance<py::array_t<T>>(array);
}

template <class Array>
class GramArguments {
 public:
  using OptionalArray = std::optional<Array>;
  // activations, backprops, bias, fold, weights
  using OuterProduct = std::tuple<Array, Array, bool, bool, OptionalArray>;
  // A factor's vectors as they stand, with weights, or written out as they are packed.
  using Factor = std::variant<Array, std::tuple<Array, Array>, OuterProduct>;
  using OptionalFactor = std::optional<Factor>;
  // first left, first right, second left, second right, offset, scale
  using Term = std::tuple<Factor, OptionalFactor, OptionalFactor, OptionalFactor, double, double>;

  template <class T>
  static std::vector<kernelgrowth::Term<T>> make_terms(const std::vector<Term>& arguments, bool symmetric) {
    std::vector<kernelgrowth::Term<T>> terms;
    for (const auto& [first, first_right, second, second_right, offset, scale] : arguments) {
      kernelgrowth::Term<T> term{
          factor_pair<T>(first, first_right, symmetric), {}, static_cast<T>(offset), static_cast<T>(scale)};
      if (second) term.second = factor_pair<T>(*second, second_right, symmetric);
      terms.push_back(term);
    }
    return terms;
  }

  static bool is_single_precision(const Factor& arguments) {
    return std::visit(
        []<class A>(const A& a) {
          if constexpr (std::is_same_v<A, Array>) {
            return holds<float>(a);
          } else {
            return holds<float>(std::get<0>(a));
          }
        },
        arguments);
  }

  // (rows, cols), or (kernels, rows, cols) for several kernels at once, whose number and distance are set.
  template <class T>
  static MatrixView<T> output(Array& out, index_t& kernels, index_t& kernel_stride) {
    const int rows = out.ndim() == 3 ? 1 : 0, cols = rows + 1;
    bool fits = (out.ndim() == 2 || out.ndim() == 3) && (out.shape(cols) == 1 || stride<T>(out, cols) == 1);
    for (int d = 0; fits && d < cols; ++d) {
      fits = out.shape(d) == 1 || out.strides(d) % static_cast<index_t>(sizeof(T)) == 0;
    }
    if (!fits) throw py::value_error("gram: out must be a matrix with contiguous rows, or several of them");
    if (rows == 1) {
      kernels = out.shape(0);
      kernel_stride = stride<T>(out, 0);
    }
    return {static_cast<T*>(out.mutable_data()), out.shape(rows), out.shape(cols), stride<T>(out, rows)};
  }

 private:
  template <class T>
  static void check_array(const Array& array, int dimensions, const char* shape) {
    if (!holds<T>(array)) throw py::type_error("gram: factors and out must share one dtype");
    if (array.ndim() != dimensions) throw py::value_error(std::string("gram: a factor must have the shape ") + shape);
    for (int d = 0; d < dimensions; ++d) {
      if (array.shape(d) > 1 && array.strides(d) % static_cast<index_t>(sizeof(T)) != 0) {
        throw py::value_error("gram: a stride is no multiple of the item size");
      }
    }
  }

  template <class T>
  static index_t stride(const Array& array, int dimension) {
    return array.strides(dimension) / static_cast<index_t>(sizeof(T));
  }

  template <class T>
  static const T* weights_of(const Array& array, index_t length) {
    check_array<T>(array, 1, "(length,) of its weights");
    if (array.shape(0) != length || (length > 1 && stride<T>(array, 0) != 1)) {
      throw py::value_error("gram: weights must be contiguous, one for each entry of a factor's vectors");
    }
    return static_cast<const T*>(array.data());
  }

  // (examples, outputs, length), or (examples, outputs, positions, length)
  template <class T>
  static FactorView<T> vectors(const Array& array) {
    const int length = array.ndim() == 4 ? 3 : 2;
    check_array<T>(array, length + 1, "(examples, outputs, [positions,] length)");
    FactorView<T> factor{static_cast<const T*>(array.data()),
                         array.shape(0),
                         array.shape(1),
                         array.shape(length),
                         stride<T>(array, 0),
                         stride<T>(array, 1),
                         stride<T>(array, length)};
    if (length == 3) {
      factor.positions = array.shape(2);
      factor.position_stride = stride<T>(array, 2);
    }
    return factor;
  }

  template <class T>
  static FactorView<T> outer_product(const OuterProduct& arguments) {
    const auto& [activations, backprops, bias, fold, weights] = arguments;
    check_array<T>(activations, 3, "(examples, positions, length) of its activations");
    check_array<T>(backprops, 4, "(examples, outputs, positions, length) of its backprops");
    if (activations.shape(0) != backprops.shape(0) || activations.shape(1) != backprops.shape(2)) {
      throw py::value_error("gram: activations and backprops differ in examples or positions");
    }
    OuterProductView<T> view;
    view.activations = {static_cast<const T*>(activations.data()),
                        activations.shape(2),
                        stride<T>(activations, 0),
                        0,
                        stride<T>(activations, 1),
                        stride<T>(activations, 2)};
    view.backprops = {static_cast<const T*>(backprops.data()),
                      backprops.shape(3),
                      stride<T>(backprops, 0),
                      stride<T>(backprops, 1),
                      stride<T>(backprops, 2),
                      stride<T>(backprops, 3)};
    view.positions = activations.shape(1);
    view.bias = bias;
    view.folded = fold ? backprops.shape(1) : 1;
    FactorView<T> factor;
    factor.examples = backprops.shape(0);
    factor.outputs = fold ? 1 : backprops.shape(1);
    factor.length = view.length();
    factor.outer_product = view;
    if (weights) factor.weights = weights_of<T>(*weights, factor.length);
    return factor;
  }

  template <class T>
  static FactorView<T> factor_view(const Factor& arguments) {
    if (const auto* array = std::get_if<Array>(&arguments)) return vectors<T>(*array);
    if (const auto* gradients = std::get_if<OuterProduct>(&arguments)) return outer_product<T>(*gradients);
    const auto& [array, weights] = std::get<std::tuple<Array, Array>>(arguments);
    FactorView<T> factor = vectors<T>(array);
    factor.weights = weights_of<T>(weights, factor.length);
    return factor;
  }

  template <class T>
  static FactorPair<T> factor_pair(const Factor& left, const OptionalFactor& right, bool symmetric) {
    if (symmetric) return {factor_view<T>(left), {}};
    if (!right) throw py::value_error("gram: a rectangular Gram needs right factors");
    return {factor_view<T>(left), factor_view<T>(*right)};
  }
};

}  // namespace kernelgrowth::python
