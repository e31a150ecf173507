// The fused Gram: tiles of  K = sum_b scale_b (A_b A_b' + offset_b) o (D_b D_b'),  all terms of a tile summed in
// cache before K is written once; in the symmetric case only tiles on and above the diagonal, mirrored exactly.
#include "kernelgrowth/gram.hpp"

#include <algorithm>
#include <string>
#include <vector>

#include "cpu/bf16.hpp"
#include "cpu/dispatch.hpp"
#include "cpu/gram_strip.hpp"
#include "cpu/gram_terms.hpp"
#include "cpu/packing.hpp"
#include "cpu/rows.hpp"
#include "kernelgrowth/error.hpp"
#include "runtime/workspace.hpp"

namespace kernelgrowth {
namespace cpu {
namespace {

// Calibrated on Zen 4 (1 MiB of second-level cache), where a block of 1000-long vectors then stays in cache from one
// tile to the next. With several outputs a block holds few examples, whose padding to a panel must not weigh too much.
constexpr index_t block_rows_one_output = 96, block_rows_many_outputs = 384;
constexpr index_t tallest_strip = 96, lowest_strip = 24;
// With positions, in vectors of a factor: small blocks, whose products of all position pairs stay in cache.
constexpr index_t block_vectors_positions = 192;
// Kernels whose sums a strip keeps at once, and for which shared products are computed once.
constexpr index_t most_kernels_together = 8;
// A thread should draw this many strips at least, or one of them ends up waiting for another.
constexpr index_t strips_per_thread = 4;
// Waking a thread costs about as long as one needs for so many operations.
constexpr double flops_per_thread = 4e6;
template <class T>
class Gram {
 public:
  Gram(std::span<const Term<T>> terms, MatrixView<T> out, const GramOptions& options)
      : terms_(terms),
        out_(out),
        options_(options),
        kernels_(kernel_table<T>(options.isa)),
        threads_(options.threads > 0 ? options.threads : default_threads()) {
    validate(terms, out, options, shape_.outputs);
    for (const auto& term : terms) {
      auto& factors = factors_.emplace_back();
      factors.first = divide(term.first, options.kernels, options.symmetric);
      if (term.second) factors.second = divide(*term.second, options.kernels, options.symmetric);
    }
    if (options.bf16) {
      const bool usable = std::is_same_v<T, float> && &kernels_ == &kernel_table<T>("avx512");
      bf16_ = usable ? bf16_kernels() : nullptr;
      if (bf16_ == nullptr)
        throw InvalidArgument("gram: bfloat16 needs float32 factors and the AVX512_BF16 instructions");
    }
    kernels_together_ = std::min(options.kernels, most_kernels_together);
    threads_ = static_cast<int>(std::clamp(flops() / flops_per_thread, 1.0, static_cast<double>(threads_)));
    const index_t largest = std::max(out.rows, out.cols) / shape_.outputs;
    const FactorPair<T>& factors = terms.front().first;
    shape_.row_positions = factors.left.positions;
    shape_.col_positions = options.symmetric ? factors.left.positions : factors.right.positions;
    const index_t positions = std::max(shape_.row_positions, shape_.col_positions),
                  vectors = shape_.outputs * positions;
    const index_t wanted = positions > 1         ? block_vectors_positions
                           : shape_.outputs == 1 ? block_rows_one_output
                                                 : block_rows_many_outputs;
    block_examples_ = std::min(std::max<index_t>(1, wanted / vectors), largest);
    block_rows_ = block_examples_ * shape_.outputs;
    row_blocks_ = ceil_div(out.rows, block_rows_);
    col_blocks_ = ceil_div(out.cols, block_rows_);
    strip_rows_ = std::max<index_t>(1, (positions > 1 ? block_vectors_positions : tallest_strip) / positions);
    shape_.width = round_up(block_rows_ * positions, panel()) + panel();
    shape_.rows = std::max(strip_rows_ * positions, tallest_strip) + panel() + tile_rows();
    const index_t tiles = options.symmetric ? row_blocks_ * (row_blocks_ + 1) / 2 : row_blocks_ * col_blocks_;
    while (strip_rows_ * positions > lowest_strip && strip_rows_ > 1 &&
           tiles * ceil_div(block_rows_, strip_rows_) < strips_per_thread * threads_) {
      strip_rows_ /= 2;
    }
    threads_ = static_cast<int>(std::min<index_t>(threads_, tiles * ceil_div(block_rows_, strip_rows_)));
  }

