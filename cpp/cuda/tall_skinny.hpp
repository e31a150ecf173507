// Blocks of a few long vectors on the device, by rows, and what an eigensolver does to them. All pointers to blocks are
// the current device's. Work is queued on the stream; only what brings numbers to the host waits for it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernelgrowth/view.hpp"

namespace kernelgrowth::cuda {

// Memory of the device that a call may use until the stream has come to its end, aligned to 256 bytes.
struct Scratch {
  void* memory = nullptr;
  void* stream = nullptr;  // a cudaStream_t
};

// Bytes of scratch for blocks with so many rows and columns: tall_products of one with the other, and, of either,
// tall_multiply by a matrix of that shape, and tall_largest.
std::size_t tall_scratch(index_t rows, index_t columns, index_t other_columns);

// out (a.cols x b.cols, by rows, on the host) = a' b. Runs of 32 products are summed in T, their sums in double. The
// bits depend on the shapes alone.
template <class T>
void tall_products(const MatrixView<const T>& a, const MatrixView<const T>& b, double* out, const Scratch& scratch);

// out = a s, or out += a s; s (a.cols x out.cols, by rows) lies on the host. Sums of more than 256 products are made in
// runs. `out` shares no element with a.
template <class T>
void tall_multiply(const MatrixView<const T>& a, const T* s, const MatrixView<T>& out, bool accumulate,
                   const Scratch& scratch);

// v *= 2^exponent
template <class T>
void tall_scale(const MatrixView<T>& v, int exponent, void* stream);

// The largest absolute entry; NaN if there is one.
template <class T>
double tall_largest(const MatrixView<const T>& v, const Scratch& scratch);

// The numbers of eigen/normal_numbers.hpp, by row and column.
template <class T>
void tall_normal(const MatrixView<T>& v, std::uint64_t key, void* stream);

template <class T>
void tall_copy(const MatrixView<const T>& from, const MatrixView<T>& to, void* stream);

}  // namespace kernelgrowth::cuda
