// Normally distributed numbers that depend on their place alone, for host and device.
#pragma once

#include <cmath>
#include <cstdint>

#ifdef __CUDACC__
#define KG_HOST_AND_DEVICE __host__ __device__
#else
#define KG_HOST_AND_DEVICE
#endif

namespace kernelgrowth::eigen {

// The finaliser of SplitMix64 (Steele, Lea and Flood 2014).
KG_HOST_AND_DEVICE inline std::uint64_t mixed(std::uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

KG_HOST_AND_DEVICE inline std::uint64_t normal_key(std::uint64_t seed, std::uint64_t stream) {
  return mixed(mixed(seed) ^ stream);
}

// The number of a key at a row and a column below 2^20, by Box and Muller (1958).
KG_HOST_AND_DEVICE inline double normal_number(std::uint64_t key, std::uint64_t row, std::uint64_t column) {
  constexpr double full_turn = 6.283185307179586;
  const std::uint64_t bits = mixed(key ^ mixed(row << 20 | column));
  const double radius = sqrt(-2 * log(static_cast<double>((bits >> 32) + 1) / 4294967296.0));
  return radius * cos(full_turn * static_cast<double>(bits & 0xffffffffu) / 4294967296.0);
}

}  // namespace kernelgrowth::eigen
