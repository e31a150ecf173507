#pragma once

#include "kernelgrowth/runtime.hpp"
#include "kernelgrowth/view.hpp"

namespace kernelgrowth {

// The windows that a convolution lays over channels-last images (images, height, width, channels). Columns are
// (images, out_height * out_width, kernel_height * kernel_width * channels), one row for each place of the window.
struct Windows {
  index_t images = 0;
  index_t height = 1, width = 1, channels = 1;
  index_t kernel_height = 1, kernel_width = 1;
  index_t stride_height = 1, stride_width = 1;
  index_t padding_height = 0, padding_width = 0;

  index_t out_height() const { return (height + 2 * padding_height - kernel_height) / stride_height + 1; }
  index_t out_width() const { return (width + 2 * padding_width - kernel_width) / stride_width + 1; }
  index_t image_size() const { return height * width * channels; }
  index_t column_size() const { return kernel_height * kernel_width * channels; }
  index_t columns_size() const { return out_height() * out_width() * column_size(); }
};

struct WindowOptions {
  int threads = 0;  // 0: default_threads()
  Poll poll;
};

// Copies what each window shows, zero where it shows padding. Both arrays are contiguous and do not overlap.
template <class T>
void im2col(const T* images, const Windows& windows, T* columns, const WindowOptions& options);

// The transpose of im2col: each image becomes the sum of its windows' columns, those of earlier windows first, by one
// thread, so the bits do not depend on the number of threads.
template <class T>
void col2im(const T* columns, const Windows& windows, T* images, const WindowOptions& options);

}  // namespace kernelgrowth
