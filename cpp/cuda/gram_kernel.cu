#include "cuda/gram_kernel.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <vector>

#include "cuda/device.hpp"
#include "cuda/multiply.hpp"

namespace kernelgrowth::cuda {
namespace {

// Copies the chunks of all products of a tile, in the order in which they are multiplied, some stages ahead of that.
template <class T, class Shape>
class Loader {
 public:
  __device__ Loader(const GramArguments<T>& arguments, TilePlace tile, Index left_output, Index right_output,
                    unsigned char* stages)
      : arguments_(arguments),
        first_row_(tile.row * Shape::rows),
        first_column_(tile.column * Shape::columns),
        left_output_(left_output),
        right_output_(right_output),
        stages_(stages) {
    enter();
  }

  // Of the next chunk into a stage, if there is one left. Each call closes a group of copies.
  __device__ void copy(int stage) {
    if (term_ < arguments_.count) {
      unsigned char* target = stages_ + stage * stage_bytes;
      copy_rows<Shape::rows>(left_, target);
      copy_rows<Shape::columns>(right_, target + Shape::rows * chunk_bytes);
      advance();
    }
    commit_copies();
  }

  static constexpr int stage_bytes = (Shape::rows + Shape::columns) * static_cast<int>(chunk_bytes);

 private:
  template <int rows>
  __device__ void copy_rows(const unsigned char* from, unsigned char* to) const {
    constexpr int at_once = Shape::threads / static_cast<int>(pieces);
    static_assert(rows % at_once == 0, "all threads copy the same number of pieces");
    const int piece = static_cast<int>(threadIdx.x) % pieces, row = static_cast<int>(threadIdx.x) / pieces;
#pragma unroll
    for (int i = 0; i < rows; i += at_once) {
      copy_async(to + place_in_tile<sizeof(T)>(row + i, piece), from + (row + i) * row_bytes_ + piece * piece_bytes);
    }
  }

  __device__ void enter() {
    if (term_ >= arguments_.count) return;
    const PackedTerm<T>& term = arguments_.terms[term_];
    if (factor_ == 0 && term.given) factor_ = 1;
    const PackedFactor& factor = factor_ == 0 ? term.first : term.second;
    row_bytes_ = factor.row_bytes;
    left_ = start(factor.left, first_row_, left_output_, left_position_);
    right_ = start(factor.right, first_column_, right_output_, right_position_);
    end_ = left_ + row_bytes_;
  }
  __device__ const unsigned char* start(const PackedSide& side, Index row, Index output, int position) const {
    return side.data + row * row_bytes_ + output * side.output_bytes + position * side.position_bytes;
  }

  __device__ void advance() {
    left_ += chunk_bytes;
    right_ += chunk_bytes;
    if (left_ < end_) return;
    const PackedTerm<T>& term = arguments_.terms[term_];
    if (factor_ == 0 && term.has_second) {
      factor_ = 1;
    } else {
      factor_ = 0;
      if (++right_position_ == term.right_positions) {
        right_position_ = 0;
        if (++left_position_ == term.left_positions) {
          left_position_ = 0;
          ++term_;
        }
      }
    }
    enter();
  }

