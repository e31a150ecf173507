#pragma once

#include <string>
#include <type_traits>

#include "cpu/kernels.hpp"

namespace kernelgrowth::cpu {

// The table of the named instruction set, or of active_isa() where the name is empty; InvalidArgument if it cannot run.
const Kernels& kernels(const std::string& isa);

template <class T>
const KernelTable<T>& kernel_table(const std::string& isa) {
  if constexpr (std::is_same_v<T, float>) {
    return kernels(isa).single_precision;
  } else {
    return kernels(isa).double_precision;
  }
}

}  // namespace kernelgrowth::cpu
