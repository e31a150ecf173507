#include <cstdlib>

#include "check.hpp"
#include "kernelgrowth/error.hpp"
#include "kernelgrowth/runtime.hpp"

using namespace kernelgrowth;

int main() {
  unsetenv("KERNELGROWTH_ISA");
  const auto isas = available_isas();
  CHECK(!isas.empty() && isas.front() == "scalar");
  CHECK(active_isa() == isas.back());
  for (const auto& isa : isas) {
    setenv("KERNELGROWTH_ISA", isa.c_str(), 1);
    CHECK(active_isa() == isa);
  }
  setenv("KERNELGROWTH_ISA", "altivec", 1);
  CHECK_THROWS(InvalidArgument, active_isa());
  return 0;
}
