#pragma once

#include "kernelgrowth/im2col.hpp"
#include "strided.hpp"

namespace kernelgrowth::testing {

inline Windows random_windows(Random& random) {
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

// Both directions, with each number of threads, against the plain loop, to the bit: the order of the sums is promised.
template <class T>
void check_windows(Random& random, const Windows& w, std::initializer_list<int> threads) {
  const auto images = random.normals<T>(w.images * w.image_size());
  const auto columns = random.normals<T>(w.images * w.columns_size());
  std::vector<T> wanted_columns(columns.size()), wanted_images(images.size());
  for_each_entry(w, [&](std::size_t entry, index_t pixel) {
    if (pixel < 0) return;
    wanted_columns[entry] = images[at(pixel)];
    wanted_images[at(pixel)] += columns[entry];
  });
  for (const int count : threads) {
    std::vector<T> made_columns(columns.size(), T{7}), made_images(images.size(), T{7});
    im2col<T>(images.data(), w, made_columns.data(), {count, {}});
    col2im<T>(columns.data(), w, made_images.data(), {count, {}});
    CHECK(made_columns == wanted_columns);
    CHECK(made_images == wanted_images);
  }
}

}  // namespace kernelgrowth::testing
