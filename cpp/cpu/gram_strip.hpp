// A strip of a tile of the Gram: the sum of all terms, made in cache before it is written once.
#pragma once

#include <algorithm>
#include <span>
#include <type_traits>
#include <vector>

#include "cpu/bf16.hpp"
#include "cpu/gram_terms.hpp"
#include "cpu/kernels.hpp"
#include "cpu/packing.hpp"

namespace kernelgrowth::cpu {

// A register tile sums this many products before it adds them to memory, and sums of more than `run_length` are added
// up apart, so that rounding grows with the number of sums and not with the length.
constexpr index_t depth_step = 256;
constexpr index_t run_length = 64 * depth_step;
// A register tile goes this deep before the next one begins: a panel of it stays in the second-level cache.
constexpr index_t depth_block = 8 * depth_step;
// Pairs of more positions than that are summed in squares, and the squares' sums in the same way.
constexpr index_t positions_step = 128;

struct Range {
  index_t begin, end;
  index_t size() const { return end - begin; }
};

// The part of a tile that a thread computes at once, in rows and columns of the tile. On the diagonal only entries on
// and above it are wanted.
struct Region {
  Range rows, cols;
  bool diagonal;
};

// A packed factor of one side: the blocks of a group, one after another.
template <class T>
struct Packed {
  PackedLayout layout;
  T* data = nullptr;

  const T* panel(index_t block, index_t p) const {
    return data + block * layout.elements_per_block() + p * layout.panel * layout.length;
  }
};

// One side of all terms, packed.
template <class T>
using Side = std::vector<Factors<Packed<T>>>;

// What strips have in common. A row of K is `row_positions` vectors of a factor, or shares them with other outputs.
struct StripShape {
  index_t outputs = 1, row_positions = 1, col_positions = 1;
  // Of the buffers that sums and products are made in.
  index_t rows = 1, width = 1;

  index_t elements() const { return rows * width; }
};

template <class T>
class Strip {
 public:
  Strip(const KernelTable<T>& kernels, const Bf16Kernels* bf16, const StripShape& shape)
      : kernels_(kernels), bf16_(bf16), shape_(shape) {}

  // The sums of some kernels, a product of each factor, and a run of a long one or a row repeated for all outputs.
  static index_t buffers(index_t kernels) { return kernels + 3; }

  // What is there already comes first in the sum, so that terms added in several calls give the bits of one call.
  void begin(const MatrixView<T>& out, index_t row0, index_t col0, const Region& region, bool accumulate,
             T* sum) const {
    const auto& [rows, cols, diagonal] = region;
    std::fill_n(sum, rows.size() * shape_.width, T{0});
    if (!accumulate) return;
    for (index_t r = rows.begin; r < rows.end; ++r) {
      const index_t from = diagonal ? std::max(r, cols.begin) : cols.begin;
      const T* source = out.row(row0 + r) + col0;
      std::copy(source + from, source + cols.end, sum + (r - rows.begin) * shape_.width + (from - cols.begin));
    }
  }

  // Adds all terms to the sums of some kernels, which come first in `scratch`.
  void add_terms(std::span<const Term<T>> terms, const Side<T>& left, index_t row_block, const Side<T>& right,
                 index_t col_block, const Region& region, Range kernels, T* scratch) const {
    T* first = scratch + kernels.size() * shape_.elements();
    T* second = first + shape_.elements();
    T* run = second + shape_.elements();
    for (std::size_t b = 0; b < terms.size(); ++b) {
      auto product_of = [&](const std::vector<Packed<T>>& rows, const std::vector<Packed<T>>& cols, index_t kernel,
                            T* target) {
        return product(of_kernel(rows, kernel), row_block, of_kernel(cols, kernel), col_block, region, target, run);
      };
      const bool first_shared = left[b].first.size() == 1, second_shared = left[b].second.size() == 1;
      Product p{}, q{};
      for (index_t kernel = kernels.begin; kernel < kernels.end; ++kernel) {
        const bool begins = kernel == kernels.begin;
        if (begins || !first_shared) p = product_of(left[b].first, right[b].first, kernel, first);
        if (terms[b].second && (begins || !second_shared)) {
          q = product_of(left[b].second, right[b].second, kernel, second);
        }
        T* sum = scratch + (kernel - kernels.begin) * shape_.elements();
        if (shape_.row_positions > 1 || shape_.col_positions > 1) {
          add_position_pairs(p, q, terms[b], region, sum, run);
        } else {
          add_entries(p, q, terms[b], region, sum, run);
        }
      }
    }
  }

  // Writes the sum to its place, and to the mirrored one where that is asked for.
  void write(const MatrixView<T>& out, index_t row0, index_t col0, const Region& region, bool mirrored, const T* sum,
             T* turned) const {
    const auto& [rows, cols, diagonal] = region;
    for (index_t r = rows.begin; r < rows.end; ++r) {
      const T* source = sum + (r - rows.begin) * shape_.width - cols.begin;
      T* target = out.row(row0 + r) + col0;
      const index_t from = diagonal ? std::max(r, cols.begin) : cols.begin;
      std::copy(source + from, source + cols.end, target + from);
    }
    if (mirrored) mirror(out, row0, col0, region, sum, turned);
  }

