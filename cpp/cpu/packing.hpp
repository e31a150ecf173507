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

constexpr index_t widest_panel = 64;

// Packs `count` vectors of any strides, at most a panel of them: [element][vector].
template <class T>
void pack_vectors(const KernelTable<T>& kernels, const T* data, index_t count, index_t vector_stride, index_t length,
                  index_t element_stride, T* target) {
  if (element_stride == 1 && vector_stride != 1) {
    const T* vectors[widest_panel];
    for (index_t i = 0; i < count; ++i) vectors[i] = data + i * vector_stride;
    kernels.pack(vectors, static_cast<std::size_t>(count), static_cast<std::size_t>(length), 1, target);
  } else {
    kernels.pack_columns(data, static_cast<std::size_t>(count), static_cast<std::size_t>(length), element_stride,
                         vector_stride, target);
  }
}

// Where the vectors of a factor lie once packed: blocks of whole examples, each padded to whole panels.
// Rows and columns of a tile read the same packing, since a panel's width is a multiple of the register tile's rows.
struct PackedLayout {
  index_t vectors = 1;  // of an example: outputs times positions
  index_t length = 0;
  index_t block_examples = 1;
  index_t panel = 1;

  index_t panels_per_block() const { return ceil_div(block_examples * vectors, panel); }
  index_t elements_per_block() const { return panels_per_block() * panel * length; }
  // Vectors that panel `p` of the block starting at `first_example` holds; the rest of it is padding.
  template <class T>
  index_t vectors_of_panel(const FactorView<T>& factor, index_t first_example, index_t p) const {
    const index_t block_vectors = std::min(block_examples, factor.examples - first_example) * vectors;
    return std::clamp<index_t>(block_vectors - p * panel, 0, panel);
  }
};

}  // namespace kernelgrowth::cpu
