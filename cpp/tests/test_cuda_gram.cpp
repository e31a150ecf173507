// The Gram of the GPU, its kernels run on the host: random terms of all kinds, compared with plain loops in double.
#include <set>

#include "cuda/device.hpp"
#include "cuda/gram_kernel.hpp"
#include "gram_case.hpp"
#include "kernelgrowth/cuda_gram.hpp"
#include "kernelgrowth/error.hpp"

using namespace kernelgrowth;
using namespace kernelgrowth::testing;
using cuda::Precision;

namespace {

double promised(Precision precision) {
  switch (precision) {
    case Precision::bf16:
      return 0.02;
    case Precision::tf32:
      return 3e-3;
    case Precision::float64:
      return 1e-12;
    default:
      return 1e-5;
  }
}

template <class T>
std::vector<T> run(Random& random, const GramCase<T>& c, const std::vector<Term<T>>& terms,
                   const std::vector<T>& before, cuda::GramOptions options, std::size_t workspace) {
  StridedOutput<T> out(random, c.kernels, c.rows(), c.cols());
  if (options.accumulate) out.assign(before);
  options.kernel_stride = out.matrix_stride();
  // Of the exact size, so that a sanitizer sees what lies beyond it; poison is no number, and would be seen too.
  std::vector<unsigned char> memory(workspace + 256, 0xff);
  const auto start = reinterpret_cast<std::uintptr_t>(memory.data());
  options.workspace = memory.data() + (256 - start % 256) % 256;
  options.workspace_bytes = workspace;
  cuda::gram<T>(terms, out.view(), options);
  return out.values();
}

template <class T>
void random_case(Random& random, Precision precision) {
  cuda::emulated::device = {
      random.integer(0, 1) == 1 ? 227 * 1024 : 99 * 1024, random.integer(0, 1) == 1 ? 0 : 132,
      random.integer(0, 1) == 1 ? cuda::emulated::Order::forwards : cuda::emulated::Order::backwards,
      random.integer(0, 1) == 1};
  const GramCase<T> c(random);
  const std::vector<Term<T>> terms = c.views();
  cuda::GramOptions options;
  options.symmetric = c.symmetric;
  options.kernels = c.kernels;
  options.accumulate = random.integer(0, 3) == 0;
  options.precision = precision;
  const index_t rows = c.rows(), cols = c.cols();
  const auto before = random.normals<T>(c.kernels * rows * cols);
  const GramWorkspace need = cuda::gram_workspace<T>(terms, {nullptr, rows, cols, cols}, options);
  CHECK(0 < need.minimum && need.minimum <= need.full);

  const std::vector<T> result = run(random, c, terms, before, options, need.full);
  check_entries(c, result, options.accumulate ? &before : nullptr, promised(precision));

  const auto between = random.integer(0, static_cast<index_t>(need.full - need.minimum));
  const std::size_t less = need.minimum + (random.integer(0, 1) == 1 ? at(between) : 0);
  cuda::emulated::device.multiprocessors = 132;
  CHECK(same_bits(run(random, c, terms, before, options, less), result));
  CHECK_THROWS(WorkspaceTooSmall, run(random, c, terms, before, options, need.minimum - 1));
}

void random_case(Random& random) {
  static constexpr Precision all[] = {Precision::bf16, Precision::tf32, Precision::float32, Precision::simt};
  const index_t which = random.integer(0, 4);
  which == 4 ? random_case<double>(random, Precision::float64) : random_case<float>(random, all[which]);
}

// Large tiles are multiplied by warpgroups on devices that have them, once these have been tried.
void warpgroups_are_used() {
  cuda::emulated::device = {227 * 1024, 132, cuda::emulated::Order::forwards, true};
  const std::vector<unsigned char> rows(cuda::large_tile * cuda::chunk_bytes, 0);
  float result = 1;
  cuda::GramArguments<float> arguments;
  arguments.count = 1;
  arguments.terms[0].first = {{rows.data(), 0, 0}, {rows.data(), 0, 0}, cuda::chunk_bytes};
  arguments.out.data = &result;
  arguments.out.rows = arguments.out.columns = arguments.out.row_stride = 1;
  for (const Precision precision : {Precision::bf16, Precision::tf32, Precision::float32}) {
    cuda::launch_gram<float>(arguments, precision, true, nullptr);
    const long before = cuda::emulated::warpgroup_products;
    cuda::launch_gram<float>(arguments, precision, true, nullptr);
    const long steps = cuda::pieces / 2, threads = 256;
    CHECK(cuda::emulated::warpgroup_products - before == (precision == Precision::float32 ? 0 : steps * threads));
    CHECK(result == 0);
  }
}

// Rectangles and triangles of tiles are covered once, whatever their sizes.
void tiles_are_covered_once() {
  for (index_t rows = 1; rows <= 40; ++rows) {
    std::set<std::pair<index_t, index_t>> seen;
    for (index_t i = 0; i < cuda::triangle_tiles(rows); ++i) {
      const auto tile = cuda::triangle_tile(i, rows);
      CHECK(0 <= tile.row && tile.row <= tile.column && tile.column < rows);
      CHECK(seen.emplace(tile.row, tile.column).second);
    }
    for (index_t columns = 1; columns <= 40; ++columns) {
      seen.clear();
      for (index_t i = 0; i < rows * columns; ++i) {
        const auto tile = cuda::rectangle_tile(i, rows, columns);
        CHECK(0 <= tile.row && tile.row < rows && 0 <= tile.column && tile.column < columns);
        CHECK(seen.emplace(tile.row, tile.column).second);
      }
    }
  }
}

// Pieces of a tile lie in places of their own; what is read together lies in different banks.
template <int element_bytes>
void pieces_have_places() {
  std::set<index_t> seen;
  for (index_t row = 0; row < cuda::large_tile; ++row) {
    for (index_t piece = 0; piece < cuda::pieces; ++piece) {
      const index_t place = cuda::place_in_tile<element_bytes>(row, piece);
      CHECK(place % cuda::piece_bytes == 0 && place / cuda::chunk_bytes == row && seen.insert(place).second);
    }
  }
  const index_t together = element_bytes == 8 ? 4 : 8, wide = element_bytes == 8 ? 2 : 1;
  for (index_t row = 0; row < cuda::large_tile; row += together) {
    for (index_t piece = 0; piece < cuda::pieces; piece += wide) {
      std::set<index_t> banks;
      for (index_t i = 0; i < together; ++i) {
        for (index_t p = 0; p < wide; ++p) {
          banks.insert(cuda::place_in_tile<element_bytes>(row + i, piece + p) % cuda::chunk_bytes);
        }
      }
      CHECK(banks.size() == at(together * wide));
    }
  }
}

// Each entry of a matrix is written by one block, once, and a mirrored one to both its places.
void entries_are_written_once() {
  for (const index_t n : {1, 63, 64, 65, 130}) {
    for (const int outputs : {1, 3}) {
      for (const bool triangle : {false, true}) {
        cuda::GramOutput<float> out;
        out.rows = n;
        out.columns = triangle ? n : n + 5;
        out.left_outputs = out.right_outputs = outputs;
        out.row_stride = out.columns * outputs * outputs;
        out.left_output = out.columns * outputs;
        out.column_stride = outputs;
        out.right_output = 1;
        out.triangle = out.mirrored = triangle;
        std::vector<int> written(at(n * outputs * out.columns * outputs));
        const index_t rows = cuda::divide_up(out.rows, 64), columns = cuda::divide_up(out.columns, 64);
        const index_t tiles = triangle ? cuda::triangle_tiles(rows) : rows * columns;
        for (index_t block = 0; block < tiles * out.pairs(); ++block) {
          const index_t index = block / out.pairs(), c = block % out.pairs() / outputs, e = block % outputs;
          const auto tile = triangle ? cuda::triangle_tile(index, rows) : cuda::rectangle_tile(index, rows, columns);
          if (!out.wants(tile, c, e)) continue;
          for (index_t i = tile.row * 64; i < tile.row * 64 + 64; ++i) {
            for (index_t j = tile.column * 64; j < tile.column * 64 + 64; ++j) {
              if (!out.has(i, c, j, e)) continue;
              const index_t place = out.place(i, c, j, e), mirror = out.mirror(i, c, j, e);
              ++written[at(place)];
              if (triangle && mirror != place) ++written[at(mirror)];
            }
          }
        }
        for (const int count : written) CHECK(count == 1);
      }
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  tiles_are_covered_once();
  warpgroups_are_used();
  pieces_have_places<4>();
  pieces_have_places<8>();
  entries_are_written_once();
  const long cases = argc > 1 ? std::strtol(argv[1], nullptr, 10) : 100;
  const long seed = argc > 2 ? std::strtol(argv[2], nullptr, 10) : 1;
  for (long i = 0; i < cases; ++i) {
    Random random(seed, i);
    random_case(random);
    if (argc > 3) std::fprintf(stderr, "%ld\n", i);
  }
}
