// A CUDA device of the host's, for tests of kernels' sources where there is none: each thread of a block is a fiber
// that runs until it waits for others. Slow, and strict where hardware is lenient: shared memory is poisoned and of the
// exact size, asynchronous copies land no sooner than they are waited for, a block whose threads do not all come to a
// barrier or a warp's instruction is an error, and threads run in whichever of two orders is asked for.
#pragma once

#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};

namespace kernelgrowth::cuda {

namespace emulated {

constexpr unsigned warp_size = 32;
constexpr std::size_t stack_bytes = 64 * 1024;

enum class Order { forwards, backwards };
struct Device {
  int shared_memory = 99 * 1024, multiprocessors = 132;
  Order order = Order::forwards;
  bool warpgroups = false;
};
inline Device device;
inline long warpgroup_products = 0;  // a thread's, of a step each

// A meeting of some threads: the last to arrive does what all wait for.
struct Meeting {
  unsigned members = 0, arrived = 0;
  unsigned long turns = 0;
  int kind = 0;
};

struct Copy {
  void* to;
  const void* from;
};

struct Fiber {
  ucontext_t context;
  char* stack = nullptr;
  dim3 thread;
  unsigned index = 0;
  bool finished = false;
  std::vector<std::vector<std::function<void()>>> products{1};  // of warpgroups, likewise
  std::vector<std::vector<Copy>> groups{1};                     // of copies under way; the last one is not closed yet
  const void* operand = nullptr;                                // what a thread brings to a warp's meeting
  void* fake_stack = nullptr;
};

struct Block {
  std::vector<Fiber> fibers;
  std::vector<unsigned char> shared;
  Meeting all;
  std::vector<Meeting> warps;
  dim3 block, size, grid;
  std::function<void()> body;
  unsigned running = 0, finished = 0;
  unsigned long idle = 0;
  ucontext_t host;
  void* host_fake_stack = nullptr;
  const void* host_stack = nullptr;
  std::size_t host_stack_size = 0;
  std::string failure;
};

inline Block* current = nullptr;

inline Fiber& self() {
  return current->fibers[current->running];
}

inline void started(void** fake_stack, const void* bottom, std::size_t size) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(fake_stack, bottom, size);
#else
  (void)fake_stack, (void)bottom, (void)size;
#endif
}
inline void arrived(void* fake_stack, const void** bottom, std::size_t* size) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake_stack, bottom, size);
#else
  (void)fake_stack, (void)bottom, (void)size;
#endif
}

inline void to_host(Fiber& from, bool for_good) {
  started(for_good ? nullptr : &from.fake_stack, current->host_stack, current->host_stack_size);
  swapcontext(&from.context, &current->host);
  arrived(from.fake_stack, nullptr, nullptr);
}

[[noreturn]] inline void fail(const std::string& what) {
  current->failure = what;
  to_host(self(), false);
  std::abort();
}

// Lets the next unfinished thread run.
inline void yield() {
  Block& block = *current;
  const auto count = static_cast<unsigned>(block.fibers.size());
  if (++block.idle > 4ul * count) fail("a block's threads wait for each other for ever");
  Fiber& from = self();
  unsigned next = block.running;
  do {
    next = (next + (device.order == Order::forwards ? 1 : count - 1)) % count;
  } while (block.fibers[next].finished && next != block.running);
  if (next == block.running) return;
  block.running = next;
  Fiber& to = block.fibers[next];
  started(&from.fake_stack, to.stack, stack_bytes);
  swapcontext(&from.context, &to.context);
  arrived(from.fake_stack, nullptr, nullptr);
}

template <class Last>
void meet(Meeting& meeting, int kind, const Last& last) {
  if (meeting.arrived == 0) meeting.kind = kind;
  if (meeting.kind != kind) fail("threads of a warp or block came to different instructions");
  const unsigned long turn = meeting.turns;
  current->idle = 0;
  if (++meeting.arrived == meeting.members) {
    last();
    meeting.arrived = 0;
    ++meeting.turns;
    return;
  }
  while (meeting.turns == turn) yield();
}

