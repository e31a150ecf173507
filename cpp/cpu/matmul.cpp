// Products of one block's kernel with vectors in two sweeps over the examples. The first sums the blocks' gradients
// with the vectors as weights,  g_j = sum_nt w_nt,j a_nt',  w_nt,j = sum_c v_nc,j d_nct;  the second takes the inner
// products of every gradient with them,  sum_t d_nct . g_j a_nt.  Both are matrix products made by the Gram's register
// kernel. The first leaves g' in panels, [input][units of a vector], which the second reads as they lie.
#include "kernelgrowth/matmul.hpp"

#include <algorithm>
#include <string>
#include <type_traits>
#include <vector>

#include "cpu/dispatch.hpp"
#include "cpu/packing.hpp"
#include "cpu/product_layout.hpp"
#include "kernelgrowth/error.hpp"
#include "runtime/workspace.hpp"

namespace kernelgrowth {
namespace cpu {
namespace {

// Calibrated on Zen 4, like those of the Gram.
constexpr index_t depth_block = 256;
constexpr index_t tallest_chunk = 96, lowest_chunk = 24;
constexpr index_t panels_together = 2;  // of vectors, in the first sweep
constexpr index_t widest_block = 512;   // columns, rounded up to a panel
constexpr index_t tasks_per_thread = 4;
// Vectors are taken together as long as their g's take no more than this, or fill so many columns: what the second
// sweep reads for every chunk should stay in cache.
constexpr std::size_t most_bytes_together = std::size_t{8} << 20;
constexpr index_t columns_together = 192;
// Products with fewer operations are not worth waking a thread for.
constexpr double serial_operations = 1e6;
// Rows after which partial sums of g are added up in double; inputs after which those of an inner product are.
constexpr index_t run_rows = 16 * depth_block, run_inputs = 64 * depth_block;

template <class T>
const ProductTerm<T>& checked(const ProductTerm<T>& term) {
  auto side = [](const OuterProducts<T>& s, const char* name) {
    if (s.examples < 1 || s.outputs < 1 || s.positions < 1 || s.inputs < 1 || s.units < 1) {
      throw InvalidArgument(std::string("matmul: the ") + name + " side is empty");
    }
  };
  side(term.left, "left");
  side(term.right, "right");
  if (term.left.inputs != term.right.inputs || term.left.units != term.right.units ||
      term.left.outputs != term.right.outputs) {
    throw InvalidArgument("matmul: left and right differ in inputs, units or outputs");
  }
  if (term.weights && term.bias && !term.bias_weights) throw InvalidArgument("matmul: bias weights are missing");
  return term;
}

template <class T>
class Product {
 public:
  Product(const ProductTerm<T>& term, index_t vectors, const ProductOptions& options)
      : term_(checked(term)),
        vectors_(vectors),
        options_(options),
        kernels_(kernel_table<T>(options.isa)),
        layout_(term, panel(), tile_rows()) {
    if (vectors < 1) throw InvalidArgument("matmul: no vectors");
    block_panels_ = ceil_div(widest_block, panel());
    run_rows_ = std::min(run_rows, rows(term.right));
    run_inputs_ = std::min(run_inputs, layout_.inputs);

    threads_ = options.threads > 0 ? options.threads : default_threads();
    const double operations = 2.0 * static_cast<double>(rows(term.left) + rows(term.right)) *
                              static_cast<double>(layout_.inputs) * static_cast<double>(layout_.units * vectors);
    if (operations < serial_operations) threads_ = 1;
    const index_t wanted = tasks_per_thread * threads_;
    // How an example's positions are divided decides the order of its sums: that must not depend on the threads.
    const index_t lowest = std::max(lowest_chunk, term.left.positions);
    while (chunk_rows_ / 2 >= lowest && ceil_div(rows(term.left), chunk_rows_) < wanted) chunk_rows_ /= 2;
    chunk_examples_ = std::max<index_t>(1, chunk_rows_ / term.left.positions);
    const index_t chunks = ceil_div(term.left.examples, chunk_examples_);
    parts_ = std::clamp<index_t>(ceil_div(wanted, chunks), 1, layout_.slots(vectors));
  }

  ProductWorkspace workspace() const {
    const std::size_t sweep = std::max(first_sweep_bytes(), second_sweep_bytes());
    return {sweep + slots_bytes(1), sweep + slots_bytes(slots_together())};
  }

