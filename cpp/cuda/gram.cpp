// Divides a Gram among launches: terms, or parts of terms, whose packed vectors fit into the workspace together.
#include <algorithm>
#include <string>
#include <vector>

#include "cpu/gram_terms.hpp"
#include "cuda/gram_kernel.hpp"
#include "cuda/rows.hpp"
#include "kernelgrowth/cuda_gram.hpp"
#include "kernelgrowth/error.hpp"

namespace kernelgrowth::cuda {
namespace {

constexpr Index workspace_alignment = 256;

// A term, or where it has one factor perhaps a range of the elements of its vectors.
template <class T>
struct Part {
  const Term<T>* term;
  Index first_element, elements;
  bool has_offset;
};

struct Strip {
  Index first, count;
};

template <class T>
class Planner {
 public:
  Planner(std::span<const Term<T>> terms, MatrixView<T> out, const GramOptions& options)
      : terms_(terms), out_(out), options_(options), element_(element_bytes(options.precision)) {
    kernelgrowth::GramOptions checked;
    checked.symmetric = options.symmetric;
    checked.kernels = options.kernels;
    cpu::validate<T>(terms, out, checked, outputs_);
    if ((options.precision == Precision::float64) != std::is_same_v<T, double>) {
      throw InvalidArgument("gram: the precision is another type's");
    }
    rows_ = out.rows / outputs_;
    columns_ = out.cols / outputs_;
  }

  GramWorkspace workspace() const {
    Index all = 0, least = 0;
    for (const auto& term : terms_) {
      all += part_bytes(whole(term), rows_, columns_, true);
      const Index strip_rows = std::min(rows_, large_tile), strip_columns = std::min(columns_, large_tile);
      least = std::max(least, part_bytes(smallest(term), strip_rows, strip_columns, false));
    }
    return {static_cast<std::size_t>(least), static_cast<std::size_t>(std::max(least, all))};
  }

  void run() {
    if (rows_ == 0 || columns_ == 0) return;
    available_ = static_cast<Index>(options_.workspace_bytes);
    const GramWorkspace need = workspace();
    if (options_.workspace_bytes < need.minimum) {
      throw WorkspaceTooSmall("gram: needs " + std::to_string(need.minimum) + " bytes of workspace, got " +
                              std::to_string(options_.workspace_bytes));
    }
    const std::vector<Part<T>> parts = divide();
    for (std::size_t first = 0; first < parts.size();) {
      std::size_t end = first + 1;
      Index used = part_bytes(parts[first], rows_, columns_, false);
      if (used > available_) {
        in_strips(parts[first]);
      } else {
        while (end < parts.size() && end - first < static_cast<std::size_t>(most_terms)) {
          const Index more = part_bytes(parts[end], rows_, columns_, false);
          if (used + more > available_) break;
          used += more;
          ++end;
        }
        const std::span<const Part<T>> group(parts.data() + first, end - first);
        launch(group, {0, rows_}, {0, columns_}, shares(group, rows_, columns_));
      }
      added_ = true;
      first = end;
    }
  }

 private:
  Part<T> whole(const Term<T>& term) const { return {&term, 0, term.first.left.length, true}; }
  // The least of a term that can be multiplied at once.
  Part<T> smallest(const Term<T>& term) const {
    return {&term, 0, term.second ? term.first.left.length : std::min(term.first.left.length, run_elements()), true};
  }
  Index run_elements() const { return run_chunks * chunk_bytes / element_; }

  Index row_bytes(Index elements) const { return rounded_up(elements * element_, chunk_bytes); }
  static Index aligned(Index bytes) { return rounded_up(bytes, workspace_alignment); }

  Index side_bytes(const FactorView<T>& side, Index elements, Index examples) const {
    return aligned(row_bytes(elements) * rounded_up(examples, large_tile) * side.outputs * side.positions);
  }
  Index factor_bytes(const FactorPair<T>& factor, Index elements, Index rows, Index columns) const {
    const bool one = options_.symmetric && rows == rows_ && columns == columns_;
    return side_bytes(factor.left, elements, rows) + (one ? 0 : side_bytes(right(factor), elements, columns));
  }
  Index part_bytes(const Part<T>& part, Index rows, Index columns, bool shared) const {
    Index bytes = factor_bytes(part.term->first, part.elements, rows, columns);
    if (part.term->second) bytes += factor_bytes(*part.term->second, part.term->second->left.length, rows, columns);
    return bytes + (shared ? given_bytes(*part.term, rows, columns) : 0);
  }

  const FactorView<T>& right(const FactorPair<T>& factor) const {
    return options_.symmetric ? factor.left : factor.right;
  }

