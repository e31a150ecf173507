// Tensor cores as four warps of a Hopper GPU use them together: they read chunks in shared memory by themselves, and
// add to sums while the warps do something else.
#pragma once

#include "cuda/device.hpp"

#ifndef KG_EMULATED_CUDA

namespace kernelgrowth::cuda {

constexpr int warpgroup_count = 64;  // of 64 x 128 numbers, a thread's

// Whether the current device has them, and this build code for it: there is none that later GPUs can run.
inline bool has_warpgroups() {
#ifdef KG_CUDA_WARPGROUPS
  return device_attribute(cudaDevAttrComputeCapabilityMajor) == 9 &&
         device_attribute(cudaDevAttrComputeCapabilityMinor) == 0;
#else
  return false;
#endif
}

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// Shows tensor cores what this thread copied to shared memory; a barrier must follow.
__device__ inline void show_copies_to_tensor_cores() {
  asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory");
}
__device__ inline void begin_products() {
  asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory");
}
__device__ inline void commit_products() {
  asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory");
}
// Leaves at most so many of the groups that `commit_products` closed under way.
template <int left>
__device__ void wait_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(left) : "memory");
}

// Says that registers may have changed, so that nothing which reads them is moved to before.
__device__ inline void are_written(float (&c)[warpgroup_count]) {
#pragma unroll
  for (int i = 0; i < warpgroup_count; ++i) asm volatile("" : "+f"(c[i])::"memory");
}

// How rows of chunks lie from a multiple of 1024 bytes on, eight rows of 128 bytes after eight, as `place_in_tile` has
// them.
__device__ inline std::uint64_t matrix_descriptor(const void* rows) {
  const auto address = static_cast<std::uint64_t>(__cvta_generic_to_shared(rows));
  return (address & 0x3ffff) >> 4 | std::uint64_t{1} << 16 | std::uint64_t{1024 >> 4} << 32 | std::uint64_t{1} << 62;
}

// NOLINTBEGIN: sixty-four operands have to be named
#define KG_SUMS                              \
  "%0, %1, %2, %3, %4, %5, %6, %7, "         \
  "%8, %9, %10, %11, %12, %13, %14, %15, "   \
  "%16, %17, %18, %19, %20, %21, %22, %23, " \
  "%24, %25, %26, %27, %28, %29, %30, %31, " \
  "%32, %33, %34, %35, %36, %37, %38, %39, " \
  "%40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, " \
  "%56, %57, %58, %59, %60, %61, %62, %63"
#define KG_SUM_OPERANDS                                                                                       \
  "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]), "+f"(c[4]), "+f"(c[5]), "+f"(c[6]), "+f"(c[7]), "+f"(c[8]), \
      "+f"(c[9]), "+f"(c[10]), "+f"(c[11]), "+f"(c[12]), "+f"(c[13]), "+f"(c[14]), "+f"(c[15]), "+f"(c[16]),  \
      "+f"(c[17]), "+f"(c[18]), "+f"(c[19]), "+f"(c[20]), "+f"(c[21]), "+f"(c[22]), "+f"(c[23]), "+f"(c[24]), \
      "+f"(c[25]), "+f"(c[26]), "+f"(c[27]), "+f"(c[28]), "+f"(c[29]), "+f"(c[30]), "+f"(c[31]), "+f"(c[32]), \
      "+f"(c[33]), "+f"(c[34]), "+f"(c[35]), "+f"(c[36]), "+f"(c[37]), "+f"(c[38]), "+f"(c[39]), "+f"(c[40]), \
      "+f"(c[41]), "+f"(c[42]), "+f"(c[43]), "+f"(c[44]), "+f"(c[45]), "+f"(c[46]), "+f"(c[47]), "+f"(c[48]), \
      "+f"(c[49]), "+f"(c[50]), "+f"(c[51]), "+f"(c[52]), "+f"(c[53]), "+f"(c[54]), "+f"(c[55]), "+f"(c[56]), \
      "+f"(c[57]), "+f"(c[58]), "+f"(c[59]), "+f"(c[60]), "+f"(c[61]), "+f"(c[62]), "+f"(c[63])
// NOLINTEND

// c (64 x 128) += a (64 x 32 bytes) b (128 x 32 bytes)', where the bytes are those of a step of two chunks: done once
// `wait_products` says so.
template <Precision precision>
__device__ void multiply_warpgroup(float (&c)[warpgroup_count], const void* left, const void* right, int step) {
  const std::uint64_t a = matrix_descriptor(left) + 2 * step, b = matrix_descriptor(right) + 2 * step;
  if constexpr (precision == Precision::bf16) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.eq.u32 p, 0, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" KG_SUMS "}, %64, %65, p, 1, 1, 0, 0;\n}\n"
        : KG_SUM_OPERANDS
        : "l"(a), "l"(b));
  } else {
    asm volatile(
        "{\n.reg .pred p;\nsetp.eq.u32 p, 0, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k8.f32.tf32.tf32 {" KG_SUMS "}, %64, %65, p, 1, 1;\n}\n"
        : KG_SUM_OPERANDS
        : "l"(a), "l"(b));
  }
}

#undef KG_SUMS
#undef KG_SUM_OPERANDS

#else  // for other GPUs the kernels that would call these are never launched

__device__ inline void show_copies_to_tensor_cores() {}
__device__ inline void begin_products() {}
__device__ inline void commit_products() {}
template <int left>
__device__ void wait_products() {}
__device__ inline void are_written(float (&)[warpgroup_count]) {}
template <Precision precision>
__device__ void multiply_warpgroup(float (&)[warpgroup_count], const void*, const void*, int) {
  __trap();
}

#endif

}  // namespace kernelgrowth::cuda

#endif