  void run(const VectorsView<T>& v, const MatrixView<double>& out) {
    if (v.count != vectors_ || v.rows != term_.rows(term_.right)) {
      throw InvalidArgument("matmul: the vectors do not fit the right side");
    }
    if (out.cols != vectors_ || out.rows != term_.rows(term_.left)) {
      throw InvalidArgument("matmul: the result does not fit the left side and the vectors");
    }
    const ProductWorkspace need = workspace();
    const std::size_t limit = std::min(options_.workspace > 0 ? options_.workspace : need.full, need.full);
    if (limit < need.minimum) {
      throw WorkspaceTooSmall("matmul: needs a workspace of " + std::to_string(need.minimum) + " bytes, allowed " +
                              std::to_string(limit));
    }
    const std::size_t sweep = std::max(first_sweep_bytes(), second_sweep_bytes());
    index_t most = slots_together();
    while (sweep + slots_bytes(most) > limit) most = (most + 1) / 2;
    Workspace memory(sweep + slots_bytes(most));
    const index_t step = most * layout_.vectors_per_slot;
    for (index_t j = 0; j < vectors_; j += step) {
      const std::size_t before = memory.mark();
      const index_t count = std::min(step, vectors_ - j);
      const VectorsView<T> some{v.data + j * v.column_stride, v.rows, count, v.row_stride, v.column_stride};
      T* packed = memory.take<T>(slots_elements(layout_.slots(count)));
      if (one_sum()) {
        sum_gradients(some, packed, packed, memory);
      } else {
        double* sums = memory.take<double>(slots_elements(layout_.slots(count)));
        sum_gradients(some, sums, packed, memory);
      }
      inner_products(count, packed, {out.data + j, out.rows, count, out.row_stride}, memory);
      memory.release_to(before);
    }
  }

 private:
  index_t slots_together() const {
    const auto fitting = static_cast<index_t>(most_bytes_together / slots_bytes(1));
    const index_t filling = ceil_div(columns_together, layout_.panels_per_slot * panel());
    return std::min(std::max(fitting, filling), layout_.slots(vectors_));
  }
  index_t panel() const { return static_cast<index_t>(kernels_.panel); }
  index_t lanes() const { return static_cast<index_t>(kernels_.lanes); }
  index_t fetched_per_step() const { return static_cast<index_t>(kernels_.fetched_per_step); }
  index_t tile_rows() const { return static_cast<index_t>(kernels_.tile_rows); }
  static index_t rows(const OuterProducts<T>& side) { return side.examples * side.positions; }

  std::size_t slots_elements(index_t count) const {
    return static_cast<std::size_t>(count * layout_.panels_per_slot * layout_.panel_elements());
  }
  std::size_t slots_bytes(index_t count) const {
    const std::size_t sums = one_sum() ? 0 : Workspace::bytes_for<double>(slots_elements(count));
    return sums + Workspace::bytes_for<T>(slots_elements(count));
  }
  // Whether g needs no sums in double beside what the second sweep reads.
  bool one_sum() const { return std::is_same_v<T, double> || rows(term_.right) <= run_rows; }

  // Elements of what the sweeps work on: activations packed for all threads, and of each thread its packed factors and
  // products.
  index_t shared_elements() const {
    return run_rows_ * std::min(block_panels_, ceil_div(layout_.inputs, panel())) * panel();
  }
  index_t weighted_elements() const { return panels_together * std::min(depth_block, run_rows_) * panel(); }
  index_t product_rows() const { return std::min(block_panels_ * panel(), layout_.padded_inputs); }
  index_t chunk_elements() const { return round_up(chunk_rows_, panel()) * run_inputs_; }
  index_t values_elements() const { return round_up(chunk_rows_, tile_rows()) * block_panels_ * panel(); }

  static std::size_t bytes(index_t elements) { return Workspace::bytes_for<T>(static_cast<std::size_t>(elements)); }
  static T* take(Workspace& memory, index_t elements) { return memory.take<T>(static_cast<std::size_t>(elements)); }

  std::size_t first_sweep_bytes() const {
    const std::size_t own = bytes(weighted_elements()) + bytes(panels_together * product_rows() * panel());
    return bytes(shared_elements()) + static_cast<std::size_t>(threads_) * own;
  }
  std::size_t second_sweep_bytes() const {
    return static_cast<std::size_t>(threads_) * (bytes(chunk_elements()) + bytes(values_elements()));
  }

