// Inner products of blocks, and blocks times small matrices, are one kernel: sums over a depth of outer products, a
// tile of 64 x 64 sums for each block of threads. The depth of inner products is the vectors' length, which is divided
// among blocks whose sums a second kernel adds up in order.
#include "cuda/tall_skinny.hpp"

#include <cmath>
#include <vector>

#include "cuda/device.hpp"
#include "eigen/normal_numbers.hpp"

namespace kernelgrowth::cuda {
namespace {

constexpr int threads = 256, warps = threads / 32;
// Sums of a tile's side, of which a thread makes four by four, and how much of the depth is in shared memory at a time.
constexpr int side = 64, own = 4, depth_step = 32;
constexpr int padded_side = side + 4;  // still whole 16 bytes
// Products that are added up in T: of inner products few enough for a solver that takes a quarter of so many eps for
// nothing.
constexpr int inner_run = 32, multiply_run = 256;
// Vectors are divided by their length alone.
constexpr Index least_slab = 128, most_slabs = 64;
constexpr Index most_blocks = 256;  // of those that look for the largest entry

Index slab_rows(Index rows) {
  const Index length = rounded_up(divide_up(rows, most_slabs), depth_step);
  return length < least_slab ? least_slab : length;
}

template <class T>
struct Operand {
  const T* data;
  Index stride, count;
};

// out(i, j) = sum over k of left(i, k) right(k, j)
template <class T, class Total>
struct Product {
  Operand<T> left, right;
  Index depth, slab;  // of which a block takes so much
  Total* out;
  Index out_stride, part_stride;
  bool accumulate;
};

template <class T>
struct alignas(16) Own {
  T values[own];
};

// `by_depth`: left(i, k) lies at k * stride + i, else at i * stride + k.
template <class T, class Total, int run, bool by_depth>
__global__ __launch_bounds__(threads) void product_kernel(const __grid_constant__ Product<T, Total> product) {
  T* left = shared_memory<T>();
  T* right = left + depth_step * padded_side;
  const Index first_row = static_cast<Index>(blockIdx.x) * side, first_column = static_cast<Index>(blockIdx.y) * side;
  const Index begin = static_cast<Index>(blockIdx.z) * product.slab;
  const Index end = begin + product.slab < product.depth ? begin + product.slab : product.depth;
  const int thread = static_cast<int>(threadIdx.x);
  const int row = thread / (side / own) * own, column = thread % (side / own) * own;

  T sums[own][own] = {};
  Total totals[own][own] = {};
  for (Index k = begin; k < end; k += depth_step) {
#pragma unroll
    for (int place = thread; place < depth_step * side; place += threads) {
      const int across = by_depth ? place % side : place / depth_step;
      const int down = by_depth ? place / side : place % depth_step;
      const Index i = first_row + across, at = k + down;
      const Index offset = by_depth ? at * product.left.stride + i : i * product.left.stride + at;
      left[down * padded_side + across] = i < product.left.count && at < end ? product.left.data[offset] : T{0};
    }
#pragma unroll
    for (int place = thread; place < depth_step * side; place += threads) {
      const Index j = first_column + place % side, at = k + place / side;
      right[place / side * padded_side + place % side] =
          j < product.right.count && at < end ? product.right.data[at * product.right.stride + j] : T{0};
    }
    barrier();
#pragma unroll 8
    for (int d = 0; d < depth_step; ++d) {
      const Own<T> a = *reinterpret_cast<const Own<T>*>(left + d * padded_side + row);
      const Own<T> b = *reinterpret_cast<const Own<T>*>(right + d * padded_side + column);
#pragma unroll
      for (int i = 0; i < own; ++i) {
#pragma unroll
        for (int j = 0; j < own; ++j) sums[i][j] += a.values[i] * b.values[j];
      }
    }
    if ((k - begin + depth_step) % run == 0 || k + depth_step >= end) {
#pragma unroll
      for (int i = 0; i < own; ++i) {
#pragma unroll
        for (int j = 0; j < own; ++j) {
          totals[i][j] += static_cast<Total>(sums[i][j]);
          sums[i][j] = 0;
        }
      }
    }
    barrier();
  }
  Total* part = product.out + blockIdx.z * product.part_stride;
#pragma unroll
  for (int i = 0; i < own; ++i) {
#pragma unroll
    for (int j = 0; j < own; ++j) {
      if (first_row + row + i >= product.left.count || first_column + column + j >= product.right.count) continue;
      Total* out = part + (first_row + row + i) * product.out_stride + first_column + column + j;
      *out = product.accumulate ? *out + totals[i][j] : totals[i][j];
    }
  }
}

// out[i] = the sum over parts of parts[part * count + i].
__global__ __launch_bounds__(threads) void sum_kernel(const double* parts, Index number, Index count, double* out) {
  const Index i = static_cast<Index>(blockIdx.x) * threads + threadIdx.x;
  if (i >= count) return;
  double sum = 0;
  for (Index part = 0; part < number; ++part) sum += parts[part * count + i];
  out[i] = sum;
}

// Keeps NaN.
__host__ __device__ inline double larger(double a, double b) {
  return b <= a || a != a ? a : b;
}

template <class T>
__global__ __launch_bounds__(threads) void largest_kernel(const __grid_constant__ MatrixView<const T> v, double* out) {
  double* shared = shared_memory<double>();
  const Index count = v.rows * v.cols, step = static_cast<Index>(gridDim.x) * threads;
  double value = 0;
  for (Index i = static_cast<Index>(blockIdx.x) * threads + threadIdx.x; i < count; i += step) {
    const double entry = static_cast<double>(v.data[i / v.cols * v.row_stride + i % v.cols]);
    value = larger(value, entry < 0 ? -entry : entry);
  }
  for (unsigned distance = 16; distance > 0; distance /= 2) value = larger(value, shuffle_down(value, distance));
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = value;
  barrier();
  if (threadIdx.x != 0) return;
  for (int i = 1; i < warps; ++i) value = larger(value, shared[i]);
  out[blockIdx.x] = value;
}

template <class T>
__global__ __launch_bounds__(threads) void scale_kernel(const __grid_constant__ MatrixView<T> v, T first, T second) {
  const Index i = static_cast<Index>(blockIdx.x) * threads + threadIdx.x;
  if (i >= v.rows * v.cols) return;
  T& entry = v.data[i / v.cols * v.row_stride + i % v.cols];
  entry = entry * first * second;
}

template <class T>
__global__ __launch_bounds__(threads) void normal_kernel(const __grid_constant__ MatrixView<T> v, std::uint64_t key) {
  const Index i = static_cast<Index>(blockIdx.x) * threads + threadIdx.x;
  if (i >= v.rows * v.cols) return;
  const auto row = static_cast<std::uint64_t>(i / v.cols), column = static_cast<std::uint64_t>(i % v.cols);
  v.data[i / v.cols * v.row_stride + i % v.cols] = static_cast<T>(eigen::normal_number(key, row, column));
}

template <class T, class Total, int run, bool by_depth>
void launch_product(const Product<T, Total>& product, Index slabs, void* stream) {
  constexpr int bytes = 2 * depth_step * padded_side * static_cast<int>(sizeof(T));
  const Grid grid{divide_up(product.left.count, side), divide_up(product.right.count, side), slabs};
  launch("tall product", &product_kernel<T, Total, run, by_depth>, grid, threads, bytes, stream, product);
}

template <class T>
Grid blocks_for(const MatrixView<T>& v) {
  return {divide_up(v.rows * v.cols, threads), 1, 1};
}

}  // namespace

std::size_t tall_scratch(index_t rows, index_t columns, index_t other_columns) {
  const Index slabs = divide_up(rows, slab_rows(rows)), numbers = (slabs + 1) * columns * other_columns;
  return static_cast<std::size_t>(numbers < most_blocks ? most_blocks : numbers) * sizeof(double);
}

template <class T>
void tall_products(const MatrixView<const T>& a, const MatrixView<const T>& b, double* out, const Scratch& scratch) {
  const Index slab = slab_rows(a.rows), slabs = divide_up(a.rows, slab), count = a.cols * b.cols;
  if (count == 0) return;
  auto* parts = static_cast<double*>(scratch.memory);
  double* sums = parts + slabs * count;
  const Product<T, double> product{
      {a.data, a.row_stride, a.cols}, {b.data, b.row_stride, b.cols}, a.rows, slab, parts, b.cols, count, false};
  launch_product<T, double, inner_run, true>(product, slabs, scratch.stream);
  launch("tall product", &sum_kernel, {divide_up(count, threads), 1, 1}, threads, 0, scratch.stream,
         static_cast<const double*>(parts), slabs, count, sums);
  download(out, sums, static_cast<std::size_t>(count) * sizeof(double), scratch.stream);
}

template <class T>
void tall_multiply(const MatrixView<const T>& a, const T* s, const MatrixView<T>& out, bool accumulate,
                   const Scratch& scratch) {
  if (a.cols == 0 || out.cols == 0) return;
  auto* small = static_cast<T*>(scratch.memory);
  upload(small, s, static_cast<std::size_t>(a.cols * out.cols) * sizeof(T), scratch.stream);
  const Product<T, T> product{{a.data, a.row_stride, a.rows},
                              {small, out.cols, out.cols},
                              a.cols,
                              a.cols,
                              out.data,
                              out.row_stride,
                              0,
                              accumulate};
  launch_product<T, T, multiply_run, false>(product, 1, scratch.stream);
}

template <class T>
void tall_scale(const MatrixView<T>& v, int exponent, void* stream) {
  // In two steps where one factor would leave the range of T.
  const T first = std::ldexp(T{1}, exponent / 2), second = std::ldexp(T{1}, exponent - exponent / 2);
  launch("scale", &scale_kernel<T>, blocks_for(v), threads, 0, stream, v, first, second);
}

template <class T>
double tall_largest(const MatrixView<const T>& v, const Scratch& scratch) {
  Index blocks = divide_up(v.rows * v.cols, threads);
  if (blocks > most_blocks) blocks = most_blocks;
  auto* parts = static_cast<double*>(scratch.memory);
  launch("largest", &largest_kernel<T>, {blocks, 1, 1}, threads, warps * static_cast<int>(sizeof(double)),
         scratch.stream, v, parts);
  std::vector<double> found(static_cast<std::size_t>(blocks));
  download(found.data(), parts, found.size() * sizeof(double), scratch.stream);
  double result = 0;
  for (const double value : found) result = larger(result, value);
  return result;
}

template <class T>
void tall_normal(const MatrixView<T>& v, std::uint64_t key, void* stream) {
  launch("normal numbers", &normal_kernel<T>, blocks_for(v), threads, 0, stream, v, key);
}

template <class T>
void tall_copy(const MatrixView<const T>& from, const MatrixView<T>& to, void* stream) {
  constexpr std::size_t item = sizeof(T);
  copy_rows(to.data, static_cast<std::size_t>(to.row_stride) * item, from.data,
            static_cast<std::size_t>(from.row_stride) * item, static_cast<std::size_t>(from.cols) * item,
            static_cast<std::size_t>(from.rows), stream);
}

#define KG_INSTANTIATE(T)                                                                                        \
  template void tall_products(const MatrixView<const T>&, const MatrixView<const T>&, double*, const Scratch&);  \
  template void tall_multiply(const MatrixView<const T>&, const T*, const MatrixView<T>&, bool, const Scratch&); \
  template void tall_scale(const MatrixView<T>&, int, void*);                                                    \
  template double tall_largest(const MatrixView<const T>&, const Scratch&);                                      \
  template void tall_normal(const MatrixView<T>&, std::uint64_t, void*);                                         \
  template void tall_copy(const MatrixView<const T>&, const MatrixView<T>&, void*);
KG_INSTANTIATE(float)
KG_INSTANTIATE(double)
#undef KG_INSTANTIATE

}  // namespace kernelgrowth::cuda
