#include "check.hpp"
#include "kernelgrowth/error.hpp"
#include "kernelgrowth/im2col.hpp"

using namespace kernelgrowth;
using kernelgrowth::testing::Random;

namespace {

std::size_t at(index_t i) {
  return static_cast<std::size_t>(i);
}

Windows random_windows(Random& random) {
  for (;;) {
    const Windows w{random.integer(1, 5), random.integer(1, 9), random.integer(1, 9), random.integer(1, 20),
                    random.integer(1, 5), random.integer(1, 5), random.integer(1, 6), random.integer(1, 6),
                    random.integer(0, 6), random.integer(0, 6)};
    if (w.kernel_height <= w.height + 2 * w.padding_height && w.kernel_width <= w.width + 2 * w.padding_width) return w;
  }
}

// Calls visit(index into the columns, index into the images or -1 for padding) for every entry of the columns.
template <class Visit>
void for_each_entry(const Windows& w, const Visit& visit) {
  index_t entry = 0;
  for (index_t n = 0; n < w.images; ++n) {
    for (index_t i = 0; i < w.out_height(); ++i) {
      for (index_t j = 0; j < w.out_width(); ++j) {
        for (index_t k = 0; k < w.kernel_height; ++k) {
          for (index_t l = 0; l < w.kernel_width; ++l) {
            for (index_t c = 0; c < w.channels; ++c) {
              const index_t y = i * w.stride_height - w.padding_height + k;
              const index_t x = j * w.stride_width - w.padding_width + l;
              const bool inside = y >= 0 && y < w.height && x >= 0 && x < w.width;
              visit(at(entry++), inside ? ((n * w.height + y) * w.width + x) * w.channels + c : -1);
            }
          }
        }
      }
    }
  }
}

template <class T>
void random_case(Random& random) {
  const Windows w = random_windows(random);
  const auto images = random.normals<T>(w.images * w.image_size());
  const auto columns = random.normals<T>(w.images * w.columns_size());
  std::vector<T> wanted_columns(columns.size()), wanted_images(images.size());
  for_each_entry(w, [&](std::size_t entry, index_t pixel) {
    if (pixel < 0) return;
    wanted_columns[entry] = images[at(pixel)];
    wanted_images[at(pixel)] += columns[entry];
  });
  for (const int threads : {1, 3}) {
    std::vector<T> made_columns(columns.size(), T{7}), made_images(images.size(), T{7});
    im2col<T>(images.data(), w, made_columns.data(), {threads, {}});
    col2im<T>(columns.data(), w, made_images.data(), {threads, {}});
    // The order of the sums is part of the promise, so the bits are those of the plain loop.
    CHECK(made_columns == wanted_columns);
    CHECK(made_images == wanted_images);
  }
}

}  // namespace

int main() {
  Random random(5);
  for (int i = 0; i < 150; ++i) {
    random_case<float>(random);
    random_case<double>(random);
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
  im2col<float>(&pixel, {0, 1, 1, 1, 1, 1, 1, 1, 0, 0}, &column, {});
  return 0;
}
