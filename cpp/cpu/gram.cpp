// The fused Gram: tiles of  K = sum_b scale_b (A_b A_b' + offset_b) o (D_b D_b'),  all terms of a tile summed in
// cache before K is written once; in the symmetric case only tiles on and above the diagonal, mirrored exactly.
#include "kernelgrowth/gram.hpp"

#include <algorithm>
#include <string>
#include <vector>

#include "cpu/dispatch.hpp"
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
// A thread should draw this many strips at least, or one of them ends up waiting for another.
constexpr index_t strips_per_thread = 4;
// Waking a thread costs about as long as one needs for so many operations.
constexpr double flops_per_thread = 4e6;
// A register tile sums this many products before it adds them to memory, and sums of more than `run_length` are added
// up apart, so that rounding grows with the number of sums and not with the length.
constexpr index_t depth_step = 256;
constexpr index_t run_length = 64 * depth_step;
// A register tile goes this deep before the next one begins: a panel of it stays in the second-level cache.
constexpr index_t depth_block = 8 * depth_step;

struct Range {
  index_t begin, end;
  index_t size() const { return end - begin; }
};

// The part of a tile that a thread computes at once, in rows and columns of the tile. On the diagonal only entries on
// and above it are wanted.
struct Region {
  Range rows, cols;
  bool diagonal;
};

// A packed factor of one side: the blocks of a group, one after another.
template <class T>
struct Packed {
  PackedLayout layout;
  T* data = nullptr;

  const T* panel(index_t block, index_t p) const {
    return data + block * layout.elements_per_block() + p * layout.panel * layout.length;
  }
};

template <class T>
struct PackedTerm {
  Packed<T> first, second;
};

template <class T>
void validate(std::span<const Term<T>> terms, const MatrixView<T>& out, bool symmetric, index_t& outputs) {
  outputs = 1;
  auto shape = [&](const FactorView<T>& f, index_t rows, const char* side) {
    if (f.examples < 1 || f.outputs < 1 || f.length < 1) {
      throw InvalidArgument(std::string("gram: a ") + side + " factor is empty");
    }
    if (f.outer_product && (f.length != f.outer_product->length() || f.outer_product->positions < 1 ||
                            (f.outer_product->folded > 1 && f.outputs > 1))) {
      throw InvalidArgument(std::string("gram: a ") + side + " outer product does not have its factor's shape");
    }
    if (rows % f.examples != 0 || (f.outputs != 1 && f.rows() != rows)) {
      throw InvalidArgument(std::string("gram: a ") + side + " factor of " + std::to_string(f.examples) +
                            " examples and " + std::to_string(f.outputs) + " outputs does not fit " +
                            std::to_string(rows) + " rows");
    }
    outputs = std::max(outputs, rows / f.examples);
  };
  auto pair = [&](const FactorPair<T>& p) {
    shape(p.left, out.rows, "left");
    if (symmetric) return;
    shape(p.right, out.cols, "right");
    if (p.right.length != p.left.length || p.right.outputs != p.left.outputs ||
        out.rows / p.left.examples != out.cols / p.right.examples) {
      throw InvalidArgument("gram: left and right factors differ in outputs or length");
    }
  };
  if (terms.empty()) throw InvalidArgument("gram: no terms");
  if (symmetric && out.rows != out.cols) throw InvalidArgument("gram: a symmetric Gram must be square");
  for (const auto& term : terms) {
    pair(term.first);
    if (term.second) pair(*term.second);
  }
  const index_t examples = out.rows / outputs;
  for (const auto& term : terms) {
    if (term.first.left.examples != examples || (term.second && term.second->left.examples != examples)) {
      throw InvalidArgument("gram: factors differ in their examples");
    }
    const bool covers = term.first.left.rows() == out.rows || (term.second && term.second->left.rows() == out.rows);
    if (!covers) throw InvalidArgument("gram: no factor of a term tells the outputs apart");
  }
}

