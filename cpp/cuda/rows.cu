#include "cuda/rows.hpp"

#include "cuda/device.hpp"

namespace kernelgrowth::cuda {
namespace {

constexpr int threads = 256;
// Sums over positions are made in runs of so many.
constexpr Index run_positions = 256;

template <Precision precision>
struct Element {
  using Source = float;
  using Type = float;
  __device__ static float of(float x) { return x; }
};
template <>
struct Element<Precision::bf16> {
  using Source = float;
  using Type = std::uint16_t;
  __device__ static std::uint16_t of(float x) { return rounded_bf16(x); }
};
template <>
struct Element<Precision::tf32> {
  using Source = float;
  using Type = float;
  __device__ static float of(float x) { return rounded_tf32(x); }
};
template <>
struct Element<Precision::float64> {
  using Source = double;
  using Type = double;
  __device__ static double of(double x) { return x; }
};

// sum_t backprops[n, c, t, unit] activations[n, t, input], or of the backprops alone for a bias.
template <class T>
__device__ T outer_product(const RowsSource<T>& source, Index n, Index c, Index element) {
  const Index columns = source.inputs + (source.bias ? 1 : 0), matrix = source.units * columns;
  // Outputs that are folded into one vector follow one another.
  c += element / matrix;
  element %= matrix;
  const Index unit = element / columns, column = element % columns;
  const bool is_bias = column == source.inputs;
  const Index input = is_bias ? 0 : column;
  const T* d = source.backprops + n * source.backprop_strides[0] + c * source.backprop_strides[1] +
               unit * source.backprop_strides[3];
  const T* a = source.activations + n * source.activation_strides[0] + input * source.activation_strides[2];
  T total = 0;
  for (Index begin = 0; begin < source.summed_positions; begin += run_positions) {
    const Index end = begin + run_positions < source.summed_positions ? begin + run_positions : source.summed_positions;
    T sum = 0;
    for (Index t = begin; t < end; ++t) {
      const T backprop = d[t * source.backprop_strides[2]];
      sum += is_bias ? backprop : backprop * a[t * source.activation_strides[1]];
    }
    total += sum;
  }
  return total;
}

// A thread writes pieces of 16 bytes.
template <Precision precision>
__global__ __launch_bounds__(threads) void rows_kernel(
    const __grid_constant__ RowsSource<typename Element<precision>::Source> source,
    const __grid_constant__ PackedRows target) {
  using T = typename Element<precision>::Source;
  using Type = typename Element<precision>::Type;
  constexpr int count = static_cast<int>(piece_bytes / sizeof(Type));
  struct alignas(piece_bytes) Piece {
    Type values[count];
  };
  const Index pieces_of_row = target.row_bytes / piece_bytes;
  const Index place = static_cast<Index>(blockIdx.x) * threads + threadIdx.x;
  const Index row = place / pieces_of_row, piece = place % pieces_of_row;
  if (row >= target.rows) return;
  const Index output = blockIdx.y, position = blockIdx.z, n = source.first_example + row;
  Piece result;
#pragma unroll
  for (int i = 0; i < count; ++i) {
    const Index offset = piece * count + i, element = source.first_element + offset;
    T value = 0;
    if (row < source.examples && offset < source.length) {
      if (source.is_outer_product) {
        value = outer_product(source, n, output, element);
      } else {
        value = source.data[n * source.example_stride + output * source.output_stride +
                            position * source.position_stride + element * source.element_stride];
      }
      if (source.weights) value *= source.weights[element];
    }
    result.values[i] = Element<precision>::of(value);
  }
  unsigned char* start = target.data + output * target.output_bytes + position * target.position_bytes;
  *reinterpret_cast<Piece*>(start + row * target.row_bytes + piece * piece_bytes) = result;
}

template <Precision precision>
void run(const RowsSource<typename Element<precision>::Source>& source, const PackedRows& target, void* stream) {
  const Index blocks = divide_up(target.rows * (target.row_bytes / piece_bytes), threads);
  launch("rows", &rows_kernel<precision>, {blocks, source.outputs, source.positions}, threads, 0, stream, source,
         target);
}

}  // namespace

template <>
void launch_rows<float>(const RowsSource<float>& source, const PackedRows& target, Precision precision, void* stream) {
  switch (precision) {
    case Precision::bf16:
      return run<Precision::bf16>(source, target, stream);
    case Precision::tf32:
      return run<Precision::tf32>(source, target, stream);
    default:
      return run<Precision::float32>(source, target, stream);
  }
}

template <>
void launch_rows<double>(const RowsSource<double>& source, const PackedRows& target, Precision, void* stream) {
  run<Precision::float64>(source, target, stream);
}

}  // namespace kernelgrowth::cuda
