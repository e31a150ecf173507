// The fused Gram: tiles of  K = sum_b scale_b (A_b A_b' + offset_b) o (D_b D_b'),  all terms of a tile summed in
// cache before K is written once; in the symmetric case only tiles on and above the diagonal, mirrored exactly.
#include "kernelgrowth/gram.hpp"

#include <algorithm>
#include <string>
#include <vector>

#include "cpu/bf16.hpp"
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
// With positions, in vectors of a factor: small blocks, whose products of all position pairs stay in cache.
constexpr index_t block_vectors_positions = 192;
// Kernels whose sums a strip keeps at once, and for which shared products are computed once.
constexpr index_t most_kernels_together = 8;
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

// A term's factors: of each kernel, or one that all share. No second ones where the term has none.
template <class Factor>
struct Factors {
  std::vector<Factor> first, second;
};

template <class Factor>
const Factor& of_kernel(const std::vector<Factor>& factors, index_t kernel) {
  return factors.size() > 1 ? factors[static_cast<std::size_t>(kernel)] : factors.front();
}

template <class T>
FactorView<T> output_of(FactorView<T> factor, index_t output) {
  factor.outputs = 1;
  factor.data += output * factor.output_stride;
  if (factor.outer_product)
    factor.outer_product->backprops.data += output * factor.outer_product->backprops.output_stride;
  return factor;
}

template <class T>
std::vector<FactorPair<T>> divide(const FactorPair<T>& pair, index_t kernels, bool symmetric) {
  if (kernels == 1 || pair.left.outputs == 1) return {pair};
  std::vector<FactorPair<T>> parts;
  for (index_t c = 0; c < kernels; ++c) {
    parts.push_back({output_of(pair.left, c), symmetric ? FactorView<T>{} : output_of(pair.right, c)});
  }
  return parts;
}

