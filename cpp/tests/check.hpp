#pragma once

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "kernelgrowth/view.hpp"

// Ends the test with the place and the expression where the condition does not hold.
#define CHECK(condition)                                                             \
  do {                                                                               \
    if (!(condition)) {                                                              \
      std::fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #condition); \
      std::exit(1);                                                                  \
    }                                                                                \
  } while (false)

// Ends the test unless the statement throws that exception.
#define CHECK_THROWS(exception, statement)                                                         \
  do {                                                                                             \
    bool thrown = false;                                                                           \
    try {                                                                                          \
      statement;                                                                                   \
    } catch (const exception&) {                                                                   \
      thrown = true;                                                                               \
    }                                                                                              \
    if (!thrown) {                                                                                 \
      std::fprintf(stderr, "%s:%d: no %s from: %s\n", __FILE__, __LINE__, #exception, #statement); \
      std::exit(1);                                                                                \
    }                                                                                              \
  } while (false)

namespace kernelgrowth::testing {

class Random {
 public:
  explicit Random(unsigned seed) : engine_(seed) {}
  // A sequence of its own for every pair of numbers.
  Random(long seed, long number) {
    std::seed_seq numbers{seed, number};
    engine_.seed(numbers);
  }
  index_t integer(index_t low, index_t high) { return std::uniform_int_distribution<index_t>(low, high)(engine_); }
  double normal() { return normal_(engine_); }

  template <class T>
  std::vector<T> normals(index_t count) {
    std::vector<T> values(static_cast<std::size_t>(count));
    for (T& value : values) value = static_cast<T>(normal());
    return values;
  }

 private:
  std::mt19937 engine_;
  std::normal_distribution<double> normal_;
};

}  // namespace kernelgrowth::testing
