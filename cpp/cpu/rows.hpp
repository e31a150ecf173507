#pragma once

#include "cpu/kernels.hpp"
#include "cpu/packing.hpp"
#include "kernelgrowth/view.hpp"

namespace kernelgrowth::cpu {

// Elements of scratch that packing a panel of the factor takes; none where its vectors exist in memory.
template <class T>
index_t packing_scratch(const KernelTable<T>& kernels, const FactorView<T>& factor);

// Packs panel `p` of the block that starts at `first_example`: a factor's vectors as they stand, or the gradients of an
// outer product, which exist nowhere else; then their weights.
template <class T>
void pack_panel(const KernelTable<T>& kernels, const FactorView<T>& factor, const PackedLayout& layout,
                index_t first_example, index_t p, T* target, T* scratch);

}  // namespace kernelgrowth::cpu