  // First sweep: g_j' o weights in panels, summed up in Sum. Runs of rows follow one another; the threads share the
  // entries of g.
  template <class Sum>
  void sum_gradients(const VectorsView<T>& v, Sum* sums, T* packed, Workspace& memory) const {
    const std::size_t before = memory.mark();
    const OuterProducts<T>& side = term_.right;
    const index_t total_panels = layout_.panels(v.count), input_panels = ceil_div(layout_.inputs, panel());
    T* shared = take(memory, shared_elements());
    std::vector<T*> weighted, products;
    for (int i = 0; i < threads_; ++i) {
      weighted.push_back(take(memory, weighted_elements()));
      products.push_back(take(memory, panels_together * product_rows() * panel()));
      // Columns beyond a narrow panel's last vector are never written, but added up with the others.
      std::fill_n(products.back(), panels_together * product_rows() * panel(), T{0});
    }
    for (index_t row = 0; row < rows(side); row += run_rows) {
      const index_t count = std::min(run_rows, rows(side) - row), depths = ceil_div(count, depth_block);
      for (index_t p = 0; p < input_panels; p += block_panels_) {
        const index_t packed_panels = std::min(block_panels_, input_panels - p);
        const index_t stride = packed_panels * panel();
        parallel_for(
            depths * packed_panels, threads_,
            [&](index_t i, int) {
              const index_t k = i / packed_panels * depth_block, q = i % packed_panels;
              const index_t depth = std::min(depth_block, count - k);
              pack_activations(side, row + k, depth, p + q, shared + k * stride + q * depth * panel());
            },
            options_.poll);

        const index_t begin = p * panel(), end = std::min(begin + stride, layout_.padded_inputs);
        const index_t groups = ceil_div(total_panels, panels_together);
        const index_t share = std::clamp<index_t>(ceil_div(tasks_per_thread * threads_, groups), 1, packed_panels);
        const index_t step = ceil_div(packed_panels, share) * panel(), spans = ceil_div(end - begin, step);
        parallel_for(
            groups * spans, threads_,
            [&](index_t i, int worker) {
              const auto w = static_cast<std::size_t>(worker);
              const index_t q = i / spans * panels_together, first = begin + i % spans * step;
              const index_t last = std::min(first + step, end);
              multiply_run(v, {row, count}, {q, std::min(q + panels_together, total_panels)}, {first, last}, shared,
                           {begin, stride}, weighted[w], products[w]);
              for (index_t b = q; b < std::min(q + panels_together, total_panels); ++b) {
                const T* product = products[w] + (b - q) * product_rows() * panel();
                Sum* target = sums + b * layout_.panel_elements() + first * panel();
                const index_t elements = (last - first) * panel();
                if (row == 0) {
                  std::copy_n(product, elements, target);
                } else {
                  for (index_t e = 0; e < elements; ++e) target[e] += static_cast<Sum>(product[e]);
                }
              }
            },
            options_.poll);
      }
    }
    memory.release_to(before);
    if (term_.weights || !std::is_same_v<T, Sum>) weight(v.count, sums, packed);
  }

  // Inputs of panel p of `depth` rows; the bias is one input more, which is 1.
  void pack_activations(const OuterProducts<T>& side, index_t row, index_t depth, index_t p, T* target) const {
    const T* starts[depth_block];
    T ones[depth_block];
    const index_t begin = p * panel(), width = std::clamp<index_t>(side.inputs - begin, 0, panel());
    each_row(side, row, depth, [&](index_t i, index_t n, index_t t) {
      starts[i] = activation(side, n, t) + begin * side.activation_strides[2];
      ones[i] = 1;
    });
    if (width < panel()) std::fill_n(target, depth * panel(), T{0});
    kernels_.pack_weighted(starts, ones, static_cast<std::size_t>(depth), static_cast<std::size_t>(width),
                           side.activation_strides[2], target, false);
    if (term_.bias && side.inputs >= begin && side.inputs < begin + panel()) {
      for (index_t k = 0; k < depth; ++k) target[k * panel() + side.inputs - begin] = 1;
    }
  }