// Each lane brings an operand; the last to come computes all results from all of them.
template <class Operand, class Compute>
void warp_meeting(int kind, Operand& mine, const Compute& compute) {
  Fiber& fiber = self();
  fiber.operand = &mine;
  const unsigned warp = fiber.index / warp_size;
  meet(current->warps[warp], kind, [&] {
    Operand* lanes[warp_size];
    for (unsigned i = 0; i < warp_size; ++i) {
      lanes[i] = static_cast<Operand*>(const_cast<void*>(current->fibers[warp * warp_size + i].operand));
    }
    compute(lanes);
  });
}

inline void enter() {
  Block& block = *current;
  arrived(nullptr, block.host_stack ? nullptr : &block.host_stack, block.host_stack ? nullptr : &block.host_stack_size);
  Fiber& fiber = self();
  try {
    block.body();
    for (const auto& group : fiber.groups) {
      if (!group.empty()) throw std::logic_error("a thread ended without waiting for its copies");
    }
  } catch (const std::exception& error) {
    fail(error.what());
  }
  fiber.finished = true;
  block.idle = 0;
  if (++block.finished == block.fibers.size()) {
    to_host(fiber, true);
  } else {
    yield();
  }
}

// Kept from block to block: fresh pages take longer than most threads.
inline char* stack(unsigned index) {
  static std::vector<std::unique_ptr<char[]>> stacks;
  while (stacks.size() <= index) stacks.push_back(std::make_unique_for_overwrite<char[]>(stack_bytes));
#if defined(__SANITIZE_ADDRESS__)
  // What the last thread on it left there.
  __asan_unpoison_memory_region(stacks[index].get(), stack_bytes);
#endif
  return stacks[index].get();
}

inline void prepare(Fiber& fiber, unsigned index) {
  fiber.index = index;
  fiber.thread = {index, 0, 0};
  fiber.stack = stack(index);
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack;
  fiber.context.uc_stack.ss_size = stack_bytes;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, &enter, 0);
}

inline void run_block(const std::function<void()>& body, dim3 place, dim3 grid, unsigned threads, std::size_t shared) {
  Block block;
  block.body = body;
  block.block = place;
  block.grid = grid;
  block.size = {threads, 1, 1};
  block.shared.assign(shared, 0xff);
  block.fibers = std::vector<Fiber>(threads);
  block.all.members = threads;
  block.warps.resize((threads + warp_size - 1) / warp_size);
  for (auto& warp : block.warps) warp.members = warp_size;
  current = &block;
  for (unsigned i = 0; i < threads; ++i) prepare(block.fibers[i], i);
  block.running = device.order == Order::forwards ? 0 : threads - 1;
  Fiber& first = block.fibers[block.running];
  started(&block.host_fake_stack, first.stack, stack_bytes);
  swapcontext(&block.host, &first.context);
  arrived(block.host_fake_stack, nullptr, nullptr);
  current = nullptr;
  if (!block.failure.empty()) throw std::logic_error(block.failure);
}

}  // namespace emulated

inline int current_device() {
  return 0;
}
class DeviceMemory {
 public:
  explicit DeviceMemory(std::size_t bytes) : bytes_(bytes) {}
  void* data() { return bytes_.data(); }

 private:
  std::vector<unsigned char> bytes_;
};
inline int shared_memory_limit() {
  return emulated::device.shared_memory;
}
inline int multiprocessors() {
  return emulated::device.multiprocessors;
}

