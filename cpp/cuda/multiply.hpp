// How a block multiplies chunks of packed vectors: its warps divide the tile, and each thread holds numbers of its
// warp's part. One policy for each precision; they differ in their instructions and in where their numbers lie.
#pragma once

#include "cuda/device.hpp"
#include "cuda/gram_kernel.hpp"
#include "cuda/warpgroups.hpp"

namespace kernelgrowth::cuda {

constexpr int warp_size = 32;

// A block's tile of rows x columns, divided into parts of warp_rows x warp_columns.
template <int rows_, int columns_, int warp_rows_, int warp_columns_>
struct Shape {
  static constexpr int rows = rows_, columns = columns_, warp_rows = warp_rows_, warp_columns = warp_columns_;
  static constexpr int warps_across = columns / warp_columns;
  static constexpr int threads = rows / warp_rows * warps_across * warp_size;

  __device__ static int lane() { return static_cast<int>(threadIdx.x) % warp_size; }
  __device__ static int first_row() { return static_cast<int>(threadIdx.x) / warp_size / warps_across * warp_rows; }
  __device__ static int first_column() {
    return static_cast<int>(threadIdx.x) / warp_size % warps_across * warp_columns;
  }
};

// What is true of policies whose sums are made when `multiply` returns.
struct AtOnce {
  // Chunks whose products may still be under way.
  static constexpr int under_way = 0;
  __device__ static void after_copies() {}
  template <class Sums>
  __device__ static void finish(Sums&) {}
};

// Tensor cores, of float sums: steps of 32 bytes of the vectors, 16 x 8 numbers at a time.
template <Precision precision, class Shape>
struct TensorCores : AtOnce {
  using Number = float;
  static constexpr int down = Shape::warp_rows / 16, across = Shape::warp_columns / 8, count = down * across * 4;
  static_assert(across % 2 == 0, "columns are read sixteen at a time");

  __device__ static int row(int number) {
    return Shape::first_row() + number / (across * 4) * 16 + static_cast<int>(fragment_row(Shape::lane(), number % 4));
  }
  __device__ static int column(int number) {
    return Shape::first_column() + number / 4 % across * 8 +
           static_cast<int>(fragment_column(Shape::lane(), number % 4));
  }

  // sums += left right', of one chunk.
  __device__ static void multiply(const unsigned char* left, const unsigned char* right, float (&sums)[count]) {
    constexpr bool split = precision == Precision::float32;
    const int lane = Shape::lane(), matrix = lane / 8;
    const int left_row = Shape::first_row() + matrix % 2 * 8 + lane % 8;
    const int right_row = Shape::first_column() + matrix / 2 * 8 + lane % 8;
    constexpr int steps = pieces / 2;
    // Where numbers are divided, all steps at once would take more registers than there are.
#pragma unroll(split ? 1 : steps)
    for (int step = 0; step < steps; ++step) {
      std::uint32_t a[down][4], a_rest[split ? down : 1][4];
#pragma unroll
      for (int i = 0; i < down; ++i) {
        load_matrices(a[i], left + place_in_tile<4>(left_row + 16 * i, 2 * step + matrix / 2));
        if constexpr (split) divide(a[i], a_rest[i]);
      }
#pragma unroll
      for (int j = 0; j < across; j += 2) {
        std::uint32_t b[4], b_rest[4];
        load_matrices(b, right + place_in_tile<4>(right_row + 8 * j, 2 * step + matrix % 2));
        if constexpr (split) divide(b, b_rest);
#pragma unroll
        for (int i = 0; i < down; ++i) {
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            float (&c)[4] = *reinterpret_cast<float (*)[4]>(&sums[(i * across + j + half) * 4]);
            if constexpr (split) {
              multiply_tf32(c, a_rest[i], b[2 * half], b[2 * half + 1]);
              multiply_tf32(c, a[i], b_rest[2 * half], b_rest[2 * half + 1]);
            }
            if constexpr (precision == Precision::bf16) {
              multiply_bf16(c, a[i], b[2 * half], b[2 * half + 1]);
            } else {
              multiply_tf32(c, a[i], b[2 * half], b[2 * half + 1]);
            }
          }
        }
      }
    }
  }

 private:
  // A float as one that tensor cores read whole, and the rest of it.
  __device__ static void divide(std::uint32_t (&words)[4], std::uint32_t (&rest)[4]) {
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      float value;
      memcpy(&value, &words[k], sizeof value);
      const float leading = rounded_tf32(value);
      const float trailing = value - leading;
      memcpy(&words[k], &leading, sizeof leading);
      memcpy(&rest[k], &trailing, sizeof trailing);
    }
  }
};