  const GramArguments<T>& arguments_;
  Index first_row_, first_column_, left_output_, right_output_;
  unsigned char* stages_;
  int term_ = 0, left_position_ = 0, right_position_ = 0, factor_ = 0;
  Index row_bytes_ = 0;
  const unsigned char *left_ = nullptr, *right_ = nullptr, *end_ = nullptr;
};

// A thread's numbers of the tile's total: in registers where there is room for them, else in shared memory.
template <class T, int count, int threads, bool in_shared>
struct Totals {
  T values[count];
  __device__ explicit Totals(T*) {}
  __device__ T& operator[](int i) { return values[i]; }
};
template <class T, int count, int threads>
struct Totals<T, count, threads, true> {
  T* values;
  __device__ explicit Totals(T* shared) : values(shared + threadIdx.x) {}
  __device__ T& operator[](int i) { return values[i * threads]; }
};

template <class Multiply_, class Shape_, int stages_, bool total_in_shared_>
struct Configuration {
  using Multiply = Multiply_;
  using Shape = Shape_;
  using T = typename Multiply::Number;
  static constexpr int stages = stages_;
  static constexpr bool total_in_shared = total_in_shared_;
  using Total = Totals<T, Multiply::count, Shape::threads, total_in_shared>;
  static constexpr int stage_bytes = Loader<T, Shape>::stage_bytes;
  // Chunks that are copied ahead of the one that is multiplied.
  static constexpr int ahead = stages - 1 - Multiply::under_way;
  static_assert(ahead >= 1, "a stage is not copied to while it is read");
  static constexpr int shared_bytes =
      stages * stage_bytes + (total_in_shared ? Shape::rows * Shape::columns * static_cast<int>(sizeof(T)) : 0);
};

// The product of one factor's vectors, `fold`ed away run by run.
template <class Configuration, class Loader, class Fold>
__device__ void product(Loader& loader, const unsigned char* shared, int& stage, Index chunks, const Fold& fold) {
  using Multiply = typename Configuration::Multiply;
  constexpr int stages = Configuration::stages, ahead = Configuration::ahead;
  for (Index chunk = 0; chunk < chunks;) {
    const Index end = chunks - chunk < run_chunks ? chunks : chunk + run_chunks;
    typename Multiply::Number sums[Multiply::count] = {};
    for (; chunk < end; ++chunk) {
      wait_copies<ahead - 1>();
      Multiply::after_copies();
      barrier();
      loader.copy(stage + ahead < stages ? stage + ahead : stage + ahead - stages);
      const unsigned char* left = shared + stage * Configuration::stage_bytes;
      Multiply::multiply(left, left + Configuration::Shape::rows * chunk_bytes, sums);
      stage = stage == stages - 1 ? 0 : stage + 1;
    }
    Multiply::finish(sums);
#pragma unroll
    for (int i = 0; i < Multiply::count; ++i) fold(i, sums[i]);
  }
}

template <class Configuration>
__global__ __launch_bounds__(Configuration::Shape::threads) void gram_kernel(
    const __grid_constant__ GramArguments<typename Configuration::T> arguments) {
  using T = typename Configuration::T;
  using Multiply = typename Configuration::Multiply;
  using Shape = typename Configuration::Shape;
  static_assert(Shape::rows == Shape::columns, "a triangle is divided into squares");
  const GramOutput<T>& out = arguments.out;
  const Index rows = divide_up(out.rows, Shape::rows), columns = divide_up(out.columns, Shape::columns);
  const Index pairs = out.pairs(), index = blockIdx.x / pairs, pair = blockIdx.x % pairs;
  const TilePlace tile = out.triangle ? triangle_tile(index, rows) : rectangle_tile(index, rows, columns);
  const Index c = out.paired ? pair : pair / out.right_outputs, e = out.paired ? pair : pair % out.right_outputs;
  if (!out.wants(tile, c, e)) return;

  unsigned char* shared = shared_memory<unsigned char>();
  typename Configuration::Total total(
      reinterpret_cast<T*>(shared + Configuration::stages * Configuration::stage_bytes));
  auto row = [&](int i) { return tile.row * Shape::rows + Multiply::row(i); };
  auto column = [&](int i) { return tile.column * Shape::columns + Multiply::column(i); };
  // How far a thread's numbers are from its first one: the same of all threads, and known to the compiler.
  auto down = [&](int i) { return Multiply::row(i) - Multiply::row(0); };
  auto across = [&](int i) { return Multiply::column(i) - Multiply::column(0); };

  Loader<T, Shape> loader(arguments, tile, c, e, shared);
  for (int stage = 0; stage < Configuration::ahead; ++stage) loader.copy(stage);
  if (out.accumulate) {
#pragma unroll
    for (int i = 0; i < Multiply::count; ++i) {
      const Index n = row(i), m = column(i);
      total[i] = out.has(n, c, m, e) ? out.data[out.mirrored ? out.upper(n, c, m, e) : out.place(n, c, m, e)] : T{0};
    }
  } else {
#pragma unroll
    for (int i = 0; i < Multiply::count; ++i) total[i] = 0;
  }

  int stage = 0;
  for (int t = 0; t < arguments.count; ++t) {
    const PackedTerm<T>& term = arguments.terms[t];
    const T scale = term.scale, offset = term.offset;
    const Index first_chunks = term.first.row_bytes / chunk_bytes, second_chunks = term.second.row_bytes / chunk_bytes;
    if (!term.has_second) {
      product<Configuration>(loader, shared, stage, first_chunks, [&](int i, T sum) { total[i] += scale * sum; });
      if (offset != 0) {
#pragma unroll
        for (int i = 0; i < Multiply::count; ++i) total[i] += scale * offset;
      }
      continue;
    }
    for (Index p = 0; p < static_cast<Index>(term.left_positions) * term.right_positions; ++p) {
      T factor[Multiply::count] = {};
      if (term.given) {
        const T* given = term.given + p * term.given_pair_stride + row(0) * term.given_row_stride + column(0);
#pragma unroll
        for (int i = 0; i < Multiply::count; ++i) {
          if (row(i) < out.rows && column(i) < out.columns)
            factor[i] = given[down(i) * term.given_row_stride + across(i)];
        }
      } else {
        product<Configuration>(loader, shared, stage, first_chunks, [&](int i, T sum) { factor[i] += sum; });
      }
#pragma unroll
      for (int i = 0; i < Multiply::count; ++i) factor[i] = scale * (factor[i] + offset);
      product<Configuration>(loader, shared, stage, second_chunks, [&](int i, T sum) { total[i] += factor[i] * sum; });
    }
  }
  wait_copies<0>();

  // Of most tiles every entry is written. Places that were worked out one by one took two fifths of the time of
  // 128-long vectors.
  const bool is_whole = (tile.row + 1) * Shape::rows <= out.rows && (tile.column + 1) * Shape::columns <= out.columns &&
                        !(out.mirrored && out.triangle && tile.row == tile.column);
  T* const first = out.data + out.place(row(0), c, column(0), e);
  T* const first_mirrored = out.data + out.mirror(row(0), c, column(0), e);
#pragma unroll
  for (int i = 0; i < Multiply::count; ++i) {
    if (!is_whole && !out.has(row(i), c, column(i), e)) continue;
    const T value = total[i];
    first[down(i) * out.row_stride + across(i) * out.column_stride] = value;
    if (out.mirrored) first_mirrored[across(i) * out.row_stride + down(i) * out.column_stride] = value;
  }
}

using LargeShape = Shape<large_tile, large_tile, 64, 32>;
using WarpgroupShape = Shape<large_tile, large_tile, 16, large_tile>;
using SmallShape = Shape<small_tile, small_tile, 32, 32>;
using DoubleShape = Shape<small_tile, small_tile, 32, 16>;

template <Precision precision>
using Large = Configuration<TensorCores<precision, LargeShape>, LargeShape, 3, true>;
template <Precision precision>
using Warpgroup = Configuration<Warpgroups<precision, WarpgroupShape>, WarpgroupShape, 4, true>;
template <Precision precision>
using Small = Configuration<TensorCores<precision, SmallShape>, SmallShape, 4, false>;
using SmallDouble = Configuration<TensorCores<Precision::float64, DoubleShape>, DoubleShape, 4, false>;
using SmallSimt = Configuration<Simt<float, SmallShape>, SmallShape, 3, false>;

template <class Configuration>
void run(const GramArguments<typename Configuration::T>& arguments, void* stream) {
  using Shape = typename Configuration::Shape;
  const auto& out = arguments.out;
  const Index rows = divide_up(out.rows, Shape::rows), columns = divide_up(out.columns, Shape::columns);
  const Index tiles = out.triangle ? triangle_tiles(rows) : rows * columns;
  launch("gram", &gram_kernel<Configuration>, {tiles * out.pairs(), 1, 1}, Shape::threads, Configuration::shared_bytes,
         stream, arguments);
}

// A matrix of random vectors as they are packed.
template <Precision precision>
std::vector<unsigned char> random_rows(Index rows, Index row_bytes, std::uint32_t& state) {
  std::vector<unsigned char> bytes(static_cast<std::size_t>(rows * row_bytes));
  for (std::size_t i = 0; i < bytes.size(); i += static_cast<std::size_t>(element_bytes(precision))) {
    state = state * 1664525u + 1013904223u;
    const float x = static_cast<float>(state >> 8) * 0x1p-23f - 1;
    const std::uint16_t half = rounded_bf16(x);
    const float word = rounded_tf32(x);
    if constexpr (precision == Precision::bf16) {
      std::memcpy(&bytes[i], &half, sizeof half);
    } else {
      std::memcpy(&bytes[i], &word, sizeof word);
    }
  }
  return bytes;
}

// Whether two configurations compute the same of random vectors, to rounding.
template <class Configuration, class Other, Precision precision>
bool agree(void* stream) {
  constexpr Index rows = large_tile, columns = 2 * large_tile - 5, padded = 2 * large_tile;
  constexpr Index row_bytes[] = {5 * chunk_bytes, 2 * chunk_bytes};
  constexpr std::size_t entries = rows * columns;
  const std::vector<float> nothing(entries, std::numeric_limits<float>::quiet_NaN());
  std::uint32_t state = 1;
  std::vector<std::unique_ptr<DeviceMemory>> memory;
  auto on_device = [&](const void* bytes, std::size_t count) {
    memory.push_back(std::make_unique<DeviceMemory>(count));
    upload(memory.back()->data(), bytes, count, stream);
    return static_cast<unsigned char*>(memory.back()->data());
  };
  GramArguments<float> arguments;
  arguments.count = 1;
  PackedTerm<float>& term = arguments.terms[0];
  term.has_second = true;
  term.offset = 0.5f;
  PackedFactor* const factors[] = {&term.first, &term.second};
  for (int k = 0; k < 2; ++k) {
    factors[k]->row_bytes = row_bytes[k];
    for (PackedSide* side : {&factors[k]->left, &factors[k]->right}) {
      const auto vectors = random_rows<precision>(padded, row_bytes[k], state);
      side->data = on_device(vectors.data(), vectors.size());
    }
  }
  GramOutput<float>& out = arguments.out;
  out.rows = rows;
  out.columns = out.row_stride = columns;
  std::vector<float> results[2];
  for (int k = 0; k < 2; ++k) {
    out.data = reinterpret_cast<float*>(on_device(nothing.data(), entries * sizeof(float)));
    k == 0 ? run<Configuration>(arguments, stream) : run<Other>(arguments, stream);
    results[k].resize(entries);
    download(results[k].data(), out.data, entries * sizeof(float), stream);
  }
  float largest = 0, difference = 0;
  for (std::size_t i = 0; i < entries; ++i) {
    const float apart = std::abs(results[0][i] - results[1][i]);
    if (!(apart <= std::numeric_limits<float>::max())) return false;
    largest = std::max(largest, std::abs(results[1][i]));
    difference = std::max(difference, apart);
  }
  return difference <= 1e-4f * largest;
}

// Warpgroups read shared memory as a descriptor tells them: what a device makes of it is seen before it is trusted.
template <Precision precision>
bool warpgroups_multiply(void* stream) {
  static std::mutex mutex;
  static std::map<int, bool> known;
  if (!has_warpgroups() || Warpgroup<precision>::shared_bytes > shared_memory_limit()) return false;
  const std::lock_guard lock(mutex);
  const auto [found, is_new] = known.try_emplace(current_device(), false);
  if (is_new) {
    try {
      found->second = agree<Warpgroup<precision>, Large<precision>, precision>(stream);
    } catch (const std::runtime_error&) {
      // Without memory for the trial, kernels that need none serve as well.
    }
  }
  return found->second;
}

template <Precision precision>
void run_large(const GramArguments<float>& arguments, void* stream) {
  if (warpgroups_multiply<precision>(stream)) {
    run<Warpgroup<precision>>(arguments, stream);
  } else {
    run<Large<precision>>(arguments, stream);
  }
}

}  // namespace

bool prefers_large_tiles(Precision precision, Index tiles) {
  constexpr Index for_each_multiprocessor = 2;
  return precision != Precision::simt && precision != Precision::float64 &&
         tiles >= for_each_multiprocessor * multiprocessors() &&
         Large<Precision::float32>::shared_bytes <= shared_memory_limit();
}

template <>
void launch_gram<float>(const GramArguments<float>& arguments, Precision precision, bool large, void* stream) {
  switch (precision) {
    case Precision::bf16:
      return large ? run_large<Precision::bf16>(arguments, stream) : run<Small<Precision::bf16>>(arguments, stream);
    case Precision::tf32:
      return large ? run_large<Precision::tf32>(arguments, stream) : run<Small<Precision::tf32>>(arguments, stream);
    case Precision::float32:
      return large ? run<Large<Precision::float32>>(arguments, stream)
                   : run<Small<Precision::float32>>(arguments, stream);
    default:
      return run<SmallSimt>(arguments, stream);
  }
}

template <>
void launch_gram<double>(const GramArguments<double>& arguments, Precision, bool, void* stream) {
  run<SmallDouble>(arguments, stream);
}

}  // namespace kernelgrowth::cuda
