// Inner products of numbers rounded to bfloat16, for processors that multiply pairs of them (AVX512_BF16).
#pragma once

#include <cstddef>

namespace kernelgrowth::cpu {

// Panels and register tiles are those of the AVX-512 table.
struct Bf16Kernels {
  // Rounds a packed panel in place: rows 2p and 2p + 1 of it become row p, each element a pair of bfloat16; an odd
  // length is filled up with 0.
  void (*compress)(float* panel, std::size_t length);
  // As KernelTable::inner_products on compressed panels, `depth` counting pairs. Products are exact, sums in float.
  void (*inner_products[3])(const float* a, const float* b, std::size_t depth, float* c, std::size_t ldc,
                            bool accumulate, const float* ahead, std::ptrdiff_t step);
};

// Null where this machine or build has none.
const Bf16Kernels* bf16_kernels();

}  // namespace kernelgrowth::cpu