  // w_nt,j of the units in panel q, for `depth` rows.
  void pack_weighted(const VectorsView<T>& v, index_t row, index_t depth, index_t q, T* target) const {
    const OuterProducts<T>& side = term_.right;
    const T* starts[depth_block];
    T weights[depth_block];
    const auto length = static_cast<std::size_t>(depth);
    if (layout_.panel_width(q, v.count) < panel()) std::fill_n(target, depth * panel(), T{0});
    const index_t outputs = term_.fold ? 1 : side.outputs;
    if (layout_.units == 1) {
      // Here the vectors are the rows, and the backprops their weights.
      const index_t first = q * layout_.vectors_per_slot, width = layout_.panel_width(q, v.count);
      for (index_t c = 0; c < outputs; ++c) {
        each_row(side, row, depth, [&](index_t i, index_t n, index_t t) {
          starts[i] = v.data + (n * outputs + c) * v.row_stride + first * v.column_stride;
          weights[i] = *backprop(side, n, c, t);
        });
        kernels_.pack_weighted(starts, weights, length, static_cast<std::size_t>(width), v.column_stride, target,
                               c > 0);
      }
      return;
    }
    layout_.pieces(q, v.count, [&](const auto& piece) {
      for (index_t c = 0; c < outputs; ++c) {
        each_row(side, row, depth, [&](index_t i, index_t n, index_t t) {
          starts[i] = backprop(side, n, term_.fold ? piece.output : c, t) + piece.unit * side.backprop_strides[3];
          weights[i] = v.data[(n * outputs + c) * v.row_stride + piece.vector * v.column_stride];
        });
        kernels_.pack_weighted(starts, weights, length, static_cast<std::size_t>(piece.width), side.backprop_strides[3],
                               target + piece.column, c > 0);
      }
    });
  }

  struct Range {
    index_t begin, end;
  };
  struct RowRun {
    index_t first, count;
  };
  // Where packed activations begin (an input), and how many elements of them a row takes.
  struct Packing {
    index_t begin, stride;
  };

  // Products of a run of rows: inputs x panels, written to one panel after another.
  void multiply_run(const VectorsView<T>& v, RowRun run, Range panels, Range inputs, const T* shared, Packing packing,
                    T* weighted, T* product) const {
    for (index_t k = 0; k < run.count; k += depth_block) {
      const index_t depth = std::min(depth_block, run.count - k), size = depth * panel();
      for (index_t q = panels.begin; q < panels.end; ++q) {
        pack_weighted(v, run.first + k, depth, q, weighted + (q - panels.begin) * size);
      }
      const T* ahead = nullptr;
      for (index_t i = inputs.begin; i < inputs.end; i += tile_rows()) {
        const index_t at = i - packing.begin;
        const T* a = shared + k * packing.stride + at / panel() * size + at % panel();
        if (at % panel() == 0) ahead = a + (i + panel() < inputs.end ? size : 0);
        for (index_t q = panels.begin; q < panels.end; ++q) {
          const index_t vectors = ceil_div(layout_.panel_width(q, v.count), lanes());
          T* target = product + ((q - panels.begin) * product_rows() + (i - inputs.begin)) * panel();
          kernels_.inner_products[vectors - 1](a, weighted + (q - panels.begin) * size, static_cast<std::size_t>(depth),
                                               target, static_cast<std::size_t>(panel()), k > 0, ahead,
                                               fetched_per_step());
          if (i + panel() < inputs.end) ahead += depth * fetched_per_step();
        }
      }
    }
  }

  // g o weights, rounded to T; in place where the sums are in T.
  template <class Sum>
  void weight(index_t count, Sum* sums, T* packed) const {
    parallel_for(
        layout_.panels(count), threads_,
        [&](index_t q, int) {
          Sum* g = sums + q * layout_.panel_elements();
          if (term_.weights) {
            layout_.pieces(q, count, [&](const auto& piece) {
              for (index_t u = 0; u < piece.width; ++u) {
                const T* row = term_.weights + (piece.unit + u) * term_.left.inputs;
                Sum* column = g + piece.column + u;
                for (index_t d = 0; d < term_.left.inputs; ++d) column[d * panel()] *= static_cast<Sum>(row[d]);
                if (term_.bias) {
                  column[term_.left.inputs * panel()] *= static_cast<Sum>(term_.bias_weights[piece.unit + u]);
                }
              }
            });
          }
          if constexpr (!std::is_same_v<T, Sum>) {
            T* target = packed + q * layout_.panel_elements();
            for (index_t e = 0; e < layout_.panel_elements(); ++e) target[e] = static_cast<T>(g[e]);
          }
        },
        options_.poll);
  }

