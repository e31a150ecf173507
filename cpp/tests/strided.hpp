#pragma once

#include <cstring>
#include <limits>
#include <numeric>
#include <type_traits>
#include <utility>

#include "check.hpp"

namespace kernelgrowth::testing {

// Relative to what the library promises precision in that type.
template <class T>
constexpr double promise = std::is_same_v<T, float> ? 1e-5 : 1e-12;

inline std::size_t at(index_t i) {
  return static_cast<std::size_t>(i);
}

enum class Strides { any, contiguous_rows };

// Where the elements of an array lie in memory that ends with the outermost of them. Dimensions come in any order, with
// gaps; strides may be negative, or zero where the array is only read. A dimension of one element has any stride at
// all, as in NumPy.
struct Layout {
  std::vector<index_t> shape, strides;
  index_t first = 0, size = 1;  // the element of indices zero; how many elements the memory holds

  Layout(Random& random, std::vector<index_t> dimensions, Strides kind, std::size_t item, bool written)
      : shape(std::move(dimensions)), strides(shape.size()) {
    std::vector<std::size_t> order(shape.size());
    std::iota(order.rbegin(), order.rend(), std::size_t{0});
    const bool rows = kind == Strides::contiguous_rows;
    if (random.integer(0, 2) == 0) {
      for (std::size_t d = rows ? 1 : 0; d + 1 < order.size(); ++d) {
        std::swap(order[d], order[at(random.integer(static_cast<index_t>(d), static_cast<index_t>(order.size()) - 1))]);
      }
    }
    index_t extent = rows ? 1 : std::max<index_t>(1, random.integer(-3, 3));
    for (const std::size_t d : order) {
      const bool fixed = rows && d == order.front();
      if (!fixed && !written && random.integer(0, 11) == 0) continue;
      const bool backwards = !fixed && random.integer(0, 7) == 0;
      strides[d] = backwards ? -extent : extent;
      size += (shape[d] - 1) * extent;
      if (backwards) first += (shape[d] - 1) * extent;
      extent = extent * shape[d] + std::max<index_t>(0, random.integer(-3, 3));
      if (!fixed && shape[d] == 1 && random.integer(0, 3) == 0) {
        const index_t largest = std::numeric_limits<index_t>::max() / static_cast<index_t>(item);
        strides[d] = random.integer(-largest, largest);
      }
    }
    if (std::find(shape.begin(), shape.end(), 0) != shape.end()) first = size = 0;
  }

  // Calls visit(place in memory) for all elements in row-major order.
  template <class Visit>
  void for_each(const Visit& visit, std::size_t dimension = 0, index_t place = 0) const {
    if (dimension == 0) place = first;
    if (dimension == shape.size()) {
      visit(at(place));
      return;
    }
    for (index_t i = 0; i < shape[dimension]; ++i) for_each(visit, dimension + 1, place + i * strides[dimension]);
  }
};

template <class T>
T poison() {
  T value;
  std::memset(&value, 0xff, sizeof(T));
  return value;
}

template <class T>
bool is_poison(const T& value) {
  const T wanted = poison<T>();
  return std::memcmp(&value, &wanted, sizeof(T)) == 0;
}

// Random numbers of some layout, poison between them, and the same as doubles in row-major order.
template <class T>
struct StridedArray {
  Layout layout;
  std::vector<T> storage;
  std::vector<double> values;

  StridedArray(Random& random, std::vector<index_t> shape, Strides kind = Strides::any)
      : layout(random, std::move(shape), kind, sizeof(T), false), storage(at(layout.size), poison<T>()) {
    layout.for_each([&](std::size_t place) {
      if (is_poison(storage[place])) storage[place] = static_cast<T>(random.normal());
      values.push_back(static_cast<double>(storage[place]));
    });
  }

  const T* data() const { return storage.data() + layout.first; }
  index_t stride(std::size_t dimension) const { return layout.strides[dimension]; }
};

// Matrices to be written, all of one shape, whose rows are contiguous: poison, or random numbers to add to.
template <class T>
struct StridedOutput {
  Layout layout;
  std::vector<T> storage;

  StridedOutput(Random& random, index_t count, index_t rows, index_t cols)
      : layout(random, {count, rows, cols}, Strides::contiguous_rows, sizeof(T), true),
        storage(at(layout.size), poison<T>()) {}

  MatrixView<T> view() { return {storage.data() + layout.first, layout.shape[1], layout.shape[2], layout.strides[1]}; }
  index_t matrix_stride() const { return layout.strides[0]; }

  void assign(const std::vector<T>& values) {
    std::size_t i = 0;
    layout.for_each([&](std::size_t place) { storage[place] = values[i++]; });
  }

  // The elements in row-major order; ends the test where anything between them was written.
  std::vector<T> values() const {
    std::vector<T> result;
    std::vector<T> rest = storage;
    layout.for_each([&](std::size_t place) {
      result.push_back(storage[place]);
      rest[place] = poison<T>();
    });
    for (const T& value : rest) CHECK(is_poison(value));
    return result;
  }
};

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

}  // namespace kernelgrowth::testing
