// What the kernels of a Gram are given: vectors packed into rows, and where the sums of their products go.
#pragma once

#include <cstddef>

#include "cuda/tiles.hpp"
#include "kernelgrowth/precision.hpp"

namespace kernelgrowth::cuda {

// Products are summed in runs of so many bytes of the vectors, runs by additions that round to nearest: tensor cores
// round towards zero, and would be off by more the longer a sum is.
constexpr Index run_chunks = 16;

// Rows of tiles; vectors are packed to multiples of the larger one.
constexpr Index small_tile = 64, large_tile = 128;

// Rows (vectors, padded with zeros) of one side of a factor, for each position and output.
struct PackedSide {
  const unsigned char* data = nullptr;
  Index position_bytes = 0, output_bytes = 0;
};

struct PackedFactor {
  PackedSide left, right;
  Index row_bytes = 0;  // a multiple of chunk_bytes
};

// scale * (<first> + offset) o <second>, summed over pairs of positions; without a second factor, scale * (<first> +
// offset). Where <first> is `given`, as matrices, one for each pair of positions, its vectors are not.
template <class T>
struct PackedTerm {
  PackedFactor first, second;
  bool has_second = false;
  int left_positions = 1, right_positions = 1;
  T offset = 0, scale = 1;
  const T* given = nullptr;
  Index given_row_stride = 0, given_pair_stride = 0;
};

constexpr int most_terms = 12;

// Entries ((n, c), (m, e)) of examples n, m and outputs c, e lie at left_output * c + right_output * e from where those
// of the first outputs are. `paired` outputs are c = e alone.
template <class T>
struct GramOutput {
  T* data = nullptr;
  Index row_stride = 0, column_stride = 1;  // from example to example
  Index left_output = 0, right_output = 0;
  Index rows = 0, columns = 0;  // examples to compute, from these on:
  Index first_row = 0, first_column = 0;
  int left_outputs = 1, right_outputs = 1;
  bool paired = false;
  bool triangle = false;    // tiles on and above the diagonal alone
  bool mirrored = false;    // write each entry to both places of a symmetric matrix
  bool accumulate = false;  // add to what is there; of a symmetric matrix its upper triangle is read

  KG_HOST_DEVICE Index place(Index n, Index c, Index m, Index e) const {
    return (first_row + n) * row_stride + (first_column + m) * column_stride + c * left_output + e * right_output;
  }
  KG_HOST_DEVICE Index mirror(Index n, Index c, Index m, Index e) const {
    return (first_column + m) * row_stride + (first_row + n) * column_stride + e * left_output + c * right_output;
  }
  // Whether an entry of a block is the block's to write: of two mirrored ones in a tile on the diagonal, one is.
  KG_HOST_DEVICE bool has(Index n, Index c, Index m, Index e) const {
    if (n >= rows || m >= columns) return false;
    return !(mirrored && triangle) || n < m || c < e || (n == m && c == e);
  }
  // Whether a block has anything to write.
  KG_HOST_DEVICE bool wants(TilePlace tile, Index c, Index e) const {
    return !(mirrored && triangle && tile.row == tile.column && c > e);
  }
  // Where the upper one of an entry and its mirror lies.
  KG_HOST_DEVICE Index upper(Index n, Index c, Index m, Index e) const {
    const bool is_upper = first_row + n < first_column + m || (first_row + n == first_column + m && c <= e);
    return is_upper ? place(n, c, m, e) : mirror(n, c, m, e);
  }
  KG_HOST_DEVICE Index pairs() const {
    return paired ? left_outputs : static_cast<Index>(left_outputs) * right_outputs;
  }
};

template <class T>
struct GramArguments {
  PackedTerm<T> terms[most_terms];
  int count = 0;
  GramOutput<T> out;
};

// Large tiles are faster where there are enough of them for the current device, and it has the shared memory they take.
bool prefers_large_tiles(Precision precision, Index tiles);

// T is float, or double for Precision::float64 alone.
template <class T>
void launch_gram(const GramArguments<T>& arguments, Precision precision, bool large, void* stream);

}  // namespace kernelgrowth::cuda
