#include "kernelgrowth/error.hpp"
#include "windows.hpp"

using namespace kernelgrowth;
using namespace kernelgrowth::testing;

int main() {
  Random random(5);
  for (int i = 0; i < 150; ++i) {
    check_windows<float>(random, random_windows(random), {1, 3});
    check_windows<double>(random, random_windows(random), {1, 3});
  }
  // Large enough for several groups of images, and for runs that are copied by memcpy.
  const Windows large{40, 12, 10, 70, 3, 3, 2, 1, 1, 1};
  const auto images = random.normals<float>(large.images * large.image_size());
  std::vector<float> one(at(large.images * large.columns_size())), three(one.size());
  im2col<float>(images.data(), large, one.data(), {1, {}});
  im2col<float>(images.data(), large, three.data(), {3, {}});
  CHECK(one == three);
  std::vector<float> back_one(images.size()), back_three(images.size());
  col2im<float>(one.data(), large, back_one.data(), {1, {}});
  col2im<float>(one.data(), large, back_three.data(), {3, {}});
  CHECK(back_one == back_three);

  float pixel = 0, column = 0;
  CHECK_THROWS(InvalidArgument, im2col<float>(&pixel, {1, 1, 1, 1, 2, 1, 1, 1, 0, 0}, &column, {}));
  CHECK_THROWS(InvalidArgument, im2col<float>(&pixel, {1, 1, 1, 1, 1, 1, 0, 1, 0, 0}, &column, {}));
  CHECK_THROWS(InvalidArgument, col2im<float>(&column, {1, 1, 1, 1, 1, 1, 1, 1, 0, -1}, &pixel, {}));
  CHECK_THROWS(InvalidArgument, col2im<float>(&column, {1, 0, 1, 1, 1, 1, 1, 1, 0, 0}, &pixel, {}));
  // Sizes whose sums and products no index holds.
  constexpr index_t large_number = std::numeric_limits<index_t>::max();
  CHECK_THROWS(InvalidArgument, im2col<float>(&pixel, {1, 1, 1, 1, 1, 1, 1, 1, large_number, 0}, &column, {}));
  CHECK_THROWS(InvalidArgument, im2col<float>(&pixel, {1, 1, 1, large_number, 1, 1, 1, 1, 0, 0}, &column, {}));
  CHECK_THROWS(InvalidArgument, im2col<float>(&pixel, {large_number, 1, 1, 1, 1, 1, 1, 1, 0, 0}, &column, {}));
  im2col<float>(&pixel, {0, 1, 1, 1, 1, 1, 1, 1, 0, 0}, &column, {});
  return 0;
}