  GramWorkspace workspace() const {
    const auto rows = static_cast<std::size_t>(row_blocks_), cols = static_cast<std::size_t>(col_blocks_);
    const std::size_t fewest = options_.symmetric ? std::min<std::size_t>(rows, 2) : 2;
    const std::size_t all = options_.symmetric ? rows : rows + cols;
    return {scratch_bytes() + fewest * block_bytes(), scratch_bytes() + all * block_bytes()};
  }

  void run() {
    const GramWorkspace need = workspace();
    const std::size_t limit = std::min(options_.workspace > 0 ? options_.workspace : need.full, need.full);
    if (limit < need.minimum) {
      throw WorkspaceTooSmall("gram: needs a workspace of " + std::to_string(need.minimum) + " bytes, allowed " +
                              std::to_string(limit));
    }
    Workspace memory(limit);
    for (int i = 0; i < threads_; ++i) {
      scratch_.push_back(memory.take<T>(static_cast<std::size_t>(thread_elements())));
    }

    if (limit == need.full) {
      const Range rows{0, row_blocks_}, cols{0, col_blocks_};
      const auto left = pack(rows, false, memory);
      return tiles(left, rows, options_.symmetric ? left : pack(cols, true, memory), cols);
    }
    const index_t group = static_cast<index_t>((limit - scratch_bytes()) / (2 * block_bytes()));
    for (index_t i = 0; i < row_blocks_; i += group) {
      const Range rows{i, std::min(i + group, row_blocks_)};
      const std::size_t before_left = memory.mark();
      const auto left = pack(rows, false, memory);
      if (options_.symmetric) tiles(left, rows, left, rows);
      for (index_t j = options_.symmetric ? rows.end : 0; j < col_blocks_; j += group) {
        const Range cols{j, std::min(j + group, col_blocks_)};
        const std::size_t before_right = memory.mark();
        tiles(left, rows, pack(cols, true, memory), cols);
        memory.release_to(before_right);
      }
      memory.release_to(before_left);
    }
  }

 private:
  template <class Function>
  void for_each_factor(Function function) const {
    for (const auto& factors : factors_) {
      for (const auto& pair : factors.first) function(pair);
      for (const auto& pair : factors.second) function(pair);
    }
  }

  double flops() const {
    double total = 0;
    auto add = [&](const FactorPair<T>& pair) {
      const double left = static_cast<double>(pair.left.rows() * pair.left.positions);
      const double right =
          options_.symmetric ? left / 2 : static_cast<double>(pair.right.rows() * pair.right.positions);
      total += 2 * left * right * static_cast<double>(pair.left.length);
      if (!pair.left.outer_product) return;
      const OuterProductView<T>& source = *pair.left.outer_product;
      total += 2 * (left + right) * static_cast<double>(source.positions * source.length());
    };
    for_each_factor(add);
    return total;
  }

  index_t panel() const { return static_cast<index_t>(kernels_.panel); }
  index_t lanes() const { return static_cast<index_t>(kernels_.lanes); }
  index_t tile_rows() const { return static_cast<index_t>(kernels_.tile_rows); }
  // Packing and tiles take turns with a thread's scratch.
  index_t thread_elements() const {
    index_t elements = Strip<T>::buffers(kernels_together_) * shape_.elements();
    auto fit = [&](const FactorPair<T>& pair) {
      elements = std::max({elements, packing_scratch(kernels_, pair.left), packing_scratch(kernels_, pair.right)});
    };
    for_each_factor(fit);
    return elements;
  }

