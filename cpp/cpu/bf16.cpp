#include "cpu/bf16.hpp"

#include <immintrin.h>

namespace kernelgrowth::cpu {
namespace {

constexpr std::size_t rows = 8, vectors = 3, lanes = 16, panel_width = vectors * lanes;

__m512i round_to_bf16(__m512 x) {
  return _mm512_cvtepu16_epi32(reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x)));
}

void compress(float* panel, std::size_t length) {
  for (std::size_t pair = 0; 2 * pair < length; ++pair) {
    const float* low = panel + 2 * pair * panel_width;
    for (std::size_t j = 0; j < panel_width; j += lanes) {
      const __m512 first = _mm512_loadu_ps(low + j);
      const __m512 second = 2 * pair + 1 < length ? _mm512_loadu_ps(low + panel_width + j) : _mm512_setzero_ps();
      const __m512i both = _mm512_or_si512(round_to_bf16(first), _mm512_slli_epi32(round_to_bf16(second), 16));
      _mm512_storeu_si512(panel + pair * panel_width + j, both);
    }
  }
}

template <std::size_t Vectors>
void inner_products(const float* a, const float* b, std::size_t depth, float* c, std::size_t ldc, bool accumulate,
                    const float* ahead, std::ptrdiff_t step) {
  __m512 sum[rows][Vectors];
#pragma GCC unroll 8
  for (std::size_t i = 0; i < rows; ++i) {
#pragma GCC unroll 3
    for (std::size_t j = 0; j < Vectors; ++j) sum[i][j] = _mm512_setzero_ps();
  }
  for (std::size_t k = 0; k < depth; ++k, a += panel_width, b += panel_width, ahead += step) {
    __builtin_prefetch(ahead);
    __m512bh right[Vectors];
#pragma GCC unroll 3
    for (std::size_t j = 0; j < Vectors; ++j) {
      right[j] = reinterpret_cast<__m512bh>(_mm512_loadu_ps(b + j * lanes));
    }
#pragma GCC unroll 8
    for (std::size_t i = 0; i < rows; ++i) {
      const auto left = reinterpret_cast<__m512bh>(_mm512_set1_ps(a[i]));
#pragma GCC unroll 3
      for (std::size_t j = 0; j < Vectors; ++j) sum[i][j] = _mm512_dpbf16_ps(sum[i][j], left, right[j]);
    }
  }
#pragma GCC unroll 8
  for (std::size_t i = 0; i < rows; ++i) {
#pragma GCC unroll 3
    for (std::size_t j = 0; j < Vectors; ++j) {
      float* target = c + i * ldc + j * lanes;
      _mm512_storeu_ps(target, accumulate ? _mm512_add_ps(_mm512_loadu_ps(target), sum[i][j]) : sum[i][j]);
    }
  }
}

}  // namespace

extern const Bf16Kernels bf16_kernels_avx512;
const Bf16Kernels bf16_kernels_avx512 = {compress, {inner_products<1>, inner_products<2>, inner_products<3>}};

}  // namespace kernelgrowth::cpu