// Kernels run at once, and their errors are thrown here.
template <class... Parameters, class... Arguments>
void launch(const char*, void (*kernel)(Parameters...), Grid grid, unsigned block, int shared, void*,
            const Arguments&... arguments) {
  if (block % emulated::warp_size != 0) throw std::logic_error("a block is no multiple of a warp");
  if (shared > shared_memory_limit()) throw std::logic_error("a block wants more shared memory than there is");
  const std::function<void()> body = [&] { kernel(arguments...); };
  const dim3 size{static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y), static_cast<unsigned>(grid.z)};
  for (unsigned z = 0; z < size.z; ++z) {
    for (unsigned y = 0; y < size.y; ++y) {
      for (unsigned x = 0; x < size.x; ++x) {
        emulated::run_block(body, {x, y, z}, size, block, static_cast<std::size_t>(shared));
      }
    }
  }
}

inline void upload(void* device, const void* host, std::size_t bytes, void*) {
  std::memcpy(device, host, bytes);
}
inline void download(void* host, const void* device, std::size_t bytes, void*) {
  std::memcpy(host, device, bytes);
}
inline void copy_rows(void* to, std::size_t to_pitch, const void* from, std::size_t from_pitch, std::size_t width,
                      std::size_t rows, void*) {
  for (std::size_t i = 0; i < rows; ++i) {
    std::memcpy(static_cast<char*>(to) + i * to_pitch, static_cast<const char*>(from) + i * from_pitch, width);
  }
}

template <class T>
T* shared_memory() {
  return reinterpret_cast<T*>(emulated::current->shared.data());
}

inline void barrier() {
  emulated::meet(emulated::current->all, 1, [] {});
}

template <class T>
T shuffle_down(T value, unsigned distance) {
  struct Operand {
    T value, result;
  } mine{value, value};
  emulated::warp_meeting(2, mine, [&](Operand** lanes) {
    for (unsigned i = 0; i + distance < emulated::warp_size; ++i) lanes[i]->result = lanes[i + distance]->value;
  });
  return mine.result;
}

inline void copy_async(void* shared, const void* global) {
  if (reinterpret_cast<std::uintptr_t>(shared) % 16 != 0 || reinterpret_cast<std::uintptr_t>(global) % 16 != 0) {
    emulated::fail("a copy is not aligned to 16 bytes");
  }
  emulated::self().groups.back().push_back({shared, global});
}
inline void commit_copies() {
  emulated::self().groups.emplace_back();
}
template <int left>
void wait_copies() {
  auto& groups = emulated::self().groups;
  while (groups.size() > left + 1u) {
    for (const auto& copy : groups.front()) std::memcpy(copy.to, copy.from, 16);
    groups.erase(groups.begin());
  }
}

inline void load_matrices(std::uint32_t (&words)[4], const void* row) {
  struct Operand {
    const void* row;
    std::uint32_t words[4];
  } mine{row, {}};
  emulated::warp_meeting(3, mine, [&](Operand** lanes) {
    for (unsigned i = 0; i < emulated::warp_size; ++i) {
      for (unsigned m = 0; m < 4; ++m) {
        const auto* source = static_cast<const unsigned char*>(lanes[m * 8 + i / 4]->row);
        std::memcpy(&lanes[i]->words[m], source + i % 4 * 4, 4);
      }
    }
  });
  std::memcpy(words, mine.words, sizeof mine.words);
}

namespace emulated {

// Sums are made in double and rounded towards zero, which is the least that tensor cores promise of float.
inline float towards_zero(double x) {
  const auto y = static_cast<float>(x);
  return std::abs(static_cast<double>(y)) > std::abs(x) ? std::nextafter(y, 0.0f) : y;
}

struct Product {
  float* c;
  const std::uint32_t* a;
  std::uint32_t b[2];
};

// `elements` of a word: two bfloat16, or one float of which the lowest bits are not read.
template <int elements>
double element_of(std::uint32_t word, int element) {
  const std::uint32_t bits = elements == 2 ? (element == 0 ? word << 16 : word & 0xffff0000u) : word & 0xffffe000u;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return static_cast<double>(value);
}

template <int elements>
void multiply(int kind, float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
  Product mine{c, a, {b0, b1}};
  warp_meeting(kind, mine, [&](Product** lanes) {
    for (unsigned i = 0; i < warp_size; ++i) {
      for (unsigned r = 0; r < 4; ++r) {
        const unsigned row = i / 4 + r / 2 * 8, column = i % 4 * 2 + r % 2;
        double sum = lanes[i]->c[r];
        for (unsigned half = 0; half < 2; ++half) {
          for (unsigned t = 0; t < 4; ++t) {
            const std::uint32_t left = lanes[row % 8 * 4 + t]->a[row / 8 + 2 * half];
            const std::uint32_t right = lanes[column * 4 + t]->b[half];
            for (int e = 0; e < elements; ++e) sum += element_of<elements>(left, e) * element_of<elements>(right, e);
          }
        }
        lanes[i]->c[r] = towards_zero(sum);
      }
    }
  });
}

}  // namespace emulated

