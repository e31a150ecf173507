#pragma once

#include <cstddef>
#include <span>

#include "kernelgrowth/gram.hpp"
#include "kernelgrowth/precision.hpp"

namespace kernelgrowth::cuda {

struct GramOptions {
  bool symmetric = true;  // left is right: compute the upper triangle, mirror it exactly
  index_t kernels = 1;    // several at once, as in kernelgrowth::GramOptions
  index_t kernel_stride = 0;
  bool accumulate = false;  // add to `out` instead of overwriting it
  Precision precision = Precision::float32;
  void* workspace = nullptr;  // on the device, aligned to 256 bytes
  std::size_t workspace_bytes = 0;
  void* stream = nullptr;  // a cudaStream_t
};

// The twin of kernelgrowth::gram: all pointers are the current device's, work is queued on the stream, and nothing
// waits for it. The same bits whatever the workspace.
template <class T>
void gram(std::span<const Term<T>> terms, MatrixView<T> out, const GramOptions& options);

// What gram() with the same arguments takes; data may be null.
template <class T>
GramWorkspace gram_workspace(std::span<const Term<T>> terms, MatrixView<T> out, const GramOptions& options);

}  // namespace kernelgrowth::cuda