 private:
  index_t panel() const { return static_cast<index_t>(kernels_.panel); }
  index_t lanes() const { return static_cast<index_t>(kernels_.lanes); }
  index_t tile_rows() const { return static_cast<index_t>(kernels_.tile_rows); }

  // A product's values, starting at (row_origin, col_origin) of the factor's own vectors within the block. `repeat`
  // rows of K share a row of it, or its rows of an example's positions.
  struct Product {
    T* data;
    index_t row_origin, col_origin, repeat;
  };

  // Pairs of bfloat16 take the place of one element.
  index_t depth_of(const Packed<T>& factor) const {
    return bf16_ ? ceil_div(factor.layout.length, 2) : factor.layout.length;
  }

  auto register_tile(index_t vectors) const {
    if constexpr (std::is_same_v<T, float>) {
      if (bf16_) return bf16_->inner_products[vectors];
    }
    return kernels_.inner_products[vectors];
  }

  // Inner products of a strip of one packed factor with a block of another.
  Product product(const Packed<T>& left, index_t row_block, const Packed<T>& right, index_t col_block,
                  const Region& region, T* target, T* run_values) const {
    const index_t repeat = shape_.outputs * shape_.row_positions / left.layout.vectors, length = depth_of(left);
    const Range r{round_down(region.rows.begin / repeat * shape_.row_positions, tile_rows()),
                  ceil_div(region.rows.end, repeat) * shape_.row_positions};
    const Range c{round_down(region.cols.begin / repeat * shape_.col_positions, panel()),
                  ceil_div(region.cols.end, repeat) * shape_.col_positions};
    for (index_t run = 0; run < length; run += run_length) {
      T* values = run == 0 ? target : run_values;
      const index_t run_end = std::min(run + run_length, length);
      for (index_t k = run; k < run_end; k += depth_block) {
        const index_t k_end = std::min(k + depth_block, run_end);
        for (index_t j = c.begin; j < c.end; j += panel()) {
          const T* b = right.panel(col_block, j / panel());
          const bool last = j + panel() >= c.end;
          const T* ahead = last ? b + k * panel() : right.panel(col_block, j / panel() + 1) + k * panel();
          // Register tiles wholly below the diagonal are left out, and whole vectors of the others, as are vectors
          // beyond the last column.
          const index_t end = region.diagonal ? std::min(r.end, round_up(j + panel(), shape_.col_positions)) : r.end;
          for (index_t i = r.begin; i < end; i += tile_rows()) {
            const index_t wanted_from = region.diagonal ? round_down(i, shape_.row_positions) : 0;
            const index_t skip = round_down(std::max<index_t>(wanted_from - j, 0), lanes());
            const index_t wanted = std::min(panel(), c.end - j) - skip;
            const auto inner_products = register_tile(ceil_div(wanted, lanes()) - 1);
            const T* a = left.panel(row_block, i / panel()) + i % panel();
            T* tile = values + (i - r.begin) * shape_.width + (j - c.begin) + skip;
            for (index_t step = k; step < k_end; step += depth_step) {
              const auto depth = static_cast<std::size_t>(std::min(depth_step, k_end - step));
              inner_products(a + step * panel(), b + step * panel() + skip, depth, tile,
                             static_cast<std::size_t>(shape_.width), step > run, ahead,
                             static_cast<index_t>(kernels_.fetched_per_step));
              if (!last) ahead += depth * kernels_.fetched_per_step;
            }
          }
        }
      }
      if (run > 0) {
        const index_t width = round_up(c.size(), lanes());
        for (index_t i = 0; i < r.size(); ++i) {
          const index_t wanted_from = region.diagonal ? round_down(r.begin + i, shape_.row_positions) : 0;
          const index_t skip = std::max<index_t>(0, round_down(wanted_from, lanes()) - c.begin);
          kernels_.add_term(target + i * shape_.width + skip, values + i * shape_.width + skip,
                            static_cast<std::size_t>(width - skip), 0, 1);
        }
      }
    }
    return {target, r.begin, c.begin, repeat};
  }

  // Row r, columns cols of a product. Where the factor is shared by all outputs, each value is written `repeat` times
  // to `repeated`, once for all rows of an example.
  const T* row_of(const Product& p, index_t r, Range rows, Range cols, T* repeated) const {
    const T* row = p.data + (r / p.repeat - p.row_origin) * shape_.width;
    if (p.repeat == 1) return row + (cols.begin - p.col_origin);
    if (r == rows.begin || r % p.repeat == 0) {
      index_t c = cols.begin;
      for (index_t from = c / p.repeat; c < cols.end; ++from) {
        const T value = row[from - p.col_origin];
        for (const index_t end = std::min((from + 1) * p.repeat, cols.end); c < end; ++c) {
          repeated[c - cols.begin] = value;
        }
      }
    }
    return repeated;
  }

