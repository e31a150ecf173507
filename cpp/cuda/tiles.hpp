// Which part of a matrix a block computes, and where its operands lie: index arithmetic alone, for host and device.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define KG_HOST_DEVICE __host__ __device__
#else
#define KG_HOST_DEVICE
#endif

namespace kernelgrowth::cuda {

using Index = std::int64_t;

KG_HOST_DEVICE constexpr Index divide_up(Index a, Index b) {
  return (a + b - 1) / b;
}
KG_HOST_DEVICE constexpr Index rounded_up(Index a, Index b) {
  return divide_up(a, b) * b;
}

// Packed vectors are rows of whole chunks, each as much as a block takes at a time of every row of its tile.
constexpr Index chunk_bytes = 128;
// Of a chunk; what a thread copies at once.
constexpr Index piece_bytes = 16;
constexpr Index pieces = chunk_bytes / piece_bytes;

struct TilePlace {
  Index row, column;
};

// Tiles are computed in bands of a few rows, column by column, so that blocks that run at the same time read the same
// operands.
constexpr Index band = 8;

KG_HOST_DEVICE inline TilePlace rectangle_tile(Index index, Index rows, Index columns) {
  const Index first = index / (band * columns) * band;
  const Index height = rows - first < band ? rows - first : band;
  const Index inside = index - first * columns;
  return {first + inside % height, inside / height};
}

KG_HOST_DEVICE constexpr Index triangle_tiles(Index rows) {
  return rows * (rows + 1) / 2;
}

// Tiles on and above the diagonal of a square. Columns of a band first pass through its triangle, then have its height.
KG_HOST_DEVICE inline TilePlace triangle_tile(Index index, Index rows) {
  Index first = 0;
  for (;;) {
    const Index height = rows - first < band ? rows - first : band;
    const Index tip = triangle_tiles(height), of_band = tip + height * (rows - first - height);
    if (index < of_band) {
      if (index >= tip) return {first + (index - tip) % height, first + height + (index - tip) / height};
      Index column = 0;
      while (index > column) index -= ++column;
      return {first + index, first + column};
    }
    index -= of_band;
    first += height;
  }
}

// Where a piece of a tile's row lies in shared memory, in bytes from the tile: pieces of neighbouring rows are
// exchanged so that eight rows that are read together lie in different banks. Threads read 16 bytes of each of eight
// rows, or, of doubles, 8 bytes of four times as many columns of four rows.
template <int element_bytes>
KG_HOST_DEVICE constexpr Index place_in_tile(Index row, Index piece) {
  const Index exchange = element_bytes == 8 ? (row & 3) << 1 : row & 7;
  return row * chunk_bytes + (piece ^ exchange) * piece_bytes;
}

// The place of a number that a thread holds in a warp's 16 x 8 part of a product; of doubles in an 8 x 8 part.
KG_HOST_DEVICE constexpr Index fragment_row(Index lane, Index number) {
  return lane / 4 + number / 2 * 8;
}
KG_HOST_DEVICE constexpr Index fragment_column(Index lane, Index number) {
  return lane % 4 * 2 + number % 2;
}

}  // namespace kernelgrowth::cuda
