#pragma once

#include <cstddef>

namespace kernelgrowth::cuda {

// How vectors are multiplied on a GPU. `float32` is as accurate as float: each number is divided into two of tensor
// cores', and of their four products three are made. `simt` is float without tensor cores, for cards before sm_80.
// `float64` is that of double, and the only one.
enum class Precision { bf16, tf32, float32, simt, float64 };

constexpr std::ptrdiff_t element_bytes(Precision precision) {
  return precision == Precision::bf16 ? 2 : precision == Precision::float64 ? 8 : 4;
}

}  // namespace kernelgrowth::cuda
