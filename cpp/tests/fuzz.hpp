#pragma once

#include "check.hpp"

// One random case of each entry point: shapes, strides, options and instruction set drawn, the result compared with
// plain loops in double. Some cases ask for what must be refused.
namespace kernelgrowth::testing {

void fuzz_gram(Random& random);
void fuzz_matmul(Random& random);
void fuzz_statistics(Random& random);
void fuzz_windows(Random& random);

// Mostly small, sometimes around the edges of register tiles, panels and blocks.
inline index_t random_size(Random& random) {
  static const index_t edges[] = {23, 24, 25, 31, 32, 33, 47, 48, 49, 95, 96, 97};
  return random.integer(0, 9) > 0 ? random.integer(1, 20) : edges[random.integer(0, 11)];
}

inline index_t random_length(Random& random) {
  return random.integer(0, 39) > 0 ? random.integer(1, 20) : random.integer(250, 300);
}

std::string random_isa(Random& random);

}  // namespace kernelgrowth::testing
