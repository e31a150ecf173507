// The product of two matrices. Panels of `b` are packed once for all threads; rows of `a` are read where they lie,
// because the networks' products are narrow: a row of `a` meets so few panels that packing it would not pay.
#include "kernelgrowth/gemm.hpp"

#include <algorithm>
#include <vector>

#include "cpu/dispatch.hpp"
#include "cpu/packing.hpp"
#include "kernelgrowth/error.hpp"
#include "runtime/workspace.hpp"

namespace kernelgrowth {
namespace cpu {
namespace {

// Calibrated on Zen 4: what a thread works on stays in its second-level cache, packed panels in the third.
constexpr index_t depth_block = 256;
constexpr index_t widest_group = 1024, deepest_group = 4 * depth_block;  // of `b`, packed at a time
constexpr index_t chunk_rows = 96;
constexpr index_t tasks_per_thread = 4;
// Waking a thread costs about as long as one needs for so many operations.
constexpr double operations_per_thread = 4e6;

template <class T>
class Gemm {
 public:
  Gemm(const StridedMatrix<T>& a, const StridedMatrix<T>& b, MatrixView<T> out, const GemmOptions& options)
      : a_(a), b_(b), out_(out), options_(options), kernels_(kernel_table<T>(options.isa)) {
    if (a.rows < 1 || a.cols < 1 || b.cols < 1) throw InvalidArgument("gemm: a matrix is empty");
    if (a.cols != b.rows) throw InvalidArgument("gemm: the columns of a are not the rows of b");
    if (out.rows != a.rows || out.cols != b.cols) throw InvalidArgument("gemm: out does not have the product's shape");
    threads_ = options.threads > 0 ? options.threads : default_threads();
    const double operations = 2.0 * static_cast<double>(a.rows) * static_cast<double>(a.cols * b.cols);
    threads_ = static_cast<int>(std::clamp(operations / operations_per_thread, 1.0, static_cast<double>(threads_)));
    // Panels of even width and blocks of even depth: a last one that is narrow costs nearly as much as a whole one.
    const index_t vectors = ceil_div(b.cols, lanes());
    width_ = ceil_div(vectors, ceil_div(vectors, panel() / lanes())) * lanes();
    depth_ = ceil_div(a.cols, ceil_div(a.cols, depth_block));
  }

  void run() {
    const index_t panels = ceil_div(b_.cols, width_), blocks = ceil_div(a_.cols, depth_);
    const index_t panels_together = std::min(panels, widest_group / width_);
    const index_t blocks_together = std::min(blocks, deepest_group / depth_);
    const auto packed_elements = static_cast<std::size_t>(panels_together * blocks_together * panel_elements());
    const auto own_elements = static_cast<std::size_t>(chunk_panels() * panel_elements() + tile_elements());
    Workspace memory(Workspace::bytes_for<T>(packed_elements) +
                     static_cast<std::size_t>(threads_) * Workspace::bytes_for<T>(own_elements));
    T* packed = memory.take<T>(packed_elements);
    std::vector<T*> own;
    for (int i = 0; i < threads_; ++i) own.push_back(memory.take<T>(own_elements));

    for (index_t p = 0; p < panels; p += panels_together) {
      for (index_t k = 0; k < blocks; k += blocks_together) {
        const Group group{{p, std::min(p + panels_together, panels)}, {k, std::min(k + blocks_together, blocks)}};
        pack(group, packed);
        multiply(group, packed, own);
      }
    }
  }

 private:
  struct Range {
    index_t begin, end;
    index_t size() const { return end - begin; }
  };
  // Panels and depth blocks of `b`.
  struct Group {
    Range panels, blocks;
  };
  // Rows of `a` as a register tile reads them.
  struct Rows {
    const T* data;
    index_t row_stride, depth_stride;
  };

  index_t panel() const { return static_cast<index_t>(kernels_.panel); }
  index_t lanes() const { return static_cast<index_t>(kernels_.lanes); }
  index_t tile_rows() const { return static_cast<index_t>(kernels_.tile_rows); }
  index_t panel_elements() const { return depth_ * panel(); }
  index_t tile_elements() const { return tile_rows() * panel(); }
  index_t chunk_panels() const { return ceil_div(chunk_rows, panel()); }
  Range depths(index_t block) const { return {block * depth_, std::min((block + 1) * depth_, a_.cols)}; }

  void pack(const Group& group, T* packed) const {
    parallel_for(
        group.panels.size() * group.blocks.size(), threads_,
        [&](index_t i, int) {
          const index_t j = (group.panels.begin + i / group.blocks.size()) * width_;
          const Range k = depths(group.blocks.begin + i % group.blocks.size());
          pack_vectors(kernels_, b_.at(k.begin, j), std::min(width_, b_.cols - j), b_.col_stride, k.size(),
                       b_.row_stride, packed + i * panel_elements());
        },
        options_.poll);
  }

