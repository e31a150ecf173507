// What kernels need of a device, under names of ours: so their sources can be run on the host, thread by thread, where
// tests/emulated_cuda.hpp stands in for CUDA. CUDA's own words are used for what C++ cannot say otherwise.
#pragma once

#ifndef KG_EMULATED_CUDA
#include <cuda_runtime.h>
#endif

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>

#include "cuda/tiles.hpp"
#include "kernelgrowth/precision.hpp"

namespace kernelgrowth::cuda {

// Blocks of a launch, in each dimension as many as CUDA allows.
struct Grid {
  Index x, y, z;

  Grid(Index along_x, Index along_y, Index along_z) : x(along_x), y(along_y), z(along_z) {
    if (x > 0x7fffffff || y > 0xffff || z > 0xffff) {
      throw std::length_error("too many blocks for one launch: " + std::to_string(x) + " x " + std::to_string(y) +
                              " x " + std::to_string(z));
    }
  }
};

#ifndef KG_EMULATED_CUDA

inline void check(cudaError_t status, const char* doing) {
  if (status != cudaSuccess)
    throw std::runtime_error(std::string(doing) + ": CUDA says: " + cudaGetErrorString(status));
}

inline int current_device() {
  int device = 0;
  check(cudaGetDevice(&device), "device");
  return device;
}
inline int device_attribute(cudaDeviceAttr attribute) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, attribute, current_device()), "device");
  return value;
}
// Bytes of shared memory that a block of the current device may have.
inline int shared_memory_limit() {
  return device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
}
inline int multiprocessors() {
  return device_attribute(cudaDevAttrMultiProcessorCount);
}

// Runs a kernel on a stream; its errors before it runs are thrown, those while it runs come with the next call.
template <class... Parameters, class... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), Grid grid, unsigned block, int shared, void* stream,
            const Arguments&... arguments) {
  constexpr int always_allowed = 48 * 1024;
  if (shared > always_allowed) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared), name);
  }
  const dim3 blocks(static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y), static_cast<unsigned>(grid.z));
  kernel<<<blocks, block, static_cast<std::size_t>(shared), static_cast<cudaStream_t>(stream)>>>(arguments...);
  check(cudaGetLastError(), name);
}

// To the device, once what was queued before is done; the source may be changed as soon as it returns.
inline void upload(void* device, const void* host, std::size_t bytes, void* stream) {
  check(cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, static_cast<cudaStream_t>(stream)), "upload");
}
// From the device, once all that was queued before is done: it waits for that.
inline void download(void* host, const void* device, std::size_t bytes, void* stream) {
  check(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, static_cast<cudaStream_t>(stream)), "download");
  check(cudaStreamSynchronize(static_cast<cudaStream_t>(stream)), "download");
}
// Memory of the current device, for what is done once: taking and giving it back waits for the device.
class DeviceMemory {
 public:
  explicit DeviceMemory(std::size_t bytes) {
    const cudaError_t status = cudaMalloc(&data_, bytes);
    if (status != cudaSuccess) cudaGetLastError();  // or the next launch would be told of it
    check(status, "memory");
  }
  ~DeviceMemory() { cudaFree(data_); }
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;
  void* data() const { return data_; }

 private:
  void* data_ = nullptr;
};
// Rows within the device; pitches and widths in bytes.
inline void copy_rows(void* to, std::size_t to_pitch, const void* from, std::size_t from_pitch, std::size_t width,
                      std::size_t rows, void* stream) {
  check(cudaMemcpy2DAsync(to, to_pitch, from, from_pitch, width, rows, cudaMemcpyDeviceToDevice,
                          static_cast<cudaStream_t>(stream)),
        "copy");
}

// All dynamic: kernels are told how much they have.
template <class T>
__device__ T* shared_memory() {
  extern __shared__ __align__(1024) unsigned char kernelgrowth_shared[];
  return reinterpret_cast<T*>(kernelgrowth_shared);
}

__device__ inline void barrier() {
  __syncthreads();
}

template <class T>
__device__ T shuffle_down(T value, unsigned distance) {
  return __shfl_down_sync(0xffffffffu, value, distance);
}

#if __CUDA_ARCH__ >= 800 || !defined(__CUDA_ARCH__)

// 16 bytes from global to shared memory, done once `wait_copies` says so: it leaves at most so many of the groups that
// `commit_copies` closed under way. A barrier then shows them to other threads.
__device__ inline void copy_async(void* shared, const void* global) {
  const auto address = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;\n" ::"r"(address), "l"(global) : "memory");
}
__device__ inline void commit_copies() {
  asm volatile("cp.async.commit_group;\n" ::: "memory");
}
template <int left>
__device__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(left) : "memory");
}

// Four matrices of eight rows of 16 bytes: lane i names row i % 8 of matrix i / 8, and gets of each matrix the 4 bytes
// i % 4 of row i / 4.
__device__ inline void load_matrices(std::uint32_t (&words)[4], const void* row) {
  const auto address = static_cast<unsigned>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(address)
               : "memory");
}

// c (16 x 8) += a (16 x 32 bytes) b (8 x 32 bytes)', of bfloat16.
__device__ inline void multiply_bf16(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// The same of float, of which the 13 lowest bits are not read.
__device__ inline void multiply_tf32(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// c (8 x 8) += a (8 x 4) b (8 x 4)'.
__device__ inline void multiply_f64(double (&c)[2], double a, double b) {
  asm volatile("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0, %1}, {%2}, {%3}, {%0, %1};\n"
               : "+d"(c[0]), "+d"(c[1])
               : "d"(a), "d"(b));
}

#else  // cards before sm_80: copies wait for themselves, and no kernel that multiplies matrices is ever launched

__device__ inline void copy_async(void* shared, const void* global) {
  *static_cast<uint4*>(shared) = *static_cast<const uint4*>(global);
}
__device__ inline void commit_copies() {}
template <int left>
__device__ void wait_copies() {}
__device__ inline void load_matrices(std::uint32_t (&)[4], const void*) {
  __trap();
}
__device__ inline void multiply_bf16(float (&)[4], const std::uint32_t (&)[4], std::uint32_t, std::uint32_t) {
  __trap();
}
__device__ inline void multiply_tf32(float (&)[4], const std::uint32_t (&)[4], std::uint32_t, std::uint32_t) {
  __trap();
}
__device__ inline void multiply_f64(double (&)[2], double, double) {
  __trap();
}

#endif

}  // namespace kernelgrowth::cuda

#else
}  // namespace kernelgrowth::cuda

#include "emulated_cuda.hpp"
#endif

namespace kernelgrowth::cuda {

// Rounds half away from zero to the 10 bits of fraction that tensor cores read of a float.
__host__ __device__ inline float rounded_tf32(float x) {
  std::uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  bits = (bits + 0x1000u) & 0xffffe000u;
  memcpy(&x, &bits, sizeof bits);
  return x;
}

// Rounds half to even.
__host__ __device__ inline std::uint16_t rounded_bf16(float x) {
  std::uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<std::uint16_t>(bits >> 16 | 0x40u);
  return static_cast<std::uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

}  // namespace kernelgrowth::cuda
