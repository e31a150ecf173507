#include "cpu/tall_skinny.hpp"

#include <algorithm>
#include <vector>

#include "cpu/dispatch.hpp"
#include "cpu/packing.hpp"
#include "kernelgrowth/error.hpp"
#include "runtime/workspace.hpp"

namespace kernelgrowth::cpu {
namespace {

// Rows packed at a time, and those of them that are summed in T: sums of equal terms are off by a quarter of so many
// eps, which has to stay below what a solver takes for nothing.
constexpr index_t run_rows = 256, summed_rows = 32;
// Rows whose sums are kept apart: at least so many, and at most so many parts, by the number of rows alone.
constexpr index_t least_rows = 2 * run_rows, most_slabs = 64;
constexpr double operations_per_thread = 4e6;

template <class T>
class TallProducts {
 public:
  TallProducts(const MatrixView<const T>& a, const MatrixView<const T>& b, const TallOptions& options)
      : a_(a), b_(b), options_(options), kernels_(kernel_table<T>(options.isa)) {
    if (a.rows != b.rows) throw InvalidArgument("tall_products: the blocks differ in rows");
    slab_rows_ = std::max(least_rows, round_up(ceil_div(a.rows, most_slabs), run_rows));
    slabs_ = ceil_div(a.rows, slab_rows_);
    threads_ = options.threads > 0 ? options.threads : default_threads();
    const double operations = 2.0 * static_cast<double>(a.rows) * static_cast<double>(a.cols * b.cols);
    threads_ = static_cast<int>(std::clamp(operations / operations_per_thread, 1.0, static_cast<double>(threads_)));
  }

  void run(double* out) {
    const auto entries = static_cast<std::size_t>(a_.cols * b_.cols);
    const auto own = static_cast<std::size_t>(run_rows * (panel() + tile_rows()) + tile_rows() * panel());
    Workspace memory(static_cast<std::size_t>(threads_) * Workspace::bytes_for<T>(own) +
                     Workspace::bytes_for<double>(static_cast<std::size_t>(slabs_) * entries));
    std::vector<T*> scratch;
    for (int i = 0; i < threads_; ++i) scratch.push_back(memory.take<T>(own));
    double* parts = memory.take<double>(static_cast<std::size_t>(slabs_) * entries);
    parallel_for(
        slabs_, threads_,
        [&](index_t slab, int worker) {
          double* sums = parts + static_cast<std::size_t>(slab) * entries;
          std::fill_n(sums, entries, 0.0);
          const index_t first = slab * slab_rows_, last = std::min(first + slab_rows_, a_.rows);
          for (index_t row = first; row < last; row += run_rows) {
            add_run(row, std::min(run_rows, last - row), sums, scratch[static_cast<std::size_t>(worker)]);
          }
        },
        options_.poll);
    std::copy_n(parts, entries, out);
    for (index_t slab = 1; slab < slabs_; ++slab) {
      const double* sums = parts + static_cast<std::size_t>(slab) * entries;
      for (std::size_t i = 0; i < entries; ++i) out[i] += sums[i];
    }
  }

 private:
  index_t panel() const { return static_cast<index_t>(kernels_.panel); }
  index_t lanes() const { return static_cast<index_t>(kernels_.lanes); }
  index_t tile_rows() const { return static_cast<index_t>(kernels_.tile_rows); }

  void add_run(index_t row, index_t depth, double* sums, T* scratch) const {
    T* packed = scratch;
    T* rest = packed + run_rows * panel();
    T* tile = rest + run_rows * tile_rows();
    for (index_t j = 0; j < b_.cols; j += panel()) {
      const index_t width = std::min(panel(), b_.cols - j);
      kernels_.pack_columns(b_.row(row) + j, static_cast<std::size_t>(width), static_cast<std::size_t>(depth),
                            b_.row_stride, 1, packed);
      const auto products = kernels_.row_products[ceil_div(width, lanes()) - 1];
      for (index_t i = 0; i < a_.cols; i += tile_rows()) {
        const index_t count = std::min(tile_rows(), a_.cols - i);
        const T* left = a_.row(row) + i;
        index_t stride = a_.row_stride;
        if (count < tile_rows()) {
          // The register tile reads all of its rows; what lies beyond the last column may not be there.
          for (index_t k = 0; k < depth; ++k) {
            for (index_t c = 0; c < tile_rows(); ++c) {
              rest[k * tile_rows() + c] = c < count ? left[k * stride + c] : T{0};
            }
          }
          left = rest;
          stride = tile_rows();
        }
        for (index_t k = 0; k < depth; k += summed_rows) {
          products(left + k * stride, 1, stride, packed + k * panel(),
                   static_cast<std::size_t>(std::min(summed_rows, depth - k)), tile, kernels_.panel, false);
          for (index_t r = 0; r < count; ++r) {
            double* target = sums + (i + r) * b_.cols + j;
            for (index_t c = 0; c < width; ++c) target[c] += static_cast<double>(tile[r * panel() + c]);
          }
        }
      }
    }
  }

  const MatrixView<const T>& a_;
  const MatrixView<const T>& b_;
  const TallOptions& options_;
  const KernelTable<T>& kernels_;
  index_t slab_rows_ = 1, slabs_ = 1;
  int threads_ = 1;
};

}  // namespace

template <class T>
void tall_products(const MatrixView<const T>& a, const MatrixView<const T>& b, double* out,
                   const TallOptions& options) {
  if (a.cols < 1 || b.cols < 1) return;
  TallProducts<T>(a, b, options).run(out);
}

template void tall_products(const MatrixView<const float>&, const MatrixView<const float>&, double*,
                            const TallOptions&);
template void tall_products(const MatrixView<const double>&, const MatrixView<const double>&, double*,
                            const TallOptions&);

}  // namespace kernelgrowth::cpu