  // Inner products that all outputs share are made once, where there is room for them.
  bool may_share(const Term<T>& term) const {
    return term.second && term.first.left.outputs == 1 && term.second->left.outputs > 1;
  }
  Index given_bytes(const Term<T>& term, Index rows, Index columns) const {
    if (!may_share(term)) return 0;
    const Index pairs = term.first.left.positions * right(term.first).positions;
    return aligned(rows * columns * pairs * static_cast<Index>(sizeof(T)));
  }
  bool shares(std::span<const Part<T>> group, Index rows, Index columns) const {
    Index bytes = 0;
    for (const auto& part : group) bytes += part_bytes(part, rows, columns, true);
    return bytes <= available_;
  }

  // Terms of one factor that do not fit are cut along their vectors, at the ends of runs, so that no bit depends on it.
  std::vector<Part<T>> divide() const {
    std::vector<Part<T>> parts;
    for (const auto& term : terms_) {
      const Index length = term.first.left.length;
      Index step = length;
      if (!term.second && part_bytes(whole(term), rows_, columns_, false) > available_) {
        const Index run = run_elements();
        const Index bytes = part_bytes({&term, 0, run, true}, rows_, columns_, false);
        step = std::max<Index>(1, available_ / bytes) * run;
      }
      for (Index first = 0; first < length; first += step) {
        const Index elements = std::min(step, length - first);
        parts.push_back({&term, first, elements, first + elements == length});
      }
    }
    return parts;
  }

  // Examples of which both sides fit at a time.
  void in_strips(const Part<T>& part) {
    Index step = large_tile;
    while (step < std::max(rows_, columns_) &&
           part_bytes(part, std::min(rows_, 2 * step), std::min(columns_, 2 * step), false) <= available_) {
      step *= 2;
    }
    for (Index row = 0; row < rows_; row += step) {
      for (Index column = options_.symmetric ? row : 0; column < columns_; column += step) {
        const Strip rows{row, std::min(step, rows_ - row)}, columns{column, std::min(step, columns_ - column)};
        const std::span<const Part<T>> group(&part, 1);
        launch(group, rows, columns, shares(group, rows.count, columns.count));
      }
    }
  }

  void launch(std::span<const Part<T>> group, Strip rows, Strip columns, bool shared) {
    used_ = 0;
    const bool diagonal = options_.symmetric && rows.first == columns.first && rows.count == columns.count;
    GramArguments<T> arguments;
    GramOutput<T>& out = arguments.out;
    out.rows = rows.count;
    out.columns = columns.count;
    out.first_row = rows.first;
    out.first_column = columns.first;
    out.data = out_.data;
    out.row_stride = out_.row_stride * outputs_;
    out.column_stride = outputs_;
    out.paired = options_.kernels > 1;
    out.left_outputs = out.right_outputs = static_cast<int>(out.paired ? options_.kernels : outputs_);
    out.left_output = out.paired ? options_.kernel_stride : out_.row_stride;
    out.right_output = out.paired ? 0 : 1;
    out.triangle = diagonal;
    out.mirrored = options_.symmetric;
    out.accumulate = options_.accumulate || added_;
    for (const auto& part : group) {
      PackedTerm<T>& term = arguments.terms[arguments.count++];
      term = packed(part, rows, columns, diagonal);
      if (shared && may_share(*part.term)) give(term, out);
    }
    launch_gram<T>(arguments, options_.precision, is_large(out), options_.stream);
  }

  // Replaces vectors that all outputs share by their inner products.
  void give(PackedTerm<T>& term, const GramOutput<T>& out) {
    GramArguments<T> arguments;
    arguments.count = 1;
    PackedTerm<T>& alone = arguments.terms[0];
    alone.first = term.first;
    // Positions take the place of outputs: there is a matrix for each pair of them.
    alone.first.left.output_bytes = term.first.left.position_bytes;
    alone.first.right.output_bytes = term.first.right.position_bytes;
    GramOutput<T>& matrices = arguments.out;
    matrices.rows = out.rows;
    matrices.columns = out.columns;
    matrices.left_outputs = term.left_positions;
    matrices.right_outputs = term.right_positions;
    matrices.row_stride = out.columns;
    matrices.right_output = out.rows * out.columns;
    matrices.left_output = matrices.right_output * term.right_positions;
    matrices.triangle = out.triangle;
    const Index bytes = matrices.left_output * term.left_positions * static_cast<Index>(sizeof(T));
    matrices.data = reinterpret_cast<T*>(take(bytes));
    launch_gram<T>(arguments, options_.precision, is_large(matrices), options_.stream);
    term.given = matrices.data;
    term.given_row_stride = matrices.row_stride;
    term.given_pair_stride = matrices.right_output;
  }