  // Second sweep: every thread draws some examples and some of the vectors.
  void inner_products(index_t count, const T* packed, const MatrixView<double>& out, Workspace& memory) const {
    const index_t chunks = ceil_div(term_.left.examples, chunk_examples_);
    const index_t parts = std::min(parts_, layout_.slots(count)), part = ceil_div(layout_.slots(count), parts);
    std::vector<T*> chunk, values;
    for (int i = 0; i < threads_; ++i) {
      chunk.push_back(take(memory, chunk_elements()));
      values.push_back(take(memory, values_elements()));
    }
    parallel_for(
        chunks * parts, threads_,
        [&](index_t i, int worker) {
          const auto w = static_cast<std::size_t>(worker);
          const index_t n = i / parts * chunk_examples_, last = std::min(n + chunk_examples_, term_.left.examples);
          const Range vectors{i % parts * part * layout_.vectors_per_slot,
                              std::min((i % parts + 1) * part * layout_.vectors_per_slot, count)};
          if (vectors.begin >= vectors.end) return;
          if (!options_.accumulate) {
            const index_t outputs = term_.fold ? 1 : term_.left.outputs;
            for (index_t r = n * outputs; r < last * outputs; ++r) {
              std::fill(out.row(r) + vectors.begin, out.row(r) + vectors.end, 0.0);
            }
          }
          const index_t positions = term_.left.positions;
          for (index_t row = n * positions; row < last * positions; row += chunk_rows_) {
            const RowRun run{row, std::min(chunk_rows_, last * positions - row)};
            for (index_t k = 0; k < layout_.inputs; k += run_inputs_) {
              pack_chunk(run, {k, std::min(k + run_inputs_, layout_.inputs)}, chunk[w]);
              multiply_chunk(run, {k, std::min(k + run_inputs_, layout_.inputs)}, chunk[w], packed, count, vectors,
                             values[w], out);
            }
          }
        },
        options_.poll);
  }

  // Inputs [begin, end) of a few rows, in panels of rows.
  void pack_chunk(RowRun run, Range inputs, T* target) const {
    const OuterProducts<T>& side = term_.left;
    const T* starts[tallest_chunk];
    each_row(side, run.first, run.count, [&](index_t i, index_t n, index_t t) {
      starts[i] = activation(side, n, t) + inputs.begin * side.activation_strides[2];
    });
    const index_t length = std::min(inputs.end, side.inputs) - inputs.begin;
    for (index_t r = 0; r < run.count; r += panel()) {
      T* start = target + r * (inputs.end - inputs.begin);
      kernels_.pack(starts + r, static_cast<std::size_t>(std::min(panel(), run.count - r)),
                    static_cast<std::size_t>(length), side.activation_strides[2], start);
      if (inputs.end > side.inputs) std::fill_n(start + length * panel(), panel(), T{1});
    }
  }

  void multiply_chunk(RowRun run, Range inputs, const T* chunk, const T* packed, index_t count, Range vectors,
                      T* values, const MatrixView<double>& out) const {
    const index_t last_panel = layout_.panels(vectors.end), ldy = block_panels_ * panel();
    for (index_t q = vectors.begin / layout_.vectors_per_slot * layout_.panels_per_slot; q < last_panel;) {
      // A block of panels never holds parts of two vectors, so that an entry's sum is cut at the same units always.
      const index_t rest =
          layout_.panels_per_slot > 1 ? layout_.panels_per_slot - q % layout_.panels_per_slot : last_panel - q;
      const index_t block = std::min({block_panels_, rest, last_panel - q});
      for (index_t k = inputs.begin; k < inputs.end;) {
        // Blocks of even depth: one that is left over with a few inputs would cost nearly as much as a whole one.
        const index_t depth = ceil_div(inputs.end - k, ceil_div(inputs.end - k, depth_block));
        for (index_t b = q; b < q + block; ++b) {
          const T* g = packed + b * layout_.panel_elements() + k * panel();
          const T* ahead = b + 1 < q + block ? g + layout_.panel_elements() : g;
          const index_t width = ceil_div(layout_.panel_width(b, count), lanes());
          for (index_t i = 0; i < run.count; i += tile_rows()) {
            const T* a = chunk + i / panel() * panel() * (inputs.end - inputs.begin) + (k - inputs.begin) * panel() +
                         i % panel();
            kernels_.inner_products[width - 1](a, g, static_cast<std::size_t>(depth),
                                               values + i * ldy + (b - q) * panel(), static_cast<std::size_t>(ldy),
                                               k > inputs.begin, ahead, fetched_per_step());
            if (b + 1 < q + block) ahead += depth * fetched_per_step();
          }
        }
        k += depth;
      }
      add_inner_products(run, {q, q + block}, values, ldy, count, out);
      q += block;
    }
  }

