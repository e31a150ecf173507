// Gradients of a weight, written out while they are packed:  G_nc = sum_t backprops[n, c, t] activations[n, t]'.
// As many of them as a vector has lanes are computed with the register kernel of the Gram, positions as its depth, and
// turned into the packed panel while they are in cache.
#include "cpu/rows.hpp"

#include <algorithm>
#include <string>
#include <vector>

#include "cpu/dispatch.hpp"
#include "kernelgrowth/error.hpp"
#include "runtime/workspace.hpp"

namespace kernelgrowth {
namespace cpu {
namespace {

// Positions are summed in runs of so many, and so many runs are added up before they are added to others, so that
// rounding grows with the runs and not with the number of positions.
constexpr index_t positions_block = 256, positions_run = 64 * positions_block;

// What is packed next. Every call of the register kernel asks for one cache line of every position of it: memory is
// read while what was packed before is multiplied.
template <class T>
class Next {
 public:
  void add(const PositionsView<T>& vectors, index_t example, index_t output, index_t begin, index_t depth) {
    if (vectors.element_stride != 1) return;
    // The stride of one position alone may be any number.
    const index_t stride = depth > 1 ? vectors.position_stride : 0;
    parts_[parts_used_++] = {vectors.at(example, output) + begin * vectors.position_stride, stride,
                             ceil_div(vectors.length, line)};
  }
  const T* data(const T* otherwise) const {
    return part_ < parts_used_ ? parts_[part_].data + line_ * line : otherwise;
  }
  index_t step() const { return part_ < parts_used_ ? parts_[part_].stride : 0; }
  void advance() {
    if (part_ < parts_used_ && ++line_ == parts_[part_].lines) {
      ++part_;
      line_ = 0;
    }
  }

 private:
  static constexpr index_t line = 64 / static_cast<index_t>(sizeof(T));
  struct Part {
    const T* data;
    index_t stride, lines;
  };
  Part parts_[2] = {};
  int parts_used_ = 0, part_ = 0;
  index_t line_ = 0;
};

// Where the parts of a thread's scratch lie.
template <class T>
struct Expansion {
  const KernelTable<T>& kernels;
  const OuterProductView<T>& source;
  index_t panel, lanes, tile_rows, block, row_panels, column_panels, row_stride, gradient_stride;

  Expansion(const KernelTable<T>& table, const OuterProductView<T>& view)
      : kernels(table),
        source(view),
        panel(static_cast<index_t>(table.panel)),
        lanes(static_cast<index_t>(table.lanes)),
        tile_rows(static_cast<index_t>(table.tile_rows)),
        block(std::min(view.positions, positions_block)),
        row_panels(ceil_div(view.backprops.length, panel)),
        column_panels(ceil_div(view.columns(), panel)),
        row_stride(round_up(view.columns(), lanes)),
        // One vector more than they need, so that the gradients do not all start in the same set of the cache.
        gradient_stride(round_up(view.backprops.length, tile_rows) * row_stride + lanes) {}

  index_t backprops_size() const { return row_panels * panel * block; }
  index_t activations_size() const { return column_panels * panel * block; }
  index_t runs_size() const { return source.positions > positions_run ? gradient_stride : 0; }
  index_t scratch_size() const { return backprops_size() + activations_size() + runs_size() + lanes * gradient_stride; }

  // Panels [depth][panel] of positions [begin, begin + depth) of one example (and output).
  void pack(const PositionsView<T>& vectors, const T* data, index_t begin, index_t depth, T* target) const {
    data += begin * vectors.position_stride;
    for (index_t j = 0; j < vectors.length; j += panel, target += panel * block) {
      pack_vectors(kernels, data + j * vectors.element_stride, std::min(panel, vectors.length - j),
                   vectors.element_stride, depth, vectors.position_stride, target);
    }
  }

  void pack_activations(index_t example, index_t begin, index_t depth, T* target) const {
    pack(source.activations, source.activations.at(example, 0), begin, depth, target);
    if (!source.bias) return;
    const index_t column = source.activations.length;
    T* ones = target + column / panel * panel * block + column % panel;
    // A panel of its own, which `pack` has not reached, starts with its other columns empty.
    if (column % panel == 0) std::fill_n(ones, panel * depth, T{0});
    for (index_t t = 0; t < depth; ++t) ones[t * panel] = 1;
  }

