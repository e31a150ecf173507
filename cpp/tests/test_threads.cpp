#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <stdexcept>
#include <thread>

#include "check.hpp"
#include "kernelgrowth/error.hpp"
#include "kernelgrowth/runtime.hpp"

#if defined(__SANITIZE_THREAD__)
#define UNDER_THREAD_SANITIZER 1
#endif

using namespace kernelgrowth;

namespace {

index_t covered(index_t count, int threads) {
  std::vector<std::atomic<int>> seen(static_cast<std::size_t>(count));
  parallel_for(count, threads, [&](index_t i, int worker) {
    CHECK(worker >= 0 && worker < threads);
    ++seen[static_cast<std::size_t>(i)];
  });
  index_t once = 0;
  for (const auto& hits : seen) once += hits == 1;
  return once;
}

void every_index_once() {
  for (const index_t count : {0, 1, 2, 7, 1000}) {
    for (const int threads : {1, 2, 3, 8}) CHECK(covered(count, threads) == count);
  }
}

void nested_and_concurrent_calls() {
  std::atomic<index_t> total{0};
  parallel_for(8, 4, [&](index_t, int) {
    parallel_for(10, 4, [&](index_t, int worker) {
      CHECK(worker == 0);
      ++total;
    });
  });
  CHECK(total == 80);
  std::vector<std::thread> callers;
  for (int i = 0; i < 4; ++i) {
    callers.emplace_back([] {
      for (int repeat = 0; repeat < 50; ++repeat) CHECK(covered(100, 3) == 100);
    });
  }
  for (auto& caller : callers) caller.join();
}

void errors_reach_the_caller() {
  for (const int threads : {1, 4}) {
    CHECK_THROWS(std::domain_error, parallel_for(100, threads, [](index_t i, int) {
                   if (i == 50) throw std::domain_error("body");
                 }));
    CHECK_THROWS(std::range_error,
                 parallel_for(100, threads, [](index_t, int) {}, [] { throw std::range_error("poll"); }));
    CHECK(covered(100, threads) == 100);
  }
}

void survives_fork() {
#if !defined(UNDER_THREAD_SANITIZER)  // which does not follow a fork from a process with threads
  CHECK(covered(100, 4) == 100);
  const pid_t child = fork();
  if (child == 0) _exit(covered(100, 4) == 100 ? 0 : 1);
  int status = 0;
  CHECK(waitpid(child, &status, 0) == child);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  CHECK(covered(100, 4) == 100);
#endif
}

void environment() {
  unsetenv("KERNELGROWTH_NUM_THREADS");
  CHECK(default_threads() >= 1);
  setenv("KERNELGROWTH_NUM_THREADS", "3", 1);
  CHECK(default_threads() == 3);
  for (const char* bad : {"0", "-1", "two", "2x", "99999"}) {
    setenv("KERNELGROWTH_NUM_THREADS", bad, 1);
    CHECK_THROWS(InvalidArgument, default_threads());
  }
  unsetenv("KERNELGROWTH_NUM_THREADS");
}

}  // namespace

int main() {
  every_index_once();
  nested_and_concurrent_calls();
  errors_reach_the_caller();
  survives_fork();
  environment();
  return 0;
}