inline void multiply_bf16(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
  emulated::multiply<2>(4, c, a, b0, b1);
}
inline void multiply_tf32(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
  emulated::multiply<1>(5, c, a, b0, b1);
}
inline void multiply_f64(double (&c)[2], double a, double b) {
  struct Operand {
    double *c, a, b;
  } mine{c, a, b};
  emulated::warp_meeting(6, mine, [&](Operand** lanes) {
    for (unsigned i = 0; i < emulated::warp_size; ++i) {
      for (unsigned r = 0; r < 2; ++r) {
        const unsigned row = i / 4, column = i % 4 * 2 + r;
        for (unsigned t = 0; t < 4; ++t) lanes[i]->c[r] += lanes[row * 4 + t]->a * lanes[column * 4 + t]->b;
      }
    }
  });
}

constexpr int warpgroup_count = 64;
inline bool has_warpgroups() {
  return emulated::device.warpgroups;
}
inline void show_copies_to_tensor_cores() {}
inline void begin_products() {}
inline void commit_products() {
  emulated::self().products.emplace_back();
}
// Products read shared memory, and write sums, no sooner than they are waited for.
template <int left>
void wait_products() {
  auto& products = emulated::self().products;
  while (products.size() > left + 1u) {
    for (const auto& product : products.front()) product();
    products.erase(products.begin());
  }
}
inline void are_written(float (&)[warpgroup_count]) {}

namespace emulated {

template <int elements>
void multiply_warpgroup(float* c, const unsigned char* left, const unsigned char* right, int step, unsigned thread) {
  const unsigned lane = thread % warp_size, first_row = thread / warp_size % 4 * 16;
  auto word = [step](const unsigned char* rows, Index row, int w) {
    std::uint32_t bits;
    std::memcpy(&bits, rows + place_in_tile<4>(row, 2 * step + w / 4) + w % 4 * 4, sizeof bits);
    return bits;
  };
  for (int i = 0; i < warpgroup_count; ++i) {
    const Index row = first_row + fragment_row(lane, i % 4), column = i / 4 * 8 + fragment_column(lane, i % 4);
    double sum = c[i];
    for (int w = 0; w < 8; ++w) {
      const std::uint32_t a = word(left, row, w), b = word(right, column, w);
      for (int e = 0; e < elements; ++e) sum += element_of<elements>(a, e) * element_of<elements>(b, e);
    }
    c[i] = towards_zero(sum);
  }
}

}  // namespace emulated

template <Precision precision>
void multiply_warpgroup(float (&c)[warpgroup_count], const unsigned char* left, const unsigned char* right, int step) {
  ++emulated::warpgroup_products;
  emulated::self().products.back().push_back([&c, left, right, step, thread = emulated::self().thread.x] {
    emulated::multiply_warpgroup<precision == Precision::bf16 ? 2 : 1>(c, left, right, step, thread);
  });
}

}  // namespace kernelgrowth::cuda

#define threadIdx (kernelgrowth::cuda::emulated::self().thread)
#define blockIdx (kernelgrowth::cuda::emulated::current->block)
#define blockDim (kernelgrowth::cuda::emulated::current->size)
#define gridDim (kernelgrowth::cuda::emulated::current->grid)