  std::size_t scratch_bytes() const {
    return static_cast<std::size_t>(threads_) * Workspace::bytes_for<T>(static_cast<std::size_t>(thread_elements()));
  }

  // Of one block of all factors, packed.
  std::size_t block_bytes() const {
    std::size_t bytes = 0;
    auto add = [&](const FactorPair<T>& pair) {
      const index_t left = layout(pair.left).elements_per_block();
      const index_t right = options_.symmetric ? left : layout(pair.right).elements_per_block();
      bytes += Workspace::bytes_for<T>(static_cast<std::size_t>(std::max(left, right)));
    };
    for_each_factor(add);
    return bytes;
  }

  PackedLayout layout(const FactorView<T>& factor) const {
    return {factor.outputs * factor.positions, factor.length, block_examples_, panel()};
  }

  // Packs one side of all terms in one parallel loop over their panels.
  Side<T> pack(Range blocks, bool right, Workspace& memory) const {
    const bool use_right = right && !options_.symmetric;
    struct Job {
      const FactorView<T>* factor;
      Packed<T> packed;
      index_t end;  // of its panels among those of all jobs
    };
    std::vector<Job> jobs;
    auto plan = [&](const FactorPair<T>& pair) {
      const FactorView<T>& factor = use_right ? pair.right : pair.left;
      const PackedLayout l = layout(factor);
      const Packed<T> packed{l, memory.take<T>(static_cast<std::size_t>(blocks.size() * l.elements_per_block()))};
      const index_t before = jobs.empty() ? 0 : jobs.back().end;
      jobs.push_back({&factor, packed, before + blocks.size() * l.panels_per_block()});
      return packed;
    };
    Side<T> side;
    for (const auto& factors : factors_) {
      auto& packed = side.emplace_back();
      for (const auto& pair : factors.first) packed.first.push_back(plan(pair));
      for (const auto& pair : factors.second) packed.second.push_back(plan(pair));
    }
    parallel_for(
        jobs.back().end, threads_,
        [&](index_t i, int worker) {
          const auto job =
              std::upper_bound(jobs.begin(), jobs.end(), i, [](index_t panel, const Job& j) { return panel < j.end; });
          const PackedLayout& l = job->packed.layout;
          const index_t per_block = l.panels_per_block(), p = i - (job->end - blocks.size() * per_block);
          pack_panel(kernels_, *job->factor, l, (blocks.begin + p / per_block) * block_examples_, p % per_block,
                     job->packed.data + p * l.panel * l.length, scratch_[static_cast<std::size_t>(worker)]);
          if constexpr (std::is_same_v<T, float>) {
            if (bf16_) {
              bf16_->compress(job->packed.data + p * l.panel * l.length, static_cast<std::size_t>(l.length));
            }
          }
        },
        options_.poll);
    return side;
  }