  // out_nc,j += scale * sum over the block's units of d_nct times the values of row (n, t).
  void add_inner_products(RowRun run, Range panels, const T* values, index_t ldy, index_t count,
                          const MatrixView<double>& out) const {
    const OuterProducts<T>& side = term_.left;
    const index_t outputs = term_.fold ? 1 : side.outputs;
    const index_t first = panels.begin / layout_.panels_per_slot * layout_.vectors_per_slot;
    const index_t last = std::min(count, ceil_div(panels.end, layout_.panels_per_slot) * layout_.vectors_per_slot);
    const T* starts[tallest_chunk];
    double sums[tallest_chunk];
    if (layout_.units == 1) {
      for (index_t c = 0; c < outputs; ++c) {
        each_row(side, run.first, run.count, [&](index_t i, index_t n, index_t t) {
          const double d = term_.scale * static_cast<double>(*backprop(side, n, c, t));
          double* target = out.row(n * outputs + c) + first;
          const T* value = values + i * ldy;
          for (index_t j = 0; j < last - first; ++j) target[j] += d * static_cast<double>(value[j]);
        });
      }
      return;
    }
    const index_t begin = panels.begin % layout_.panels_per_slot * panel();
    const index_t end = std::min(begin + (panels.end - panels.begin) * panel(), layout_.units);
    for (index_t c = 0; c < outputs; ++c) {
      layout_.ranges(begin, layout_.panels_per_slot > 1 ? end : layout_.units, 0, [&](const auto& piece) {
        each_row(side, run.first, run.count, [&](index_t i, index_t n, index_t t) {
          starts[i] = backprop(side, n, term_.fold ? piece.output : c, t) + piece.unit * side.backprop_strides[3];
        });
        for (index_t j = first; j < last; ++j) {
          const index_t slot = (j - first) / layout_.vectors_per_slot, within = (j - first) % layout_.vectors_per_slot;
          kernels_.dots(starts, values + slot * panel() + within * layout_.units + piece.column,
                        static_cast<std::size_t>(ldy), static_cast<std::size_t>(run.count),
                        static_cast<std::size_t>(piece.width), side.backprop_strides[3], sums);
          each_row(side, run.first, run.count,
                   [&](index_t i, index_t n, index_t) { out.row(n * outputs + c)[j] += term_.scale * sums[i]; });
        }
      });
    }
  }

  const ProductTerm<T>& term_;
  index_t vectors_;
  const ProductOptions& options_;
  const KernelTable<T>& kernels_;
  ProductLayout layout_;
  int threads_ = 1;
  index_t block_panels_ = 1, run_rows_ = 1, run_inputs_ = 1;
  index_t chunk_rows_ = tallest_chunk, chunk_examples_ = 1, parts_ = 1;
};

}  // namespace
}  // namespace cpu

template <class T>
void matmul(const ProductTerm<T>& term, const VectorsView<T>& v, MatrixView<double> out,
            const ProductOptions& options) {
  cpu::Product<T>(term, v.count, options).run(v, out);
}

template <class T>
ProductWorkspace matmul_workspace(const ProductTerm<T>& term, index_t vectors, const ProductOptions& options) {
  return cpu::Product<T>(term, vectors, options).workspace();
}

template void matmul(const ProductTerm<float>&, const VectorsView<float>&, MatrixView<double>, const ProductOptions&);
template void matmul(const ProductTerm<double>&, const VectorsView<double>&, MatrixView<double>, const ProductOptions&);
template ProductWorkspace matmul_workspace(const ProductTerm<float>&, index_t, const ProductOptions&);
template ProductWorkspace matmul_workspace(const ProductTerm<double>&, index_t, const ProductOptions&);

}  // namespace kernelgrowth
