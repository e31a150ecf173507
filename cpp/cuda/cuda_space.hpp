// Blocks of long vectors on a GPU, and what an eigensolver does to them: the twin of eigen/cpu_space.hpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

#include "cuda/tall_skinny.hpp"
#include "eigen/normal_numbers.hpp"
#include "eigen/small.hpp"
#include "kernelgrowth/cuda_eigen.hpp"
#include "kernelgrowth/view.hpp"

namespace kernelgrowth::cuda {

template <class T>
class CudaSpace {
 public:
  using Scalar = T;
  using Vectors = MatrixView<T>;
  using Small = eigen::Small;

  // Memory for some vectors, side by side in each row, which begins with whole lines of the cache.
  class Storage {
   public:
    Storage(std::shared_ptr<void> memory, index_t rows, index_t stride)
        : memory_(std::move(memory)), rows_(rows), stride_(stride) {}

    Vectors columns(index_t first, index_t count) const {
      return {static_cast<T*>(memory_.get()) + first, rows_, count, stride_};
    }

   private:
    std::shared_ptr<void> memory_;
    index_t rows_, stride_;
  };

  CudaSpace(index_t rows, const Room& room) : rows_(rows), room_(room) {}

  index_t rows() const { return rows_; }
  static double epsilon() { return static_cast<double>(std::numeric_limits<T>::epsilon()); }

  Storage allocate(index_t columns) const {
    constexpr index_t line = 128 / static_cast<index_t>(sizeof(T));
    const index_t stride = (columns + line - 1) / line * line;
    return Storage(room_.allocate(static_cast<std::size_t>(rows_ * stride) * sizeof(T)), rows_, stride);
  }

  // a' b, summed in double.
  Small inner(const Vectors& a, const Vectors& b) const {
    Small result(a.cols, b.cols);
    tall_products<T>(as_const(a), as_const(b), result.data(), scratch(a.cols, b.cols));
    return result;
  }

  // b -= a c
  void subtract(const Vectors& a, const Small& c, const Vectors& b) const { multiply(a, c, -1, b, true); }

  // out = a s; out and a do not overlap.
  void combine(const Vectors& a, const Small& s, const Vectors& out) const { multiply(a, s, 1, out, false); }

  void copy(const MatrixView<const T>& from, const Vectors& to) const { tall_copy<T>(from, to, room_.stream); }
  void copy(const Vectors& from, const Vectors& to) const { copy(as_const(from), to); }

  // v *= 2^exponent
  void scale(const Vectors& v, int exponent) const {
    if (exponent != 0) tall_scale<T>(v, exponent, room_.stream);
  }

  // The largest absolute entry; NaN if there is one.
  double largest(const Vectors& v) const { return tall_largest<T>(as_const(v), scratch(1, 1)); }

  // Normally distributed numbers that depend on seed, stream, row and column alone.
  void randomize(const Vectors& v, std::uint64_t seed, std::uint64_t stream) const {
    tall_normal<T>(v, eigen::normal_key(seed, stream), room_.stream);
  }

  static MatrixView<const T> as_const(const Vectors& v) { return {v.data, v.rows, v.cols, v.row_stride}; }

 private:
  void multiply(const Vectors& a, const Small& s, double sign, const Vectors& out, bool accumulate) const {
    if (s.rows() == 0 || s.cols() == 0) return;
    std::vector<T> narrow(static_cast<std::size_t>(s.rows() * s.cols()));
    for (std::size_t i = 0; i < narrow.size(); ++i) narrow[i] = static_cast<T>(sign * s.data()[i]);
    const Vectors target{out.data, out.rows, s.cols(), out.row_stride};
    tall_multiply<T>(as_const(a), narrow.data(), target, accumulate, scratch(s.rows(), s.cols()));
  }

  Scratch scratch(index_t columns, index_t other_columns) const {
    const std::size_t bytes = tall_scratch(rows_, columns, other_columns);
    if (bytes > scratch_bytes_) {
      scratch_.reset();
      scratch_ = room_.allocate(bytes);
      scratch_bytes_ = bytes;
    }
    return {scratch_.get(), room_.stream};
  }

  index_t rows_;
  const Room& room_;
  mutable std::shared_ptr<void> scratch_;
  mutable std::size_t scratch_bytes_ = 0;
};

}  // namespace kernelgrowth::cuda