  bool is_large(const GramOutput<T>& out) const {
    const Index rows = divide_up(out.rows, large_tile), columns = divide_up(out.columns, large_tile);
    const Index tiles = (out.triangle ? triangle_tiles(rows) : rows * columns) * out.pairs();
    return prefers_large_tiles(options_.precision, tiles);
  }

  PackedTerm<T> packed(const Part<T>& part, Strip rows, Strip columns, bool diagonal) {
    PackedTerm<T> term;
    term.first = packed(part.term->first, part.first_element, part.elements, rows, columns, diagonal);
    term.left_positions = static_cast<int>(part.term->first.left.positions);
    term.right_positions = static_cast<int>(right(part.term->first).positions);
    term.has_second = part.term->second.has_value();
    if (part.term->second) {
      term.second = packed(*part.term->second, 0, part.term->second->left.length, rows, columns, diagonal);
    }
    term.scale = part.term->scale;
    if (part.has_offset) term.offset = part.term->offset;
    return term;
  }

  PackedFactor packed(const FactorPair<T>& factor, Index first, Index elements, Strip rows, Strip columns,
                      bool diagonal) {
    PackedFactor result;
    result.row_bytes = row_bytes(elements);
    result.left = packed(factor.left, first, elements, rows);
    result.right = diagonal ? result.left : packed(right(factor), first, elements, columns);
    return result;
  }

  PackedSide packed(const FactorView<T>& side, Index first, Index elements, Strip examples) {
    RowsSource<T> source;
    if (side.outer_product) {
      const OuterProductView<T>& product = *side.outer_product;
      source.is_outer_product = true;
      source.activations = product.activations.data;
      source.backprops = product.backprops.data;
      source.activation_strides[0] = product.activations.example_stride;
      source.activation_strides[1] = product.activations.position_stride;
      source.activation_strides[2] = product.activations.element_stride;
      source.backprop_strides[0] = product.backprops.example_stride;
      source.backprop_strides[1] = product.backprops.output_stride;
      source.backprop_strides[2] = product.backprops.position_stride;
      source.backprop_strides[3] = product.backprops.element_stride;
      source.summed_positions = product.positions;
      source.inputs = product.activations.length;
      source.units = product.backprops.length;
      source.bias = product.bias;
    } else {
      source.data = side.data;
      source.example_stride = side.example_stride;
      source.output_stride = side.output_stride;
      source.position_stride = side.position_stride;
      source.element_stride = side.element_stride;
    }
    source.weights = side.weights;
    source.first_example = examples.first;
    source.examples = examples.count;
    source.outputs = side.outputs;
    source.positions = side.positions;
    source.first_element = first;
    source.length = elements;

    PackedRows rows;
    rows.rows = rounded_up(examples.count, large_tile);
    rows.row_bytes = row_bytes(elements);
    rows.position_bytes = rows.rows * rows.row_bytes;
    rows.output_bytes = rows.position_bytes * side.positions;
    rows.data = take(rows.output_bytes * side.outputs);
    launch_rows<T>(source, rows, options_.precision, options_.stream);
    return {rows.data, rows.position_bytes, side.outputs > 1 ? rows.output_bytes : 0};
  }

  unsigned char* take(Index bytes) {
    unsigned char* start = static_cast<unsigned char*>(options_.workspace) + used_;
    used_ += aligned(bytes);
    return start;
  }

  std::span<const Term<T>> terms_;
  MatrixView<T> out_;
  const GramOptions& options_;
  Index element_, outputs_ = 1, rows_ = 0, columns_ = 0;
  Index available_ = 0, used_ = 0;
  bool added_ = false;  // to `out`, by an earlier launch
};

}  // namespace

template <class T>
void gram(std::span<const Term<T>> terms, MatrixView<T> out, const GramOptions& options) {
  Planner<T>(terms, out, options).run();
}

template <class T>
GramWorkspace gram_workspace(std::span<const Term<T>> terms, MatrixView<T> out, const GramOptions& options) {
  return Planner<T>(terms, out, options).workspace();
}

template void gram<float>(std::span<const Term<float>>, MatrixView<float>, const GramOptions&);
template void gram<double>(std::span<const Term<double>>, MatrixView<double>, const GramOptions&);
template GramWorkspace gram_workspace<float>(std::span<const Term<float>>, MatrixView<float>, const GramOptions&);
template GramWorkspace gram_workspace<double>(std::span<const Term<double>>, MatrixView<double>, const GramOptions&);

}  // namespace kernelgrowth::cuda