template <class T>
void validate(std::span<const Term<T>> terms, const MatrixView<T>& out, const GramOptions& options, index_t& outputs) {
  const bool symmetric = options.symmetric;
  outputs = 1;
  auto shape = [&](const FactorView<T>& f, index_t rows, const char* side) {
    if (f.examples < 1 || f.outputs < 1 || f.length < 1) {
      throw InvalidArgument(std::string("gram: a ") + side + " factor is empty");
    }
    const bool positions_fit = f.positions == 1 || (f.positions > 1 && !f.outer_product && !f.weights);
    if (!positions_fit ||
        f.positions != (side[0] == 'l' ? terms.front().first.left : terms.front().first.right).positions) {
      throw InvalidArgument(std::string("gram: the positions of a ") + side + " factor do not fit the other factors");
    }
    if (f.outer_product && (f.length != f.outer_product->length() || f.outer_product->positions < 1 ||
                            (f.outer_product->folded > 1 && f.outputs > 1))) {
      throw InvalidArgument(std::string("gram: a ") + side + " outer product does not have its factor's shape");
    }
    const bool outputs_fit =
        options.kernels > 1 ? f.outputs == options.kernels && f.examples == rows : f.rows() == rows;
    if (rows % f.examples != 0 || (f.outputs != 1 && !outputs_fit)) {
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
  if (options.kernels < 1) throw InvalidArgument("gram: no kernels");
  if (symmetric && out.rows != out.cols) throw InvalidArgument("gram: a symmetric Gram must be square");
  for (const auto& term : terms) {
    pair(term.first);
    if (term.second) pair(*term.second);
    if (!term.second && (term.first.left.positions > 1 || term.first.right.positions > 1)) {
      throw InvalidArgument("gram: a term with positions needs two factors");
    }
  }
  const index_t examples = out.rows / outputs;
  for (const auto& term : terms) {
    if (term.first.left.examples != examples || (term.second && term.second->left.examples != examples)) {
      throw InvalidArgument("gram: factors differ in their examples");
    }
    const bool covers = term.first.left.rows() == out.rows || (term.second && term.second->left.rows() == out.rows);
    if (!covers && options.kernels == 1) throw InvalidArgument("gram: no factor of a term tells the outputs apart");
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
    validate(terms, out, options, outputs_);
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
    const index_t largest = std::max(out.rows, out.cols) / outputs_;
    const FactorPair<T>& factors = terms.front().first;
    row_positions_ = factors.left.positions;
    col_positions_ = options.symmetric ? row_positions_ : factors.right.positions;
    const index_t positions = std::max(row_positions_, col_positions_), vectors = outputs_ * positions;
    const index_t wanted = positions > 1   ? block_vectors_positions
                           : outputs_ == 1 ? block_rows_one_output
                                           : block_rows_many_outputs;
    block_examples_ = std::min(std::max<index_t>(1, wanted / vectors), largest);
    block_rows_ = block_examples_ * outputs_;
    row_blocks_ = ceil_div(out.rows, block_rows_);
    col_blocks_ = ceil_div(out.cols, block_rows_);
    strip_rows_ = std::max<index_t>(1, (positions > 1 ? block_vectors_positions : tallest_strip) / positions);
    strip_width_ = round_up(block_rows_ * positions, panel()) + panel();
    scratch_rows_ = std::max(strip_rows_ * positions, tallest_strip) + panel() + tile_rows();
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
  using Side = std::vector<Factors<Packed<T>>>;

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
  // The strip's sum for each kernel, a product of each factor, and a run of a long one or a row repeated for all
  // outputs.
  index_t buffers_per_thread() const { return kernels_together_ + 3; }
  index_t scratch_elements() const { return scratch_rows_ * strip_width_; }

  // Packing and tiles take turns with a thread's scratch.
  index_t thread_elements() const {
    index_t elements = buffers_per_thread() * scratch_elements();
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
          for (index_t kernel = 0; kernel < options_.kernels; kernel += kernels_together_) {
            const Range kernels{kernel, std::min(kernel + kernels_together_, options_.kernels)};
            for (index_t c = 0; c < kernels.size(); ++c) {
              begin_sum(kernel_view(kernel + c), row0, col0, strip.region, scratch + c * scratch_elements());
            }
            add_terms(left, strip.row_block - rows.begin, right, strip.col_block - cols.begin, strip.region, kernels,
                      scratch);
            T* turned = scratch + kernels.size() * scratch_elements();
            for (index_t c = 0; c < kernels.size(); ++c) {
              write(kernel_view(kernel + c), row0, col0, strip.region, scratch + c * scratch_elements(), turned);
            }
          }
        },
        options_.poll);
  }

  MatrixView<T> kernel_view(index_t kernel) const {
    MatrixView<T> view = out_;
    view.data += kernel * options_.kernel_stride;
    return view;
  }

  // What is there already comes first in the sum, so that terms added in several calls give the bits of one call.
  void begin_sum(const MatrixView<T>& out, index_t row0, index_t col0, const Region& region, T* sum) const {
    const auto& [rows, cols, diagonal] = region;
    std::fill_n(sum, rows.size() * strip_width_, T{0});
    if (!options_.accumulate) return;
    for (index_t r = rows.begin; r < rows.end; ++r) {
      const index_t from = diagonal ? std::max(r, cols.begin) : cols.begin;
      const T* source = out.row(row0 + r) + col0;
      std::copy(source + from, source + cols.end, sum + (r - rows.begin) * strip_width_ + (from - cols.begin));
    }
  }

  // Adds all terms to the sums of some kernels, which come first in `scratch`.
  void add_terms(const Side& left, index_t row_block, const Side& right, index_t col_block, const Region& region,
                 Range kernels, T* scratch) const {
    T* first = scratch + kernels.size() * scratch_elements();
    T* second = first + scratch_elements();
    T* run = second + scratch_elements();
    for (std::size_t b = 0; b < terms_.size(); ++b) {
      auto product_of = [&](const std::vector<Packed<T>>& rows, const std::vector<Packed<T>>& cols, index_t kernel,
                            T* target) {
        return product(of_kernel(rows, kernel), row_block, of_kernel(cols, kernel), col_block, region, target, run);
      };
      const bool first_shared = left[b].first.size() == 1, second_shared = left[b].second.size() == 1;
      Product p{}, q{};
      for (index_t kernel = kernels.begin; kernel < kernels.end; ++kernel) {
        const bool begins = kernel == kernels.begin;
        if (begins || !first_shared) p = product_of(left[b].first, right[b].first, kernel, first);
        if (terms_[b].second && (begins || !second_shared)) {
          q = product_of(left[b].second, right[b].second, kernel, second);
        }
        T* sum = scratch + (kernel - kernels.begin) * scratch_elements();
        if (row_positions_ > 1 || col_positions_ > 1) {
          add_position_pairs(p, q, terms_[b], region, sum, run);
        } else {
          add_entries(p, q, terms_[b], region, sum, run);
        }
      }
    }
  }

  // A product's values, starting at (row_origin, col_origin) of the factor's own vectors within the block. `repeat`
  // rows of K share a row of it, or its rows of an example's positions.
  struct Product {
    T* data;
    index_t row_origin, col_origin, repeat;
  };

  // Pairs of bfloat16 take the place of one element.
  index_t depth_of(const Packed<T>& factor) const {
    return bf16_ ? ceil_div(factor.layout.length, 2) : factor.layout.length;
  }

  auto register_tile(index_t vectors) const {
    if constexpr (std::is_same_v<T, float>) {
      if (bf16_) return bf16_->inner_products[vectors];
    }
    return kernels_.inner_products[vectors];
  }

  // Inner products of a strip of one packed factor with a block of another.
  Product product(const Packed<T>& left, index_t row_block, const Packed<T>& right, index_t col_block,
                  const Region& region, T* target, T* run_values) const {
    const index_t repeat = outputs_ * row_positions_ / left.layout.vectors, length = depth_of(left);
    const Range r{round_down(region.rows.begin / repeat * row_positions_, tile_rows()),
                  ceil_div(region.rows.end, repeat) * row_positions_};
    const Range c{round_down(region.cols.begin / repeat * col_positions_, panel()),
                  ceil_div(region.cols.end, repeat) * col_positions_};
    for (index_t run = 0; run < length; run += run_length) {
      T* values = run == 0 ? target : run_values;
      const index_t run_end = std::min(run + run_length, length);
      for (index_t k = run; k < run_end; k += depth_block) {
        const index_t k_end = std::min(k + depth_block, run_end);
        for (index_t j = c.begin; j < c.end; j += panel()) {
          const T* b = right.panel(col_block, j / panel());
          const bool last = j + panel() >= c.end;
          const T* ahead = last ? b + k * panel() : right.panel(col_block, j / panel() + 1) + k * panel();
          // Register tiles wholly below the diagonal are left out, and whole vectors of the others, as are vectors
          // beyond the last column.
          const index_t end = region.diagonal ? std::min(r.end, round_up(j + panel(), col_positions_)) : r.end;
          for (index_t i = r.begin; i < end; i += tile_rows()) {
            const index_t wanted_from = region.diagonal ? round_down(i, row_positions_) : 0;
            const index_t skip = round_down(std::max<index_t>(wanted_from - j, 0), lanes());
            const index_t wanted = std::min(panel(), c.end - j) - skip;
            const auto inner_products = register_tile(ceil_div(wanted, lanes()) - 1);
            const T* a = left.panel(row_block, i / panel()) + i % panel();
            T* tile = values + (i - r.begin) * strip_width_ + (j - c.begin) + skip;
            for (index_t step = k; step < k_end; step += depth_step) {
              const auto depth = static_cast<std::size_t>(std::min(depth_step, k_end - step));
              inner_products(a + step * panel(), b + step * panel() + skip, depth, tile,
                             static_cast<std::size_t>(strip_width_), step > run, ahead,
                             static_cast<index_t>(kernels_.fetched_per_step));
              if (!last) ahead += depth * kernels_.fetched_per_step;
            }
          }
        }
      }
      if (run > 0) {
        const index_t width = round_up(c.size(), lanes());
        for (index_t i = 0; i < r.size(); ++i) {
          const index_t wanted_from = region.diagonal ? round_down(r.begin + i, row_positions_) : 0;
          const index_t skip = std::max<index_t>(0, round_down(wanted_from, lanes()) - c.begin);
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

  void add_entries(const Product& p, const Product& q, const Term<T>& term, const Region& region, T* sum,
                   T* repeated) const {
    const auto& [rows, cols, diagonal] = region;
    // Whole vectors: what lies beyond the last column is computed and never written.
    const index_t width = round_up(cols.size(), lanes());
    for (index_t r = rows.begin; r < rows.end; ++r) {
      // Vectors wholly below the diagonal, which `product` left as it found them.
      const index_t skip = diagonal ? round_down(r, lanes()) - cols.begin : 0;
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

  // Adds each entry's sum over all pairs of positions: what two products give for the vectors of its examples.
  void add_position_pairs(const Product& p, const Product& q, const Term<T>& term, const Region& region, T* sum,
                          T* scratch) const {
    const auto& [rows, cols, diagonal] = region;
    T* values = scratch;
    T* repeated = values + row_positions_ * strip_width_;
    for (index_t r = rows.begin; r < rows.end; ++r) {
      const index_t from = diagonal ? r : cols.begin;
      const index_t width = round_up((cols.end - from) * col_positions_, lanes());
      std::fill_n(values, row_positions_ * strip_width_, T{0});
      for (index_t t = 0; t < row_positions_; ++t) {
        auto row = [&](const Product& product) {
          return product.data + (r / product.repeat * row_positions_ + t - product.row_origin) * strip_width_ -
                 product.col_origin;
        };
        const T* first = row(p) + from * col_positions_;
        if (p.repeat > 1) {
          for (index_t c = from; c < cols.end; ++c) {
            std::copy_n(row(p) + c / p.repeat * col_positions_, col_positions_, repeated + (c - from) * col_positions_);
          }
          first = repeated;
        }
        kernels_.add_hadamard(values + t * strip_width_, first, row(q) + from * col_positions_,
                              static_cast<std::size_t>(width), term.offset, 1);
      }
      for (index_t c = from; c < cols.end; ++c) {
        const T total = kernels_.sum_pairs(values + (c - from) * col_positions_, strip_width_,
                                           static_cast<std::size_t>(row_positions_),
                                           static_cast<std::size_t>(col_positions_), repeated);
        sum[(r - rows.begin) * strip_width_ + (c - cols.begin)] += term.scale * total;
      }
    }
  }

  void write(const MatrixView<T>& out, index_t row0, index_t col0, const Region& region, const T* sum,
             T* turned) const {
    const auto& [rows, cols, diagonal] = region;
    for (index_t r = rows.begin; r < rows.end; ++r) {
      const T* source = sum + (r - rows.begin) * strip_width_ - cols.begin;
      T* target = out.row(row0 + r) + col0;
      const index_t from = diagonal ? std::max(r, cols.begin) : cols.begin;
      std::copy(source + from, source + cols.end, target + from);
    }
    if (options_.symmetric) mirror(out, row0, col0, region, sum, turned);
  }

  // Columns of the sum become rows of K: some at a time are turned in cache, so that each row of K is then written in
  // one run.
  void mirror(const MatrixView<T>& out, index_t row0, index_t col0, const Region& region, const T* sum,
              T* turned) const {
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
        if (end > rows.begin) std::copy_n(source, end - rows.begin, out.row(col0 + c) + row0 + rows.begin);
      }
    }
  }

  std::span<const Term<T>> terms_;
  std::vector<Factors<FactorPair<T>>> factors_;
  MatrixView<T> out_;
  const GramOptions& options_;
  const KernelTable<T>& kernels_;
  const Bf16Kernels* bf16_ = nullptr;
  int threads_;
  index_t kernels_together_ = 1;
  index_t outputs_ = 1, block_examples_ = 1, block_rows_ = 1, row_blocks_ = 1, col_blocks_ = 1;
  index_t row_positions_ = 1, col_positions_ = 1;
  index_t strip_rows_ = 1, strip_width_ = 1, scratch_rows_ = 1;
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