// Tensor cores as four warps together use them; its numbers lie as those of `TensorCores`.
template <Precision precision, class Shape>
struct Warpgroups : TensorCores<precision, Shape> {
  using Base = TensorCores<precision, Shape>;
  static constexpr int count = Base::count, under_way = 1;
  static_assert(Shape::warp_rows == 16 && Shape::warp_columns == 128 && count == warpgroup_count);

  __device__ static void after_copies() { show_copies_to_tensor_cores(); }

  __device__ static void multiply(const unsigned char* left, const unsigned char* right, float (&sums)[count]) {
    const int first_row = static_cast<int>(threadIdx.x) / (4 * warp_size) * 64;
    begin_products();
#pragma unroll
    for (int step = 0; step < pieces / 2; ++step) {
      multiply_warpgroup<precision>(sums, left + first_row * chunk_bytes, right, step);
    }
    commit_products();
    wait_products<under_way>();
  }

  __device__ static void finish(float (&sums)[count]) {
    wait_products<0>();
    are_written(sums);
  }
};

// Tensor cores of double: 8 x 8 numbers at a time.
template <class Shape>
struct TensorCores<Precision::float64, Shape> : AtOnce {
  using Number = double;
  static constexpr int down = Shape::warp_rows / 8, across = Shape::warp_columns / 8, count = down * across * 2;

  __device__ static int row(int number) {
    return Shape::first_row() + number / (across * 2) * 8 + static_cast<int>(fragment_row(Shape::lane(), number % 2));
  }
  __device__ static int column(int number) {
    return Shape::first_column() + number / 2 % across * 8 +
           static_cast<int>(fragment_column(Shape::lane(), number % 2));
  }

  __device__ static void multiply(const unsigned char* left, const unsigned char* right, double (&sums)[count]) {
    const int row = Shape::lane() / 4, element = Shape::lane() % 4;
#pragma unroll
    for (int step = 0; step < pieces / 2; ++step) {
      double a[down], b[across];
      const int piece = 2 * step + element / 2, inside = element % 2 * 8;
#pragma unroll
      for (int i = 0; i < down; ++i) {
        const Index place = place_in_tile<8>(Shape::first_row() + 8 * i + row, piece);
        a[i] = *reinterpret_cast<const double*>(left + place + inside);
      }
#pragma unroll
      for (int j = 0; j < across; ++j) {
        const Index place = place_in_tile<8>(Shape::first_column() + 8 * j + row, piece);
        b[j] = *reinterpret_cast<const double*>(right + place + inside);
      }
#pragma unroll
      for (int i = 0; i < down; ++i) {
#pragma unroll
        for (int j = 0; j < across; ++j) {
          multiply_f64(*reinterpret_cast<double (*)[2]>(&sums[(i * across + j) * 2]), a[i], b[j]);
        }
      }
    }
  }
};

// Without tensor cores: each thread multiplies some rows with some columns, pieces of 16 bytes at a time. A warp's
// threads are 2 x 16 of them.
template <class T, class Shape>
struct Simt : AtOnce {
  using Number = T;
  static constexpr int deep = 2, wide = 16, down = Shape::warp_rows / deep, across = Shape::warp_columns / wide;
  static constexpr int count = down * across, elements = static_cast<int>(piece_bytes / sizeof(T));

  __device__ static int row(int number) { return Shape::first_row() + number / across * deep + Shape::lane() / wide; }
  __device__ static int column(int number) {
    return Shape::first_column() + number % across * wide + Shape::lane() % wide;
  }

  __device__ static void multiply(const unsigned char* left, const unsigned char* right, T (&sums)[count]) {
    struct alignas(piece_bytes) Piece {
      T values[elements];
    };
#pragma unroll 2
    for (int piece = 0; piece < pieces; ++piece) {
      Piece b[across];
#pragma unroll
      for (int j = 0; j < across; ++j) {
        b[j] = *reinterpret_cast<const Piece*>(right + place_in_tile<4>(column(j), piece));
      }
#pragma unroll
      for (int i = 0; i < down; ++i) {
        const Piece a = *reinterpret_cast<const Piece*>(left + place_in_tile<4>(row(i * across), piece));
#pragma unroll
        for (int j = 0; j < across; ++j) {
#pragma unroll
          for (int k = 0; k < elements; ++k) sums[i * across + j] += a.values[k] * b[j].values[k];
        }
      }
    }
  }
};

}  // namespace kernelgrowth::cuda