  // Every strip of every tile of a pair of groups: the unit of work a thread draws.
  void tiles(const Side<T>& left, Range rows, const Side<T>& right, Range cols) {
    struct Place {
      index_t row_block, col_block;
      Region region;
      bool turned;  // rows and columns of the pair of groups have changed places
    };
    std::vector<Place> strips;
    auto add_strips = [&](index_t row_block, index_t col_block, index_t height, index_t width, bool turned) {
      const bool diagonal = options_.symmetric && row_block == col_block;
      for (index_t r = 0; r < height; r += strip_rows_) {
        const Range columns{diagonal ? round_down(r, panel()) : 0, width};
        strips.push_back({row_block, col_block, {{r, std::min(r + strip_rows_, height)}, columns, diagonal}, turned});
      }
    };
    for (index_t i = rows.begin; i < rows.end; ++i) {
      const index_t height = std::min(block_rows_, out_.rows - i * block_rows_);
      for (index_t j = options_.symmetric ? std::max(i, cols.begin) : cols.begin; j < cols.end; ++j) {
        const index_t width = std::min(block_rows_, out_.cols - j * block_rows_);
        // A last block of few columns leaves most lanes without work; as rows it has fewer of them. The mirrored entry
        // has the same bits; what is added to stands above the diagonal.
        if (options_.symmetric && !options_.accumulate && i != j && shape_.row_positions == 1 &&
            register_tiles(width, height) < register_tiles(height, width)) {
          add_strips(j, i, width, height, true);
        } else {
          add_strips(i, j, height, width, false);
        }
      }
    }
    const Strip<T> sums(kernels_, bf16_, shape_);
    parallel_for(
        static_cast<index_t>(strips.size()), threads_,
        [&](index_t s, int worker) {
          const Place& strip = strips[static_cast<std::size_t>(s)];
          T* scratch = scratch_[static_cast<std::size_t>(worker)];
          const index_t row0 = strip.row_block * block_rows_, col0 = strip.col_block * block_rows_;
          for (index_t kernel = 0; kernel < options_.kernels; kernel += kernels_together_) {
            const Range kernels{kernel, std::min(kernel + kernels_together_, options_.kernels)};
            for (index_t c = 0; c < kernels.size(); ++c) {
              sums.begin(kernel_view(kernel + c), row0, col0, strip.region, options_.accumulate,
                         scratch + c * shape_.elements());
            }
            if (strip.turned) {
              sums.add_terms(terms_, right, strip.row_block - cols.begin, left, strip.col_block - rows.begin,
                             strip.region, kernels, scratch);
            } else {
              sums.add_terms(terms_, left, strip.row_block - rows.begin, right, strip.col_block - cols.begin,
                             strip.region, kernels, scratch);
            }
            T* turned = scratch + kernels.size() * shape_.elements();
            for (index_t c = 0; c < kernels.size(); ++c) {
              sums.write(kernel_view(kernel + c), row0, col0, strip.region, options_.symmetric,
                         scratch + c * shape_.elements(), turned);
            }
          }
        },
        options_.poll);
  }

  // One vector wide.
  index_t register_tiles(index_t rows, index_t cols) const {
    return ceil_div(rows, tile_rows()) * ceil_div(cols, lanes());
  }

  MatrixView<T> kernel_view(index_t kernel) const {
    MatrixView<T> view = out_;
    view.data += kernel * options_.kernel_stride;
    return view;
  }

  std::span<const Term<T>> terms_;
  std::vector<Factors<FactorPair<T>>> factors_;
  MatrixView<T> out_;
  const GramOptions& options_;
  const KernelTable<T>& kernels_;
  const Bf16Kernels* bf16_ = nullptr;
  int threads_;
  index_t kernels_together_ = 1;
  StripShape shape_;
  index_t block_examples_ = 1, block_rows_ = 1, row_blocks_ = 1, col_blocks_ = 1;
  index_t strip_rows_ = 1;
  std::vector<T*> scratch_;
};

}  // namespace
}  // namespace cpu

template <class T>
void gram(std::span<const Term<T>> terms, MatrixView<T> out, const GramOptions& options) {
  cpu::Gram<T>(terms, out, options).run();
}

template <class T>
GramWorkspace gram_workspace(std::span<const Term<T>> terms, MatrixView<T> out, const GramOptions& options) {
  return cpu::Gram<T>(terms, out, options).workspace();
}

template void gram(std::span<const Term<float>>, MatrixView<float>, const GramOptions&);
template void gram(std::span<const Term<double>>, MatrixView<double>, const GramOptions&);
template GramWorkspace gram_workspace(std::span<const Term<float>>, MatrixView<float>, const GramOptions&);
template GramWorkspace gram_workspace(std::span<const Term<double>>, MatrixView<double>, const GramOptions&);

}  // namespace kernelgrowth