  void multiply(const Group& group, const T* packed, const std::vector<T*>& own) const {
    const index_t chunks = ceil_div(a_.rows, chunk_rows);
    const index_t wanted = threads_ > 1 ? ceil_div(tasks_per_thread * threads_, chunks) : 1;
    const index_t share = ceil_div(group.panels.size(), std::min(wanted, group.panels.size()));
    const index_t parts = ceil_div(group.panels.size(), share);
    parallel_for(
        chunks * parts, threads_,
        [&](index_t i, int worker) {
          const index_t r = i / parts * chunk_rows, p = group.panels.begin + i % parts * share;
          multiply_chunk({r, std::min(r + chunk_rows, a_.rows)}, {p, std::min(p + share, group.panels.end)}, group,
                         packed, own[static_cast<std::size_t>(worker)]);
        },
        options_.poll);
  }

  void multiply_chunk(Range rows, Range panels, const Group& group, const T* packed, T* own) const {
    T* tile = own + chunk_panels() * panel_elements();
    for (index_t block = group.blocks.begin; block < group.blocks.end; ++block) {
      const Range k = depths(block);
      const index_t in_place = rows_in_place(rows);
      for (index_t i = in_place; i < rows.size(); i += panel()) {
        pack_vectors(kernels_, a_.at(rows.begin + i, k.begin), std::min(panel(), rows.size() - i), a_.row_stride,
                     k.size(), a_.col_stride, own + (i - in_place) * k.size());
      }
      for (index_t p = panels.begin; p < panels.end; ++p) {
        const T* b =
            packed + ((p - group.panels.begin) * group.blocks.size() + block - group.blocks.begin) * panel_elements();
        for (index_t i = 0; i < rows.size(); i += tile_rows()) {
          const index_t at = i - in_place;
          const Rows a = at < 0 ? Rows{a_.at(rows.begin + i, k.begin), a_.row_stride, a_.col_stride}
                                : Rows{own + at / panel() * panel() * k.size() + at % panel(), 1, panel()};
          multiply_tile(a, b, k, {rows.begin + i, std::min(rows.begin + i + tile_rows(), rows.end)}, p * width_, tile);
        }
      }
    }
  }

  // How many of the chunk's rows are read where they lie: whole register tiles of contiguous rows. The rest is packed.
  index_t rows_in_place(Range rows) const { return a_.col_stride == 1 ? round_down(rows.size(), tile_rows()) : 0; }

  bool adds(Range k) const { return options_.accumulate || k.begin > 0; }

  // Entries (rows, columns from `j` on) of the product, of a block of depths; `tile` is scratch for tiles that do not
  // fit into what is wanted.
  void multiply_tile(const Rows& a, const T* b, Range k, Range rows, index_t j, T* tile) const {
    const index_t wanted = std::min(width_, out_.cols - j);
    const auto products = kernels_.row_products[ceil_div(wanted, lanes()) - 1];
    const auto depth = static_cast<std::size_t>(k.size());
    if (rows.size() == tile_rows() && wanted % lanes() == 0) {
      products(a.data, a.row_stride, a.depth_stride, b, depth, out_.row(rows.begin) + j,
               static_cast<std::size_t>(out_.row_stride), adds(k));
      return;
    }
    products(a.data, a.row_stride, a.depth_stride, b, depth, tile, kernels_.panel, false);
    for (index_t i = 0; i < rows.size(); ++i) {
      const T* from = tile + i * panel();
      T* to = out_.row(rows.begin + i) + j;
      for (index_t c = 0; c < wanted; ++c) to[c] = adds(k) ? to[c] + from[c] : from[c];
    }
  }

  const StridedMatrix<T>& a_;
  const StridedMatrix<T>& b_;
  MatrixView<T> out_;
  const GemmOptions& options_;
  const KernelTable<T>& kernels_;
  int threads_ = 1;
  index_t width_ = 1, depth_ = 1;
};

}  // namespace
}  // namespace cpu

template <class T>
void gemm(const StridedMatrix<T>& a, const StridedMatrix<T>& b, MatrixView<T> out, const GemmOptions& options) {
  cpu::Gemm<T>(a, b, out, options).run();
}

template void gemm(const StridedMatrix<float>&, const StridedMatrix<float>&, MatrixView<float>, const GemmOptions&);
template void gemm(const StridedMatrix<double>&, const StridedMatrix<double>&, MatrixView<double>, const GemmOptions&);

}  // namespace kernelgrowth
