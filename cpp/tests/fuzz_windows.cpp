#include "fuzz.hpp"
#include "kernelgrowth/error.hpp"
#include "windows.hpp"

namespace kernelgrowth::testing {
namespace {

template <class T>
void random_case(Random& random) {
  Windows w = random_windows(random);
  const int threads = static_cast<int>(random.integer(1, 3));
  // Several groups of images, for several threads.
  if (random.integer(0, 199) == 0) w.images = random.integer(20, 60);
  while (w.images > 1 && w.images * w.columns_size() > (threads > 1 ? 200000 : 10000)) --w.images;
  if (w.columns_size() > 20000) return random_case<T>(random);
  check_windows<T>(random, w, {threads});
}

// One number out of bounds, or far beyond: refused before anything is read.
void refusal(Random& random) {
  Windows w = random_windows(random);
  constexpr index_t largest = std::numeric_limits<index_t>::max();
  index_t* const numbers[] = {&w.images,       &w.height,        &w.width,        &w.channels,       &w.kernel_height,
                              &w.kernel_width, &w.stride_height, &w.stride_width, &w.padding_height, &w.padding_width};
  const index_t broken = random.integer(0, 9);
  const bool at_least_zero = broken == 0 || broken > 7, may_be_large = broken == 6 || broken == 7;
  index_t value = at_least_zero ? -1 : random.integer(-1, 0);
  if (random.integer(0, 1) == 1) value = may_be_large ? -largest : largest - random.integer(0, 2);
  *numbers[broken] = value;
  CHECK_THROWS(InvalidArgument, im2col<float>(nullptr, w, nullptr, {}));
  CHECK_THROWS(InvalidArgument, col2im<double>(nullptr, w, nullptr, {}));
}

}  // namespace

void fuzz_windows(Random& random) {
  if (random.integer(0, 9) == 0) return refusal(random);
  random.integer(0, 1) == 1 ? random_case<float>(random) : random_case<double>(random);
}

}  // namespace kernelgrowth::testing