template <class T>
class Gram {
 public:
  Gram(std::span<const Term<T>> terms, MatrixView<T> out, const GramOptions& options)
      : terms_(terms),
        out_(out),
        options_(options),
        kernels_(kernel_table<T>(options.isa)),
        threads_(options.threads > 0 ? options.threads : default_threads()) {
    validate(terms, out, options.symmetric, outputs_);
    threads_ = static_cast<int>(std::clamp(flops() / flops_per_thread, 1.0, static_cast<double>(threads_)));
    const index_t largest = std::max(out.rows, out.cols) / outputs_;
    const index_t wanted_rows = outputs_ == 1 ? block_rows_one_output : block_rows_many_outputs;
    block_examples_ = std::min(std::max<index_t>(1, wanted_rows / outputs_), largest);
    block_rows_ = block_examples_ * outputs_;
    row_blocks_ = ceil_div(out.rows, block_rows_);
    col_blocks_ = ceil_div(out.cols, block_rows_);
    strip_width_ = round_up(block_rows_, panel()) + panel();
    const index_t tiles = options.symmetric ? row_blocks_ * (row_blocks_ + 1) / 2 : row_blocks_ * col_blocks_;
    while (strip_rows_ > lowest_strip && tiles * ceil_div(block_rows_, strip_rows_) < strips_per_thread * threads_) {
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
  using Side = std::vector<PackedTerm<T>>;

  double flops() const {
    double total = 0;
    auto add = [&](const FactorPair<T>& pair) {
      const index_t columns = options_.symmetric ? pair.left.rows() / 2 : pair.right.rows();
      total += 2.0 * static_cast<double>(pair.left.rows()) * static_cast<double>(columns * pair.left.length);
    };
    for (const auto& term : terms_) {
      add(term.first);
      if (term.second) add(*term.second);
    }
    return total;
  }

  index_t panel() const { return static_cast<index_t>(kernels_.panel); }
  index_t lanes() const { return static_cast<index_t>(kernels_.lanes); }
  index_t tile_rows() const { return static_cast<index_t>(kernels_.tile_rows); }
  // The strip's sum, a product of each factor with a row of each repeated over the outputs, and a run of a long one.
  static constexpr index_t buffers_per_thread = 4;
  index_t scratch_elements() const { return (tallest_strip + panel()) * strip_width_; }

  // Packing and tiles take turns with a thread's scratch.
  index_t thread_elements() const {
    index_t elements = buffers_per_thread * scratch_elements();
    auto fit = [&](const FactorPair<T>& pair) {
      elements = std::max({elements, packing_scratch(kernels_, pair.left), packing_scratch(kernels_, pair.right)});
    };
    for (const auto& term : terms_) {
      fit(term.first);
      if (term.second) fit(*term.second);
    }
    return elements;
  }

  std::size_t scratch_bytes() const {
    return static_cast<std::size_t>(threads_) * Workspace::bytes_for<T>(static_cast<std::size_t>(thread_elements()));
  }

  // Of one block of all factors, packed.
  std::size_t block_bytes() const {
    std::size_t bytes = 0;
    auto add = [&](const FactorView<T>& factor) {
      bytes += Workspace::bytes_for<T>(static_cast<std::size_t>(layout(factor).elements_per_block()));
    };
    for (const auto& term : terms_) {
      add(term.first.left);
      if (term.second) add(term.second->left);
    }
    return bytes;
  }

  PackedLayout layout(const FactorView<T>& factor) const {
    return {factor.outputs, factor.length, block_examples_, panel()};
  }

  // Packs one side of all terms in one parallel loop over their panels.
  Side pack(Range blocks, bool right, Workspace& memory) const {
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
    Side side;
    for (const auto& term : terms_) {
      auto& packed = side.emplace_back();
      packed.first = plan(term.first);
      if (term.second) packed.second = plan(*term.second);
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
        },
        options_.poll);
    return side;
  }

  // Every strip of every tile of a pair of groups: the unit of work a thread draws.
  void tiles(const Side& left, Range rows, const Side& right, Range cols) {
    struct Strip {
      index_t row_block, col_block;
      Region region;
    };
    std::vector<Strip> strips;
    for (index_t i = rows.begin; i < rows.end; ++i) {
      const index_t height = std::min(block_rows_, out_.rows - i * block_rows_);
      for (index_t j = options_.symmetric ? std::max(i, cols.begin) : cols.begin; j < cols.end; ++j) {
        const index_t width = std::min(block_rows_, out_.cols - j * block_rows_);
        const bool diagonal = options_.symmetric && i == j;
        for (index_t r = 0; r < height; r += strip_rows_) {
          const Range columns{diagonal ? round_down(r, panel()) : 0, width};
          strips.push_back({i, j, {{r, std::min(r + strip_rows_, height)}, columns, diagonal}});
        }
      }
    }
    parallel_for(
        static_cast<index_t>(strips.size()), threads_,
        [&](index_t s, int worker) {
          const Strip& strip = strips[static_cast<std::size_t>(s)];
          T* scratch = scratch_[static_cast<std::size_t>(worker)];
          const index_t row0 = strip.row_block * block_rows_, col0 = strip.col_block * block_rows_;
          begin_sum(row0, col0, strip.region, scratch);
          add_terms(left, strip.row_block - rows.begin, right, strip.col_block - cols.begin, strip.region, scratch);
          write(row0, col0, strip.region, scratch);
        },
        options_.poll);
  }

  // What is there already comes first in the sum, so that terms added in several calls give the bits of one call.
  void begin_sum(index_t row0, index_t col0, const Region& region, T* sum) const {
    const auto& [rows, cols, diagonal] = region;
    std::fill_n(sum, rows.size() * strip_width_, T{0});
    if (!options_.accumulate) return;
    for (index_t r = rows.begin; r < rows.end; ++r) {
      const index_t from = diagonal ? std::max(r, cols.begin) : cols.begin;
      const T* source = out_.row(row0 + r) + col0;
      std::copy(source + from, source + cols.end, sum + (r - rows.begin) * strip_width_ + (from - cols.begin));
    }
  }

  void add_terms(const Side& left, index_t row_block, const Side& right, index_t col_block, const Region& region,
                 T* scratch) const {
    const auto& [rows, cols, diagonal] = region;
    T* sum = scratch;
    T* first = sum + scratch_elements();
    T* second = first + scratch_elements();
    // Whole vectors: what lies beyond the last column is computed and never written.
    const index_t width = round_up(cols.size(), lanes());
    // Columns of row r in vectors wholly below the diagonal, which `product` leaves as it found them.
    auto left_out = [&, begin = cols.begin, below = diagonal](index_t r) {
      return below ? round_down(r, lanes()) - begin : 0;
    };
    T* repeated = second + scratch_elements();

    for (std::size_t b = 0; b < terms_.size(); ++b) {
      const Term<T>& term = terms_[b];
      const Product p = product(left[b].first, row_block, right[b].first, col_block, region, first, scratch);
      Product q{};
      if (term.second) q = product(left[b].second, row_block, right[b].second, col_block, region, second, scratch);
      for (index_t r = rows.begin; r < rows.end; ++r) {
        const index_t skip = left_out(r);
        const auto count = static_cast<std::size_t>(width - skip);
        T* sum_row = sum + (r - rows.begin) * strip_width_ + skip;
        const T* first_row = row_of(p, r, rows, cols, repeated) + skip;
        if (term.second) {
          const T* second_row = row_of(q, r, rows, cols, repeated + strip_width_) + skip;
          kernels_.add_hadamard(sum_row, first_row, second_row, count, term.offset, term.scale);
        } else {
          kernels_.add_term(sum_row, first_row, count, term.offset, term.scale);
        }
      }
    }
  }

  // A product's values, starting at (row_origin, col_origin) of the factor's own rows within the block.
  struct Product {
    T* data;
    index_t row_origin, col_origin, repeat;
  };

  // Inner products of a strip of one packed factor with a block of another.
  Product product(const Packed<T>& left, index_t row_block, const Packed<T>& right, index_t col_block,
                  const Region& region, T* target, T* scratch) const {
    const index_t repeat = outputs_ / left.layout.outputs, length = left.layout.length;
    const Range r{round_down(region.rows.begin / repeat, tile_rows()), ceil_div(region.rows.end, repeat)};
    const Range c{round_down(region.cols.begin / repeat, panel()), ceil_div(region.cols.end, repeat)};
    for (index_t run = 0; run < length; run += run_length) {
      T* values = run == 0 ? target : scratch + (buffers_per_thread - 1) * scratch_elements();
      const index_t run_end = std::min(run + run_length, length);
      for (index_t k = run; k < run_end; k += depth_block) {
        const index_t k_end = std::min(k + depth_block, run_end);
        for (index_t j = c.begin; j < c.end; j += panel()) {
          const T* b = right.panel(col_block, j / panel());
          const bool last = j + panel() >= c.end;
          const T* ahead = last ? b + k * panel() : right.panel(col_block, j / panel() + 1) + k * panel();
          // Register tiles wholly below the diagonal are left out, and whole vectors of the others, as are vectors
          // beyond the last column.
          const index_t end = region.diagonal ? std::min(r.end, j + panel()) : r.end;
          for (index_t i = r.begin; i < end; i += tile_rows()) {
            const index_t skip = region.diagonal ? round_down(std::max<index_t>(i - j, 0), lanes()) : 0;
            const index_t wanted = std::min(panel(), c.end - j) - skip;
            const auto inner_products = kernels_.inner_products[ceil_div(wanted, lanes()) - 1];
            const T* a = left.panel(row_block, i / panel()) + i % panel();
            T* tile = values + (i - r.begin) * strip_width_ + (j - c.begin) + skip;
            for (index_t step = k; step < k_end; step += depth_step) {
              const auto depth = static_cast<std::size_t>(std::min(depth_step, k_end - step));
              inner_products(a + step * panel(), b + step * panel() + skip, depth, tile,
                             static_cast<std::size_t>(strip_width_), step > run, ahead);
              if (!last) ahead += depth * kernels_.fetched_per_step;
            }
          }
        }
      }
      if (run > 0) {
        const index_t width = round_up(c.size(), lanes());
        for (index_t i = 0; i < r.size(); ++i) {
          const index_t skip = region.diagonal ? std::max<index_t>(0, round_down(r.begin + i, lanes()) - c.begin) : 0;
          kernels_.add_term(target + i * strip_width_ + skip, values + i * strip_width_ + skip,
                            static_cast<std::size_t>(width - skip), 0, 1);
        }
      }
    }
    return {target, r.begin, c.begin, repeat};
  }

  // Row r, columns cols of a product. Where the factor is shared by all outputs, each value is written `repeat` times
  // to `repeated`, once for all rows of an example.
  const T* row_of(const Product& p, index_t r, Range rows, Range cols, T* repeated) const {
    const T* row = p.data + (r / p.repeat - p.row_origin) * strip_width_;
    if (p.repeat == 1) return row + (cols.begin - p.col_origin);
    if (r == rows.begin || r % p.repeat == 0) {
      index_t c = cols.begin;
      for (index_t from = c / p.repeat; c < cols.end; ++from) {
        const T value = row[from - p.col_origin];
        for (const index_t end = std::min((from + 1) * p.repeat, cols.end); c < end; ++c) {
          repeated[c - cols.begin] = value;
        }
      }
    }
    return repeated;
  }

  void write(index_t row0, index_t col0, const Region& region, T* sum) const {
    const auto& [rows, cols, diagonal] = region;
    for (index_t r = rows.begin; r < rows.end; ++r) {
      const T* source = sum + (r - rows.begin) * strip_width_ - cols.begin;
      T* target = out_.row(row0 + r) + col0;
      const index_t from = diagonal ? std::max(r, cols.begin) : cols.begin;
      std::copy(source + from, source + cols.end, target + from);
    }
    if (options_.symmetric) mirror(row0, col0, region, sum, sum + scratch_elements());
  }

  // Columns of the sum become rows of K: some at a time are turned in cache, so that each row of K is then written in
  // one run.
  void mirror(index_t row0, index_t col0, const Region& region, const T* sum, T* turned) const {
    const auto& [rows, cols, diagonal] = region;
    const index_t square = lanes();
    for (index_t c0 = cols.begin; c0 < cols.end; c0 += square) {
      const index_t c_end = std::min(c0 + square, cols.end);
      for (index_t r = 0; r < rows.size(); r += square) {
        kernels_.transpose(sum + r * strip_width_ + (c0 - cols.begin), strip_width_, turned + r, strip_width_);
      }
      for (index_t c = c0; c < c_end; ++c) {
        const index_t end = diagonal ? std::min(c, rows.end) : rows.end;
        const T* source = turned + (c - c0) * strip_width_;
        if (end > rows.begin) std::copy_n(source, end - rows.begin, out_.row(col0 + c) + row0 + rows.begin);
      }
    }
  }

  std::span<const Term<T>> terms_;
  MatrixView<T> out_;
  const GramOptions& options_;
  const KernelTable<T>& kernels_;
  int threads_;
  index_t outputs_ = 1, block_examples_ = 1, block_rows_ = 1, row_blocks_ = 1, col_blocks_ = 1;
  index_t strip_rows_ = tallest_strip, strip_width_ = 1;
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
