#include "kernelgrowth/peak.hpp"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <memory>

#include "cpu/dispatch.hpp"
#include "kernelgrowth/runtime.hpp"

namespace kernelgrowth {

template <class T>
double multiply_add_peak(int threads, const std::string& isa, bool quick) {
  using clock = std::chrono::steady_clock;
  // Long enough that starting the threads does not count, short enough that a slice without interruption is found.
  const std::size_t iterations = quick ? 500'000 : 4'000'000;
  constexpr int runs = 15;
  const auto& table = cpu::kernel_table<T>(isa);
  const int used = threads > 0 ? threads : default_threads();
  double best = 0;
  for (int run = 0; run < runs; ++run) {
    std::vector<double> operations(static_cast<std::size_t>(used));
    const auto start = clock::now();
    parallel_for(used, used, [&](index_t i, int) {
      T sink[2] = {T{0.5}, T{0.25}};
      operations[static_cast<std::size_t>(i)] = table.multiply_add(iterations, sink);
    });
    const std::chrono::duration<double> elapsed = clock::now() - start;
    double total = 0;
    for (const double count : operations) total += count;
    best = std::max(best, total / elapsed.count());
  }
  return best;
}

double copy_bandwidth(int threads) {
  using clock = std::chrono::steady_clock;
  constexpr std::size_t bytes = std::size_t{64} << 20;
  constexpr int runs = 5;
  const int used = threads > 0 ? threads : default_threads();
  const std::size_t part = bytes / static_cast<std::size_t>(used);
  const auto source = std::make_unique<char[]>(bytes), target = std::make_unique<char[]>(bytes);
  double best = 0;
  for (int run = 0; run < runs; ++run) {
    const auto start = clock::now();
    parallel_for(used, used, [&](index_t i, int) {
      const std::size_t offset = static_cast<std::size_t>(i) * part;
      std::memcpy(target.get() + offset, source.get() + offset, part);
    });
    const std::chrono::duration<double> elapsed = clock::now() - start;
    best = std::max(best, 2.0 * static_cast<double>(part) * used / elapsed.count());
  }
  return best;
}

template double multiply_add_peak<float>(int, const std::string&, bool);
template double multiply_add_peak<double>(int, const std::string&, bool);

}  // namespace kernelgrowth
