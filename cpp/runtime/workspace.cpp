#include "runtime/workspace.hpp"

#include <sys/mman.h>

#include <cstdlib>
#include <mutex>
#include <new>
#include <utility>

#if defined(KG_GUARDED_WORKSPACE)
#include <sanitizer/asan_interface.h>

#include <cstring>
#endif

namespace kernelgrowth {
namespace {

constexpr std::size_t largest_kept = std::size_t{64} << 20;
constexpr std::size_t huge_page = std::size_t{2} << 20;

// Some, since several threads may each compute a kernel of their own.
constexpr std::size_t most_kept = 16;

struct Block {
  std::byte* data = nullptr;
  std::size_t size = 0;
};

struct Kept {
  std::mutex mutex;
  Block blocks[most_kept];
  std::size_t bytes = 0;
};

// Never destroyed: a call may still run on another thread while the process exits.
Kept& kept() {
  static Kept* instance = new Kept;
  return *instance;
}

std::byte* allocate(std::size_t bytes) {
  const std::size_t alignment = bytes >= huge_page ? huge_page : 64;
  const std::size_t rounded = (bytes + alignment - 1) / alignment * alignment;
  void* data = std::aligned_alloc(alignment, rounded);
  if (data == nullptr) throw std::bad_alloc();
#if defined(MADV_HUGEPAGE)
  if (bytes >= huge_page) madvise(data, rounded, MADV_HUGEPAGE);
#endif
  return static_cast<std::byte*>(data);
}

}  // namespace

Workspace::Workspace(std::size_t bytes) {
  Kept& store = kept();
  {
    // In a child forked in mid-call the lock may stay held for ever: never wait for it.
    const std::unique_lock lock(store.mutex, std::try_to_lock);
    if (lock.owns_lock()) {
      // The smallest that serves, or else the largest.
      Block* chosen = nullptr;
      for (Block& block : store.blocks) {
        if (block.data == nullptr) continue;
        const bool serves = block.size >= bytes;
        if (chosen == nullptr || (serves ? chosen->size < bytes || block.size < chosen->size
                                         : chosen->size < bytes && block.size > chosen->size)) {
          chosen = &block;
        }
      }
      if (chosen != nullptr) {
        store.bytes -= chosen->size;
        data_ = std::exchange(chosen->data, nullptr);
        size_ = std::exchange(chosen->size, 0);
      }
    }
  }
  // Too small to serve: given back first, so that it does not count on top of what the caller allows.
  if (size_ < bytes) {
    std::free(std::exchange(data_, nullptr));
    size_ = 0;
  }
  if (data_ == nullptr) {
    data_ = allocate(bytes);
    size_ = bytes;
  }
#if defined(KG_GUARDED_WORKSPACE)
  __asan_poison_memory_region(data_, size_);
#endif
}

Workspace::~Workspace() {
  Kept& store = kept();
  if (size_ <= largest_kept) {
    const std::unique_lock lock(store.mutex, std::try_to_lock);
    // Larger ones are kept rather than smaller ones.
    while (lock.owns_lock() && data_ != nullptr) {
      Block* smallest = &store.blocks[0];
      for (Block& block : store.blocks) {
        if (block.size < smallest->size) smallest = &block;
      }
      if (smallest->data == nullptr && store.bytes + size_ <= largest_kept) {
        store.bytes += size_;
        *smallest = {std::exchange(data_, nullptr), size_};
      } else {
        for (Block& block : store.blocks) {
          if (block.data != nullptr && (smallest->data == nullptr || block.size < smallest->size)) smallest = &block;
        }
        if (smallest->size >= size_) break;
        store.bytes -= smallest->size;
        std::free(std::exchange(smallest->data, nullptr));
        smallest->size = 0;
      }
    }
  }
  std::free(data_);
}

void* Workspace::take_bytes(std::size_t bytes, [[maybe_unused]] std::size_t wanted) {
  if (bytes > size_ - used_) throw std::bad_alloc();
  std::byte* part = data_ + std::exchange(used_, used_ + bytes);
#if defined(KG_GUARDED_WORKSPACE)
  __asan_poison_memory_region(part, bytes);
  __asan_unpoison_memory_region(part, wanted);
  std::memset(part, 0xff, wanted);
#endif
  return part;
}

void Workspace::release_to(std::size_t mark) {
#if defined(KG_GUARDED_WORKSPACE)
  __asan_poison_memory_region(data_ + mark, used_ - mark);
#endif
  used_ = mark;
}

}  // namespace kernelgrowth
