#include <cuda_runtime.h>

#include "kernelgrowth/cuda.hpp"

namespace kernelgrowth::cuda {
namespace {

constexpr int answer = 4211;

__global__ void probe(int* value) {
  *value = answer;
}

// Launches a kernel of this build, which fails where the build holds no code for the device.
cudaError_t launch_probe(int device) {
  cudaError_t status = cudaSetDevice(device);
  int* on_device = nullptr;
  if (status == cudaSuccess) status = cudaMalloc(&on_device, sizeof(int));
  if (status != cudaSuccess) return status;
  probe<<<1, 1>>>(on_device);
  status = cudaGetLastError();
  int value = 0;
  if (status == cudaSuccess) status = cudaMemcpy(&value, on_device, sizeof(int), cudaMemcpyDeviceToHost);
  cudaFree(on_device);
  if (status == cudaSuccess && value != answer) status = cudaErrorUnknown;
  return status;
}

}  // namespace

std::string compiled_architectures() {
  return KG_CUDA_ARCHITECTURES;
}

int runtime_version() {
  int version = 0;
  cudaRuntimeGetVersion(&version);
  return version;
}

int driver_version() {
  int version = 0;
  cudaDriverGetVersion(&version);
  return version;
}

std::vector<Device> devices(std::string& problem) {
  std::vector<Device> found;
  int count = 0;
  const cudaError_t counted = cudaGetDeviceCount(&count);
  if (counted != cudaSuccess) {
    problem = cudaGetErrorString(counted);
    return found;
  }
  int current = 0;
  cudaGetDevice(&current);
  for (int i = 0; i < count; ++i) {
    cudaDeviceProp properties{};
    const cudaError_t status = cudaGetDeviceProperties(&properties, i);
    if (status != cudaSuccess) {
      problem = cudaGetErrorString(status);
      continue;
    }
    const cudaError_t launched = launch_probe(i);
    found.push_back({properties.name, std::to_string(properties.major) + "." + std::to_string(properties.minor),
                     properties.totalGlobalMem, launched == cudaSuccess,
                     launched == cudaSuccess ? "" : cudaGetErrorString(launched)});
  }
  cudaSetDevice(current);
  return found;
}

}  // namespace kernelgrowth::cuda
