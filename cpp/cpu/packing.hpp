#pragma once

#include <algorithm>

#include "cpu/kernels.hpp"
#include "kernelgrowth/view.hpp"

namespace kernelgrowth::cpu {

inline index_t ceil_div(index_t a, index_t b) {
  return (a + b - 1) / b;
}
inline index_t round_up(index_t a, index_t b) {
  return ceil_div(a, b) * b;
}
inline index_t round_down(index_t a, index_t b) {
  return a / b * b;
}

// Where the rows of a factor lie once packed: blocks of whole examples, each padded to whole panels.
// Rows and columns of a tile read the same packing, since a panel's width is a multiple of the register tile's rows.
struct PackedLayout {
  index_t outputs = 1;
  index_t length = 0;
  index_t block_examples = 1;
  index_t panel = 1;

  index_t panels_per_block() const { return ceil_div(block_examples * outputs, panel); }
  index_t elements_per_block() const { return panels_per_block() * panel * length; }
};

// Packs panel `p` of the block that starts at `first_example`.
template <class T>
void pack_panel(const KernelTable<T>& kernels, const FactorView<T>& factor, const PackedLayout& layout,
                index_t first_example, index_t p, T* target) {
  constexpr index_t widest_panel = 64;
  const T* rows[widest_panel];
  const index_t first_row = p * layout.panel;
  const index_t block_rows = std::min(layout.block_examples, factor.examples - first_example) * factor.outputs;
  const index_t count = std::clamp<index_t>(block_rows - first_row, 0, layout.panel);
  for (index_t i = 0; i < count; ++i) {
    const index_t row = first_row + i;
    rows[i] = factor.data + (first_example + row / factor.outputs) * factor.example_stride +
              (row % factor.outputs) * factor.output_stride;
  }
  kernels.pack(rows, static_cast<std::size_t>(count), static_cast<std::size_t>(factor.length), factor.element_stride,
               target);
}

}  // namespace kernelgrowth::cpu
