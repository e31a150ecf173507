#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace kernelgrowth::cuda {

struct Device {
  std::string name;
  std::string compute_capability;
  std::size_t memory_bytes;
  bool runs_this_build;  // a kernel of this build was launched on it and answered
  std::string problem;   // why not
};

// Architectures this build holds code for, as CMake names them.
std::string compiled_architectures();

// CUDA's runtime and driver versions as 1000 * major + 10 * minor; the driver's is 0 where there is none.
int runtime_version();
int driver_version();

// Empty where there is no device or no driver; then `problem` says what CUDA answered.
std::vector<Device> devices(std::string& problem);

}  // namespace kernelgrowth::cuda
