// fuzz [cases [seed [first]]]: random cases of every entry point, each made from the seed and its number alone. They
// run in a child process, so that the number of a case is told however it ends.
#include "fuzz.hpp"

#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kernelgrowth/runtime.hpp"

// A race ends the case in which it is seen.
extern "C" const char* __tsan_default_options();
extern "C" const char* __tsan_default_options() {
  return "halt_on_error=1";
}

namespace kernelgrowth::testing {

std::string random_isa(Random& random) {
  static const std::vector<std::string> names = available_isas();
  return names[static_cast<std::size_t>(random.integer(0, static_cast<index_t>(names.size()) - 1))];
}

namespace {

void run_case(long seed, long number) {
  Random random{seed, number};
  const index_t draw = random.integer(0, 9);
  if (draw < 5) return fuzz_gram(random);
  if (draw < 7) return fuzz_matmul(random);
  if (draw < 8) return fuzz_statistics(random);
  return fuzz_windows(random);
}

}  // namespace
}  // namespace kernelgrowth::testing

int main(int argc, char** argv) {
  const long cases = argc > 1 ? std::atol(argv[1]) : 1000, seed = argc > 2 ? std::atol(argv[2]) : 1;
  const long first = argc > 3 ? std::atol(argv[3]) : 0;
  void* shared = mmap(nullptr, sizeof(long), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  CHECK(shared != MAP_FAILED);
  volatile long& number = *static_cast<long*>(shared);
  number = first;
  const pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) {
    for (long i = first; i < first + cases; ++i) {
      number = i;
      kernelgrowth::testing::run_case(seed, i);
    }
    return 0;
  }
  int status = 0;
  CHECK(waitpid(child, &status, 0) == child);
  if (status == 0) return 0;
  std::fprintf(stderr, "fuzz: seed %ld, case %ld failed; again with: %s 1 %ld %ld\n", seed, number, argv[0], seed,
               number);
  return 1;
}