  void add_entries(const Product& p, const Product& q, const Term<T>& term, const Region& region, T* sum,
                   T* repeated) const {
    const auto& [rows, cols, diagonal] = region;
    // Whole vectors: what lies beyond the last column is computed and never written.
    const index_t width = round_up(cols.size(), lanes());
    for (index_t r = rows.begin; r < rows.end; ++r) {
      // Vectors wholly below the diagonal, which `product` left as it found them.
      const index_t skip = diagonal ? round_down(r, lanes()) - cols.begin : 0;
      const auto count = static_cast<std::size_t>(width - skip);
      T* sum_row = sum + (r - rows.begin) * shape_.width + skip;
      const T* first_row = row_of(p, r, rows, cols, repeated) + skip;
      if (term.second) {
        const T* second_row = row_of(q, r, rows, cols, repeated + shape_.width) + skip;
        kernels_.add_hadamard(sum_row, first_row, second_row, count, term.offset, term.scale);
      } else {
        kernels_.add_term(sum_row, first_row, count, term.offset, term.scale);
      }
    }
  }

  // Adds each entry's sum over all pairs of positions: what two products give for the vectors of its examples.
  void add_position_pairs(const Product& p, const Product& q, const Term<T>& term, const Region& region, T* sum,
                          T* scratch) const {
    const auto& [rows, cols, diagonal] = region;
    T* values = scratch;
    T* repeated = values + shape_.row_positions * shape_.width;
    for (index_t r = rows.begin; r < rows.end; ++r) {
      const index_t from = diagonal ? r : cols.begin;
      const index_t width = round_up((cols.end - from) * shape_.col_positions, lanes());
      std::fill_n(values, shape_.row_positions * shape_.width, T{0});
      for (index_t t = 0; t < shape_.row_positions; ++t) {
        // From column `from` on; written out where the factor is shared by all outputs.
        auto row = [&](const Product& product, T* space) -> const T* {
          const T* first = product.data +
                           (r / product.repeat * shape_.row_positions + t - product.row_origin) * shape_.width -
                           product.col_origin;
          if (product.repeat == 1) return first + from * shape_.col_positions;
          for (index_t c = from; c < cols.end; ++c) {
            std::copy_n(first + c / product.repeat * shape_.col_positions, shape_.col_positions,
                        space + (c - from) * shape_.col_positions);
          }
          return space;
        };
        kernels_.add_hadamard(values + t * shape_.width, row(p, repeated), row(q, repeated + shape_.width),
                              static_cast<std::size_t>(width), term.offset, 1);
      }
      for (index_t c = from; c < cols.end; ++c) {
        const T total =
            sum_pairs(values + (c - from) * shape_.col_positions, shape_.row_positions, shape_.col_positions, repeated);
        sum[(r - rows.begin) * shape_.width + (c - cols.begin)] += term.scale * total;
      }
    }
  }

  // The sum of a matrix, which may be overwritten; the transposed matrix has the same bits.
  T sum_pairs(T* values, index_t rows, index_t cols, T* columns) const {
    auto sum = [&](index_t row, index_t col) {
      return kernels_.sum_pairs(values + row * shape_.width + col, shape_.width,
                                static_cast<std::size_t>(std::min(positions_step, rows - row)),
                                static_cast<std::size_t>(std::min(positions_step, cols - col)), columns);
    };
    if (std::max(rows, cols) <= positions_step) return sum(0, 0);
    const index_t row_steps = ceil_div(rows, positions_step), col_steps = ceil_div(cols, positions_step);
    for (index_t i = 0; i < row_steps; ++i) {
      // A square's sum takes a place of a square that has been summed, its own or one before.
      for (index_t j = 0; j < col_steps; ++j) {
        values[i * shape_.width + j] = sum(i * positions_step, j * positions_step);
      }
    }
    return sum_pairs(values, row_steps, col_steps, columns);
  }

  // Columns of the sum become rows of K: some at a time are turned in cache, so that each row of K is then written in
  // one run.
  void mirror(const MatrixView<T>& out, index_t row0, index_t col0, const Region& region, const T* sum,
              T* turned) const {
    const auto& [rows, cols, diagonal] = region;
    const index_t square = lanes();
    for (index_t c0 = cols.begin; c0 < cols.end; c0 += square) {
      const index_t c_end = std::min(c0 + square, cols.end);
      for (index_t r = 0; r < rows.size(); r += square) {
        kernels_.transpose(sum + r * shape_.width + (c0 - cols.begin), shape_.width, turned + r, shape_.width);
      }
      for (index_t c = c0; c < c_end; ++c) {
        const index_t end = diagonal ? std::min(c, rows.end) : rows.end;
        const T* source = turned + (c - c0) * shape_.width;
        if (end > rows.begin) std::copy_n(source, end - rows.begin, out.row(col0 + c) + row0 + rows.begin);
      }
    }
  }

  const KernelTable<T>& kernels_;
  const Bf16Kernels* bf16_;
  StripShape shape_;
};

}  // namespace kernelgrowth::cpu
