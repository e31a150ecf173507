#pragma once

#include <cstddef>
#include <memory>

namespace kernelgrowth {

// Uninitialised memory on cache-line boundaries, from which parts are taken in order. A workspace of moderate size is
// kept for the next call, because touching fresh pages costs more than the arithmetic of a small kernel. A build with
// AddressSanitizer sees accesses outside of the parts, and finds NaN in what is read before it is written.
class Workspace {
 public:
  explicit Workspace(std::size_t bytes);
  ~Workspace();
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  // Bytes that `count` elements take here, so that a total can be asked for beforehand.
  template <class T>
  static constexpr std::size_t bytes_for(std::size_t count) {
    return (count * sizeof(T) + line - 1) / line * line + gap;
  }

  template <class T>
  T* take(std::size_t count) {
    return static_cast<T*>(take_bytes(bytes_for<T>(count), count * sizeof(T)));
  }

  // Gives back everything taken since `mark()` returned this value.
  std::size_t mark() const { return used_; }
  void release_to(std::size_t mark);

 private:
  static constexpr std::size_t line = 64;
#if defined(KG_GUARDED_WORKSPACE)
  static constexpr std::size_t gap = line;
#else
  static constexpr std::size_t gap = 0;
#endif

  void* take_bytes(std::size_t bytes, std::size_t wanted);

  std::byte* data_ = nullptr;
  std::size_t size_ = 0, used_ = 0;
};

}  // namespace kernelgrowth
