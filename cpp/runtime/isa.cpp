#include <cstdlib>

#include "cpu/bf16.hpp"
#include "cpu/dispatch.hpp"
#include "kernelgrowth/error.hpp"
#include "kernelgrowth/runtime.hpp"

namespace kernelgrowth {
namespace cpu {

extern const Kernels kernels_scalar;
#if defined(__x86_64__)
extern const Kernels kernels_x86_64_v2;
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
extern const Bf16Kernels bf16_kernels_avx512;
#elif defined(__aarch64__)
extern const Kernels kernels_neon;
#endif

namespace {

// Tables this machine can run, slowest first.
const std::vector<const Kernels*>& runnable() {
  static const std::vector<const Kernels*> tables = [] {
    std::vector<const Kernels*> found{&kernels_scalar};
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("popcnt")) found.push_back(&kernels_x86_64_v2);
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
        __builtin_cpu_supports("bmi2")) {
      found.push_back(&kernels_avx2);
      if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
          __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd") &&
          __builtin_cpu_supports("avx512vl")) {
        found.push_back(&kernels_avx512);
      }
    }
#elif defined(__aarch64__)
    found.push_back(&kernels_neon);
#endif
    return found;
  }();
  return tables;
}

}  // namespace

const Kernels& kernels(const std::string& isa) {
  const std::string wanted = isa.empty() ? active_isa() : isa;
  for (const Kernels* table : runnable()) {
    if (table->name == wanted) return *table;
  }
  std::string message = "instruction set '" + wanted + "' is not one this machine and build can run:";
  for (const auto& name : available_isas()) message += " " + name;
  throw InvalidArgument(message);
}

const Bf16Kernels* bf16_kernels() {
#if defined(__x86_64__)
  static const bool found = runnable().back() == &kernels_avx512 && __builtin_cpu_supports("avx512bf16");
  if (found) return &bf16_kernels_avx512;
#endif
  return nullptr;
}

}  // namespace cpu

bool has_bf16() {
  return cpu::bf16_kernels() != nullptr;
}

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const auto* table : cpu::runnable()) names.emplace_back(table->name);
  return names;
}

std::string active_isa() {
  const char* forced = std::getenv("KERNELGROWTH_ISA");
  if (forced == nullptr || *forced == '\0') return available_isas().back();
  const auto names = available_isas();
  for (const auto& name : names) {
    if (name == forced) return name;
  }
  std::string message = "KERNELGROWTH_ISA=" + std::string(forced) + " is not one this machine and build can run:";
  for (const auto& name : names) message += " " + name;
  throw InvalidArgument(message);
}

}  // namespace kernelgrowth
