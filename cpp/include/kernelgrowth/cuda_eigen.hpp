#pragma once

#include <cstddef>
#include <functional>
#include <memory>

#include "kernelgrowth/eigen.hpp"

namespace kernelgrowth::cuda {

struct Room {
  // Memory of the current device, aligned to 256 bytes; whoever holds the pointer holds the memory. Taken back, it is
  // used again in the order of the stream.
  std::function<std::shared_ptr<void>(std::size_t bytes)> allocate;
  void* stream = nullptr;  // a cudaStream_t
};

// The twin of kernelgrowth::block_krylov: all blocks lie on the current device, those that the operator gets too, and
// its work is queued on the stream. Small problems are solved on the host, which waits for the numbers that they are
// made of several times a product; `threads` and `isa` are not used.
template <class T>
KrylovResult block_krylov(const BlockProduct<T>& product, const KrylovStart<T>& start, const MatrixView<T>& vectors,
                          const KrylovOptions& options, const Room& room);

// Queues a copy of a block to another of its shape.
template <class T>
void copy(const MatrixView<const T>& from, const MatrixView<T>& to, void* stream);

}  // namespace kernelgrowth::cuda
