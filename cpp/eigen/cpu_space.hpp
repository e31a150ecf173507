// Blocks of long vectors in main memory, and what an eigensolver does to them. Its twin for the GPU has the same names.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "cpu/tall_skinny.hpp"
#include "eigen/normal_numbers.hpp"
#include "eigen/small.hpp"
#include "kernelgrowth/gemm.hpp"
#include "kernelgrowth/runtime.hpp"
#include "kernelgrowth/view.hpp"

namespace kernelgrowth::eigen {

template <class T>
class CpuSpace {
 public:
  using Scalar = T;
  using Vectors = MatrixView<T>;

  // Memory for some vectors, side by side in each row.
  class Storage {
   public:
    Storage(index_t rows, index_t columns)
        : rows_(rows),
          stride_(row_stride(columns)),
          data_(static_cast<T*>(::operator new(static_cast<std::size_t>(rows * stride_) * sizeof(T), alignment))) {}

    Vectors columns(index_t first, index_t count) const { return {data_.get() + first, rows_, count, stride_}; }

   private:
    static constexpr std::align_val_t alignment{64};
    struct Free {
      void operator()(T* data) const { ::operator delete(data, alignment); }
    };

    // Whole cache lines, and an odd number of them: rows a power of two apart would share few sets of a cache.
    static index_t row_stride(index_t columns) {
      constexpr index_t line = 64 / static_cast<index_t>(sizeof(T));
      return ((columns + line - 1) / line | 1) * line;
    }

    index_t rows_, stride_;
    std::unique_ptr<T, Free> data_;
  };

  CpuSpace(index_t rows, int threads, const std::string& isa, const Poll& poll)
      : rows_(rows), products_{threads, isa, poll, false}, inner_{threads, isa, poll} {}

  index_t rows() const { return rows_; }
  static double epsilon() { return static_cast<double>(std::numeric_limits<T>::epsilon()); }

  Storage allocate(index_t columns) const { return Storage(rows_, columns); }

  // a' b, summed in double.
  Small inner(const Vectors& a, const Vectors& b) const {
    Small result(a.cols, b.cols);
    cpu::tall_products<T>(as_const(a), as_const(b), result.data(), inner_);
    return result;
  }

  // b -= a c
  void subtract(const Vectors& a, const Small& c, const Vectors& b) const { multiply(a, c, -1, b, true); }

  // out = a s; out and a do not overlap.
  void combine(const Vectors& a, const Small& s, const Vectors& out) const { multiply(a, s, 1, out, false); }

  void copy(const MatrixView<const T>& from, const Vectors& to) const {
    for (index_t i = 0; i < rows_; ++i) std::copy_n(from.row(i), from.cols, to.row(i));
  }
  void copy(const Vectors& from, const Vectors& to) const { copy(as_const(from), to); }

  // v *= 2^exponent
  void scale(const Vectors& v, int exponent) const {
    if (exponent == 0) return;
    // In two steps where one factor would leave the range of T.
    const T first = std::ldexp(T{1}, exponent / 2), second = std::ldexp(T{1}, exponent - exponent / 2);
    each(v, [&](T& x) { x = x * first * second; });
  }

  // The largest absolute entry; NaN if there is one.
  double largest(const Vectors& v) const {
    double result = 0;
    each(v, [&](T& x) {
      const double size = std::abs(static_cast<double>(x));
      if (!(size <= result || std::isnan(result))) result = size;
    });
    return result;
  }

  // Normally distributed numbers that depend on seed, stream, row and column alone.
  void randomize(const Vectors& v, std::uint64_t seed, std::uint64_t stream) const {
    const std::uint64_t key = normal_key(seed, stream);
    for (index_t i = 0; i < rows_; ++i) {
      for (index_t j = 0; j < v.cols; ++j) {
        v.row(i)[j] = static_cast<T>(normal_number(key, static_cast<std::uint64_t>(i), static_cast<std::uint64_t>(j)));
      }
    }
  }

  static MatrixView<const T> as_const(const Vectors& v) { return {v.data, v.rows, v.cols, v.row_stride}; }

 private:
  template <class Function>
  void each(const Vectors& v, const Function& function) const {
    for (index_t i = 0; i < rows_; ++i) std::for_each(v.row(i), v.row(i) + v.cols, function);
  }

  void multiply(const Vectors& a, const Small& s, double sign, const Vectors& out, bool accumulate) const {
    if (s.rows() == 0 || s.cols() == 0) return;
    std::vector<T> narrow(static_cast<std::size_t>(s.rows() * s.cols()));
    for (std::size_t i = 0; i < narrow.size(); ++i) narrow[i] = static_cast<T>(sign * s.data()[i]);
    GemmOptions options = products_;
    options.accumulate = accumulate;
    gemm<T>({a.data, a.rows, a.cols, a.row_stride, 1}, {narrow.data(), s.rows(), s.cols(), s.cols(), 1}, out, options);
  }

  index_t rows_;
  GemmOptions products_;
  cpu::TallOptions inner_;
};

}  // namespace kernelgrowth::eigen