  // gradient (rows of row_stride) = or += the sum over `depth` packed positions.
  void multiply(const T* backprops, const T* activations, index_t depth, bool accumulate, T* gradient,
                Next<T> next) const {
    const index_t columns = source.columns();
    for (index_t j = 0; j < columns; j += panel) {
      const T* b = activations + j * block;
      const auto inner_products = kernels.inner_products[ceil_div(std::min(panel, columns - j), lanes) - 1];
      for (index_t i = 0; i < source.backprops.length; i += tile_rows) {
        const T* a = backprops + i / panel * panel * block + i % panel;
        inner_products(a, b, static_cast<std::size_t>(depth), gradient + i * row_stride + j,
                       static_cast<std::size_t>(row_stride), accumulate, next.data(b), next.step());
        next.advance();
      }
    }
  }
};

template <class T>
void write_out(const KernelTable<T>& kernels, const FactorView<T>& factor, const PackedLayout& layout,
               index_t first_example, index_t p, T* target, T* scratch) {
  const OuterProductView<T>& source = *factor.outer_product;
  const Expansion<T> e(kernels, source);
  T* backprops = scratch;
  T* activations = backprops + e.backprops_size();
  T* gradients = activations + e.activations_size();
  T* later_run = gradients + e.lanes * e.gradient_stride;
  const index_t count = layout.vectors_of_panel(factor, first_example, p);
  const index_t columns = source.columns(), matrix = source.backprops.length * columns;

  // The positions that step `s` of a group of gradients works on.
  struct Step {
    index_t gradient, example, output, begin, depth;
  };
  const index_t blocks = ceil_div(source.positions, positions_block);
  auto step_of = [&](index_t first, index_t fold, index_t s) {
    const index_t row = p * layout.panel + first + s / blocks, begin = s % blocks * positions_block;
    return Step{s / blocks, first_example + row / factor.outputs, source.folded > 1 ? fold : row % factor.outputs,
                begin, std::min(positions_block, source.positions - begin)};
  };

  index_t packed_example = -1;
  for (index_t first = 0; first < layout.panel; first += e.lanes) {
    const index_t rows = std::clamp<index_t>(count - first, 0, e.lanes), steps = rows * blocks;
    for (index_t fold = 0; fold < source.folded; ++fold) {
      for (index_t s = 0; s < steps; ++s) {
        const Step step = step_of(first, fold, s);
        // Outputs share their example's activations.
        if (step.example != packed_example || blocks > 1) {
          e.pack_activations(step.example, step.begin, step.depth, activations);
          packed_example = step.example;
        }
        e.pack(source.backprops, source.backprops.at(step.example, step.output), step.begin, step.depth, backprops);

        Next<T> next;
        if (s + 1 < steps) {
          const Step then = step_of(first, fold, s + 1);
          if (then.example != packed_example || blocks > 1)
            next.add(source.activations, then.example, 0, then.begin, then.depth);
          next.add(source.backprops, then.example, then.output, then.begin, then.depth);
        }
        T* gradient = gradients + step.gradient * e.gradient_stride;
        const bool later = step.begin >= positions_run, continued = step.begin % positions_run != 0;
        e.multiply(backprops, activations, step.depth, continued, later ? later_run : gradient, next);
        const index_t end = step.begin + step.depth;
        if (later && (end == source.positions || end % positions_run == 0)) {
          kernels.add_term(gradient, later_run, static_cast<std::size_t>(e.gradient_stride - e.lanes), 0, 1);
        }
      }
      for (index_t o = 0; o < source.backprops.length; ++o) {
        kernels.turn(gradients + o * e.row_stride, static_cast<std::size_t>(rows), static_cast<std::size_t>(columns),
                     e.gradient_stride, target + (fold * matrix + o * columns) * layout.panel + first);
      }
    }
  }
}

// The factor's vectors as they stand.
template <class T>
void copy_vectors(const KernelTable<T>& kernels, const FactorView<T>& factor, const PackedLayout& layout,
                  index_t first_example, index_t p, T* target) {
  const T* rows[widest_panel];
  const index_t count = layout.vectors_of_panel(factor, first_example, p);
  for (index_t i = 0; i < count; ++i) {
    const index_t vector = p * layout.panel + i, row = vector / factor.positions;
    rows[i] = factor.data + (first_example + row / factor.outputs) * factor.example_stride +
              (row % factor.outputs) * factor.output_stride + (vector % factor.positions) * factor.position_stride;
  }
  kernels.pack(rows, static_cast<std::size_t>(count), static_cast<std::size_t>(factor.length), factor.element_stride,
               target);
}

}  // namespace

template <class T>
const char* flaw(const FactorView<T>& factor) {
  if (factor.examples < 1 || factor.outputs < 1 || factor.length < 1) return "is empty";
  if (factor.positions < 1) return "has no positions";
  if (factor.positions > 1 && (factor.outer_product || factor.weights)) {
    return "has positions, but is an outer product or weighted";
  }
  if (!factor.outer_product) return nullptr;
  const OuterProductView<T>& source = *factor.outer_product;
  const bool empty =
      source.positions < 1 || source.folded < 1 || source.activations.length < 1 || source.backprops.length < 1;
  if (empty || factor.length != source.length() || (source.folded > 1 && factor.outputs > 1)) {
    return "does not have the shape of its outer product";
  }
  return nullptr;
}

template const char* flaw(const FactorView<float>&);
template const char* flaw(const FactorView<double>&);

template <class T>
index_t packing_scratch(const KernelTable<T>& kernels, const FactorView<T>& factor) {
  return factor.outer_product ? Expansion<T>(kernels, *factor.outer_product).scratch_size() : 0;
}

template <class T>
void pack_panel(const KernelTable<T>& kernels, const FactorView<T>& factor, const PackedLayout& layout,
                index_t first_example, index_t p, T* target, T* scratch) {
  if (factor.outer_product) {
    write_out(kernels, factor, layout, first_example, p, target, scratch);
  } else {
    copy_vectors(kernels, factor, layout, first_example, p, target);
  }
  if (factor.weights) kernels.weigh(target, factor.weights, static_cast<std::size_t>(layout.length));
}

template index_t packing_scratch(const KernelTable<float>&, const FactorView<float>&);
template index_t packing_scratch(const KernelTable<double>&, const FactorView<double>&);
template void pack_panel(const KernelTable<float>&, const FactorView<float>&, const PackedLayout&, index_t, index_t,
                         float*, float*);
template void pack_panel(const KernelTable<double>&, const FactorView<double>&, const PackedLayout&, index_t, index_t,
                         double*, double*);

}  // namespace cpu

}  // namespace kernelgrowth
