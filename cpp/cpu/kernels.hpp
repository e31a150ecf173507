// What is compiled once per instruction set. This header reaches per-ISA objects, so it includes nothing that
// holds inline code: a function the linker merges could carry AVX-512 instructions to a machine without them.
#pragma once

#include <cstddef>
#include <cstdint>

namespace kernelgrowth::cpu {

// Sums over one row of K and of K', all in double.
struct RowSums {
  double sum, squares, other_sum, other_squares, inner_product;
};

// Of two matrices of one shape; sums in double. `poison` is NaN unless all entries are finite, else 0.
struct Comparison {
  double largest, gap, squares, other_squares, poison;
};

// Most vector registers that a panel is wide.
constexpr std::size_t max_panel_vectors = 6;

template <class T>
struct KernelTable {
  // Packed factors are panels of `panel` rows, stored [depth][panel]; register tiles are tile_rows x panel.
  std::size_t panel;
  std::size_t tile_rows;
  std::size_t lanes;

  // Writes a panel: target[k * panel + i] = rows[i][k * stride], 0 for count <= i up to the end of the register tile
  // and of the vector; what lies beyond is never read.
  void (*pack)(const T* const* rows, std::size_t count, std::size_t length, std::ptrdiff_t stride, T* target);
  // The same from vectors that lie side by side: target[k * panel + i] = source[k * stride + i * element_stride].
  void (*pack_columns)(const T* source, std::size_t count, std::size_t length, std::ptrdiff_t stride,
                       std::ptrdiff_t element_stride, T* target);
  // `lanes` rows of a panel: target[k * panel + i] = source[i * stride + k], 0 for count <= i < lanes. Whole vectors of
  // the source are read, also beyond `length`.
  void (*turn)(const T* source, std::size_t count, std::size_t length, std::ptrdiff_t stride, T* target);
  // target[k * panel + i] *= weights[k]
  void (*weigh)(T* target, const T* weights, std::size_t length);
  // c (tile_rows x panel, row stride ldc) = or += sum_k a[k * panel + i] * b[k * panel + j]; on the way
  // every step asks for what lies at `ahead`, which later calls will read, and moves it on by `ahead_step` elements.
  // inner_products[v - 1] computes the first v * lanes columns only.
  void (*inner_products[max_panel_vectors])(const T* a, const T* b, std::size_t depth, T* c, std::size_t ldc,
                                            bool accumulate, const T* ahead, std::ptrdiff_t ahead_step);
  // The same with rows of `a` wherever they are: c = or += sum_k a[i * row_stride + k * depth_stride] * b[k * panel +
  // j]
  void (*row_products[max_panel_vectors])(const T* a, std::ptrdiff_t row_stride, std::ptrdiff_t depth_stride,
                                          const T* b, std::size_t depth, T* c, std::size_t ldc, bool accumulate);
  std::size_t fetched_per_step;
  // Writes columns of a panel whose depth are rows: target[k * panel + i] = or += weights[k] * rows[k][i * stride] for
  // i < width.
  void (*pack_weighted)(const T* const* rows, const T* weights, std::size_t depth, std::size_t width,
                        std::ptrdiff_t stride, T* target, bool accumulate);
  // sums[i] = <rows[i], y_i> for i < count, y_i at y + i * ldy; partial sums of lanes in T, added up in double.
  void (*dots)(const T* const* rows, const T* y, std::size_t ldy, std::size_t count, std::size_t length,
               std::ptrdiff_t stride, double* sums);
  // target[j * target_stride + i] = source[i * source_stride + j] for i, j < lanes.
  void (*transpose)(const T* source, std::ptrdiff_t source_stride, T* target, std::ptrdiff_t target_stride);
  // sum += scale * (p + offset); n a multiple of the lanes
  void (*add_term)(T* sum, const T* p, std::size_t n, T offset, T scale);
  // sum += scale * (p + offset) * q; n a multiple of the lanes
  void (*add_hadamard)(T* sum, const T* p, const T* q, std::size_t n, T offset, T scale);
  // The sum of a rows x cols matrix; the transposed matrix has the same bits. `columns` holds cols numbers of scratch.
  T (*sum_pairs)(const T* values, std::ptrdiff_t stride, std::size_t rows, std::size_t cols, T* columns);
  // Sums over a row; adds it to column_sums. `other` and its column sums may be null together.
  RowSums (*row_sums)(const T* row, const T* other, std::size_t n, double* column_sums, double* other_column_sums);
  // Largest absolute entry of either matrix, and largest difference.
  Comparison (*compare)(const T* left, std::ptrdiff_t left_stride, const T* right, std::ptrdiff_t right_stride,
                        std::size_t rows, std::size_t cols);
  double (*dot)(const T* row, const double* y, std::size_t n);
  // Multiplies and adds in as many independent chains as a register tile holds; returns the operations done.
  double (*multiply_add)(std::size_t iterations, T* sink);
};

struct Kernels {
  const char* name;
  KernelTable<float> single_precision;
  KernelTable<double> double_precision;
};

}  // namespace kernelgrowth::cpu
