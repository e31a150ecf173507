#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <deque>
#include <exception>
#include <mutex>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>

#include "kernelgrowth/error.hpp"
#include "kernelgrowth/runtime.hpp"

namespace kernelgrowth {
namespace {

thread_local bool inside_parallel_for = false;

int allowed_cpus() {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return CPU_COUNT(&set);
#endif
  const unsigned count = std::thread::hardware_concurrency();
  return count > 0 ? static_cast<int>(count) : 1;
}

// One loop being run: every worker draws the next index until none is left or something was thrown.
struct Loop {
  index_t count;
  const std::function<void(index_t, int)>& body;
  std::atomic<index_t> next{0};
  std::mutex error_mutex{};
  std::exception_ptr error{};

  void fail() {
    const std::lock_guard lock(error_mutex);
    if (!error) error = std::current_exception();
    next = count;
  }

  void run(int worker, const Poll& poll) {
    inside_parallel_for = true;
    try {
      for (;;) {
        if (poll) poll();
        const index_t i = next.fetch_add(1);
        if (i >= count) break;
        body(i, worker);
      }
    } catch (...) {
      fail();
    }
    inside_parallel_for = false;
  }
};

// Waits a quarter of a millisecond for what usually comes at once: a kernel is several loops one after another, calls
// of small ones follow each other, and putting a thread to sleep and waking it, perhaps on a busy processor, costs
// more.
template <class Condition>
void spin_until(Condition condition) {
  constexpr int turns = 8000;
  for (int i = 0; i < turns; ++i) {
    if (condition()) return;
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }
}

class Pool {
 public:
  static Pool& shared();

  // False, with nothing done, where another thread is using the pool.
  bool try_run(Loop& loop, int threads, const Poll& poll) {
    const std::unique_lock busy(busy_, std::try_to_lock);
    if (!busy.owns_lock()) return false;
    try {
      while (static_cast<int>(helpers_.size()) < threads - 1) start_helper();
    } catch (const std::system_error&) {
      // The system grants no more threads: those that run share the work.
    }
    const auto called = std::min(static_cast<std::size_t>(threads - 1), helpers_.size());
    {
      const std::lock_guard lock(mutex_);
      loop_ = &loop;
      unfinished_ = static_cast<int>(called);
      for (std::size_t i = 0; i < called; ++i) helpers_[i].called = true;
    }
    for (std::size_t i = 0; i < called; ++i) helpers_[i].wake.notify_one();
    loop.run(0, poll);
    // A poll that forked: what the parent's helpers had drawn will never be done in the child.
    if (&shared() != this) throw std::runtime_error("the process was forked in the middle of a parallel loop");
    spin_until([&] { return unfinished_ == 0; });
    std::unique_lock lock(mutex_);
    done_.wait(lock, [&] { return unfinished_ == 0; });
    loop_ = nullptr;
    return true;
  }

 private:
  // Each is called by itself: to wake all for a loop of two would take the processors from those that it needs.
  struct Helper {
    std::condition_variable wake{};
    std::atomic<bool> called{false};
  };

  // Helpers are never joined: a process must be able to exit, or fork, whatever they wait for.
  void start_helper() {
    Helper& helper = helpers_.emplace_back();
    try {
      std::thread([this, &helper, id = static_cast<int>(helpers_.size())] { serve(helper, id); }).detach();
    } catch (...) {
      helpers_.pop_back();
      throw;
    }
  }

  void serve(Helper& helper, int id) {
    for (;;) {
      spin_until([&] { return helper.called.load(); });
      std::unique_lock lock(mutex_);
      helper.wake.wait(lock, [&] { return helper.called.load(); });
      helper.called = false;
      Loop& loop = *loop_;
      lock.unlock();
      loop.run(id, {});
      lock.lock();
      if (--unfinished_ == 0) done_.notify_one();
    }
  }

  std::mutex busy_;
  std::deque<Helper> helpers_;  // who holds busy_ adds to them
  std::mutex mutex_;
  std::condition_variable done_;
  Loop* loop_ = nullptr;
  // Like Helper::called it changes under the mutex, and is atomic because who spins reads it without.
  std::atomic<int> unfinished_ = 0;
};

// Never destroyed, and replaced in a forked child, where the threads of the parent's pool do not exist.
Pool* pool = nullptr;
std::once_flag pool_once;

Pool& Pool::shared() {
  std::call_once(pool_once, [] {
    pool = new Pool;
    pthread_atfork(nullptr, nullptr, [] { pool = new Pool; });
  });
  return *pool;
}

}  // namespace

int default_threads() {
  const char* text = std::getenv("KERNELGROWTH_NUM_THREADS");
  if (text == nullptr || *text == '\0') return allowed_cpus();
  char* end = nullptr;
  const long value = std::strtol(text, &end, 10);
  if (*end != '\0' || value < 1 || value > 4096) {
    throw InvalidArgument("KERNELGROWTH_NUM_THREADS must be an integer from 1 to 4096, got '" + std::string(text) +
                          "'");
  }
  return static_cast<int>(value);
}

void parallel_for(index_t count, int threads, const std::function<void(index_t, int)>& body, const Poll& poll) {
  Loop loop{count, body};
  if (threads > count) threads = static_cast<int>(count);
  const bool nested = inside_parallel_for;
  if (nested || threads <= 1 || !Pool::shared().try_run(loop, threads, poll)) {
    loop.run(0, poll);
    inside_parallel_for = nested;
  }
  if (loop.error) std::rethrow_exception(loop.error);
}

}  // namespace kernelgrowth
