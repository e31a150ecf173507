#include "kernelgrowth/im2col.hpp"

#include <algorithm>
#include <cstring>

#include "kernelgrowth/error.hpp"

namespace kernelgrowth {
namespace {

// Less than so many bytes of columns are not worth another thread.
constexpr index_t grain_bytes = index_t{128} << 10;

void check(const Windows& w) {
  if (w.images < 0 || w.height < 1 || w.width < 1 || w.channels < 1) {
    throw InvalidArgument("im2col: an image must have at least one pixel and channel");
  }
  if (w.kernel_height < 1 || w.kernel_width < 1 || w.stride_height < 1 || w.stride_width < 1 || w.padding_height < 0 ||
      w.padding_width < 0) {
    throw InvalidArgument("im2col: kernel and stride must be at least 1, padding at least 0");
  }
  if (w.kernel_height > w.height + 2 * w.padding_height || w.kernel_width > w.width + 2 * w.padding_width) {
    throw InvalidArgument("im2col: the kernel does not fit into the padded image");
  }
}

// memcpy is a call, which costs more than the copy where a window's row is a few pixels of three channels.
template <class T>
void copy(const T* from, T* to, index_t count) {
  constexpr index_t piece = 16 / sizeof(T), longest = 16 * piece;
  if (count > longest) {
    std::memcpy(to, from, static_cast<std::size_t>(count) * sizeof(T));
  } else if (count >= piece) {
    for (index_t i = 0; i + piece <= count; i += piece) std::memcpy(to + i, from + i, 16);
    std::memcpy(to + count - piece, from + count - piece, 16);
  } else {
    for (index_t i = 0; i < count; ++i) to[i] = from[i];
  }
}

template <class T>
void add(const T* __restrict from, T* __restrict to, index_t count) {
  for (index_t i = 0; i < count; ++i) to[i] += from[i];
}

// One row of one window: `inside` pixels of the image's row `row` from pixel `first` on stand at pixel `at` of the
// window's row; the rest of it is padding. A row above or below the image has no pixels inside.
struct WindowRow {
  index_t row, first, at, inside;
};

// Calls visit(place in the columns, WindowRow) for every row of every window, in the order of the columns.
template <class Visit>
void for_each_row(const Windows& w, const Visit& visit) {
  const index_t row_size = w.kernel_width * w.channels;
  const index_t out_height = w.out_height(), out_width = w.out_width();
  index_t place = 0;
  for (index_t i = 0; i < out_height; ++i) {
    const index_t top = i * w.stride_height - w.padding_height;
    for (index_t j = 0; j < out_width; ++j) {
      const index_t left = j * w.stride_width - w.padding_width;
      const index_t first = std::max<index_t>(left, 0);
      const index_t inside = std::max<index_t>(std::min(left + w.kernel_width, w.width) - first, 0);
      for (index_t k = 0; k < w.kernel_height; ++k, place += row_size) {
        const bool seen = top + k >= 0 && top + k < w.height && inside > 0;
        visit(place, WindowRow{top + k, first, first - left, seen ? inside : 0});
      }
    }
  }
}

template <class Body>
void for_each_image(const Windows& w, std::size_t item, const WindowOptions& options, const Body& body) {
  const index_t bytes = w.columns_size() * static_cast<index_t>(item);
  const index_t together = std::max<index_t>(1, grain_bytes / bytes);
  const index_t groups = (w.images + together - 1) / together;
  parallel_for(
      groups, options.threads > 0 ? options.threads : default_threads(),
      [&](index_t group, int) {
        for (index_t n = group * together; n < std::min((group + 1) * together, w.images); ++n) body(n);
      },
      options.poll);
}

}  // namespace

template <class T>
void im2col(const T* images, const Windows& windows, T* columns, const WindowOptions& options) {
  check(windows);
  const Windows w = windows;
  for_each_image(w, sizeof(T), options, [&](index_t n) {
    const T* image = images + n * w.image_size();
    T* out = columns + n * w.columns_size();
    for_each_row(w, [&](index_t place, const WindowRow& r) {
      T* to = out + place;
      if (r.inside == w.kernel_width) {
        copy(image + (r.row * w.width + r.first) * w.channels, to, w.kernel_width * w.channels);
        return;
      }
      std::fill_n(to, w.kernel_width * w.channels, T{0});
      if (r.inside > 0) {
        copy(image + (r.row * w.width + r.first) * w.channels, to + r.at * w.channels, r.inside * w.channels);
      }
    });
  });
}

template <class T>
void col2im(const T* columns, const Windows& windows, T* images, const WindowOptions& options) {
  check(windows);
  const Windows w = windows;
  for_each_image(w, sizeof(T), options, [&](index_t n) {
    const T* in = columns + n * w.columns_size();
    T* image = images + n * w.image_size();
    std::fill_n(image, w.image_size(), T{0});
    for_each_row(w, [&](index_t place, const WindowRow& r) {
      if (r.inside == 0) return;
      add(in + place + r.at * w.channels, image + (r.row * w.width + r.first) * w.channels, r.inside * w.channels);
    });
  });
}

template void im2col(const float*, const Windows&, float*, const WindowOptions&);
template void im2col(const double*, const Windows&, double*, const WindowOptions&);
template void col2im(const float*, const Windows&, float*, const WindowOptions&);
template void col2im(const double*, const Windows&, double*, const WindowOptions&);

}  // namespace kernelgrowth
