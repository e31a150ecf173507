// The arithmetic, written once in GCC/Clang vector extensions and compiled once per instruction set with
//   KG_ISA           name of the exported table: kernels_<KG_ISA>
//   KG_ISA_NAME      its name for users
//   KG_VECTOR_BYTES  width of a vector register
//   KG_REGISTERS     how many there are (decides the register tile)
// With one lane and a small tile the same source is the scalar specification.
#include "cpu/kernels.hpp"

namespace kernelgrowth::cpu {
namespace {

template <class T, std::size_t Lanes>
struct VectorOf {
  typedef T type __attribute__((vector_size(sizeof(T) * Lanes)));
  typedef T unaligned __attribute__((vector_size(sizeof(T) * Lanes), aligned(alignof(T)), may_alias));
};

template <class T>
constexpr std::size_t lanes = KG_VECTOR_BYTES / sizeof(T) > 1 ? KG_VECTOR_BYTES / sizeof(T) : 1;

// Register tile: as many accumulators as leave room for the operands (24 of 32 registers, 12 of 16), rows dividing the
// panel so that a panel serves as rows and as columns.
template <class T>
struct Tile {
  static constexpr bool wide = lanes<T> > 4;
  static constexpr std::size_t vectors = lanes<T> == 1 ? 4 : KG_REGISTERS >= 32 && !wide ? 6 : lanes<T> == 2 ? 2 : 3;
  static constexpr std::size_t rows = lanes<T> == 1 ? 2 : KG_REGISTERS >= 32 && wide ? 8 : 4;
  static constexpr std::size_t panel = vectors * lanes<T>;
  static_assert(panel % rows == 0);
};

// A panel is read by this many register tiles in a strip of full height, which share the fetching of the next one.
template <class T>
constexpr std::size_t fetched_per_step = Tile<T>::panel * Tile<T>::rows / 96;

// Lane i of the result's pair: a[i], b[i] side by side; the low or the high half of the interleaved whole.
template <class T, bool High>
typename VectorOf<T, lanes<T>>::type interleave(typename VectorOf<T, lanes<T>>::type a,
                                                typename VectorOf<T, lanes<T>>::type b) {
  constexpr std::size_t n = lanes<T>, offset = High ? n / 2 : 0;
#if defined(__clang__)
  typename VectorOf<T, n>::type result{};
  for (std::size_t i = 0; i < n; ++i) result[i] = i % 2 == 0 ? a[offset + i / 2] : b[offset + i / 2];
  return result;
#else
  using Index = decltype(a < b);
  Index index{};
  for (std::size_t i = 0; i < n; ++i) index[i] = static_cast<decltype(index[0] + 0)>(offset + i / 2 + (i % 2) * n);
  return __builtin_shuffle(a, b, index);
#endif
}

// A square of lanes x lanes turned by log2(lanes) perfect shuffles of its rows. Always inline: it lives in registers.
template <class T>
__attribute__((always_inline)) inline void transpose(typename VectorOf<T, lanes<T>>::type (&row)[lanes<T>]) {
  constexpr std::size_t n = lanes<T>;
#pragma GCC unroll 8
  for (std::size_t stage = 1; stage < n; stage *= 2) {
    typename VectorOf<T, n>::type next[n];
#pragma GCC unroll 16
    for (std::size_t i = 0; i < n / 2; ++i) {
      next[2 * i] = interleave<T, false>(row[i], row[i + n / 2]);
      next[2 * i + 1] = interleave<T, true>(row[i], row[i + n / 2]);
    }
#pragma GCC unroll 16
    for (std::size_t i = 0; i < n; ++i) row[i] = next[i];
  }
}

template <class T>
void pack(const T* const* rows, std::size_t count, std::size_t length, std::ptrdiff_t stride, T* target) {
  using Vector = typename VectorOf<T, lanes<T>>::type;
  using Unaligned = typename VectorOf<T, lanes<T>>::unaligned;
  constexpr std::size_t n = lanes<T>, panel = Tile<T>::panel, tile = Tile<T>::rows;
  // Most often the vectors that are packed next follow those packed now, also beyond this panel: so many streams that
  // the hardware does not see them.
  const auto address = [&](std::size_t i) { return reinterpret_cast<std::uintptr_t>(rows[i]); };
  const std::uintptr_t next = count > 1 ? (address(1) - address(0)) * n : 0;
  for (std::size_t first = 0; first < (count + tile - 1) / tile * tile; first += n) {
    std::size_t k = 0;
    if (n > 1 && stride == 1) {
      for (; k + n <= length; k += n) {
        Vector square[n];
#pragma GCC unroll 16
        for (std::size_t i = 0; i < n; ++i) {
          square[i] = first + i < count ? *reinterpret_cast<const Unaligned*>(rows[first + i] + k) : Vector{};
          if (first + i < count)
            __builtin_prefetch(reinterpret_cast<const void*>(address(first + i) + k * sizeof(T) + next), 0, 2);
        }
        transpose<T>(square);
#pragma GCC unroll 16
        for (std::size_t i = 0; i < n; ++i) *reinterpret_cast<Unaligned*>(target + (k + i) * panel + first) = square[i];
      }
    }
    for (; k < length; ++k) {
      for (std::size_t i = first; i < first + n; ++i) {
        target[k * panel + i] = i < count ? rows[i][static_cast<std::ptrdiff_t>(k) * stride] : T{0};
      }
    }
  }
}

template <class T>
void transpose_square(const T* source, std::ptrdiff_t source_stride, T* target, std::ptrdiff_t target_stride) {
  using Unaligned = typename VectorOf<T, lanes<T>>::unaligned;
  typename VectorOf<T, lanes<T>>::type square[lanes<T>];
#pragma GCC unroll 16
  for (std::size_t i = 0; i < lanes<T>; ++i) {
    square[i] = *reinterpret_cast<const Unaligned*>(source + static_cast<std::ptrdiff_t>(i) * source_stride);
  }
  transpose<T>(square);
#pragma GCC unroll 16
  for (std::size_t i = 0; i < lanes<T>; ++i) {
    *reinterpret_cast<Unaligned*>(target + static_cast<std::ptrdiff_t>(i) * target_stride) = square[i];
  }
}

template <class T>
void pack_columns(const T* source, std::size_t count, std::size_t length, std::ptrdiff_t stride,
                  std::ptrdiff_t element_stride, T* target) {
  using Vector = typename VectorOf<T, lanes<T>>::type;
  using Unaligned = typename VectorOf<T, lanes<T>>::unaligned;
  constexpr std::size_t n = lanes<T>, panel = Tile<T>::panel;
  const bool adjacent = element_stride == 1;
  for (std::size_t k = 0; k < length; ++k, target += panel) {
    const T* row = source + static_cast<std::ptrdiff_t>(k) * stride;
#pragma GCC unroll 8
    for (std::size_t i = 0; i < panel; i += n) {
      *reinterpret_cast<Unaligned*>(target + i) =
          adjacent && i + n <= count ? *reinterpret_cast<const Unaligned*>(row + i) : Vector{};
    }
    if (adjacent && count >= n) {
      // The last entries with a vector that overlaps the one before.
      *reinterpret_cast<Unaligned*>(target + count - n) = *reinterpret_cast<const Unaligned*>(row + count - n);
    } else {
      for (std::size_t i = 0; i < count; ++i) target[i] = row[static_cast<std::ptrdiff_t>(i) * element_stride];
    }
  }
}

template <class T>
void turn(const T* source, std::size_t count, std::size_t length, std::ptrdiff_t stride, T* target) {
  using Vector = typename VectorOf<T, lanes<T>>::type;
  using Unaligned = typename VectorOf<T, lanes<T>>::unaligned;
  constexpr std::size_t n = lanes<T>, panel = Tile<T>::panel;
  for (std::size_t k = 0; k < length; k += n) {
    Vector square[n];
#pragma GCC unroll 16
    for (std::size_t i = 0; i < n; ++i) {
      square[i] = i < count ? *reinterpret_cast<const Unaligned*>(source + static_cast<std::ptrdiff_t>(i) * stride + k)
                            : Vector{};
    }
    transpose<T>(square);
    const std::size_t wanted = length - k < n ? length - k : n;
    for (std::size_t i = 0; i < wanted; ++i) *reinterpret_cast<Unaligned*>(target + (k + i) * panel) = square[i];
  }
}

template <class T>
void weigh(T* target, const T* weights, std::size_t length) {
  using Unaligned = typename VectorOf<T, lanes<T>>::unaligned;
  for (std::size_t k = 0; k < length; ++k, target += Tile<T>::panel) {
#pragma GCC unroll 8
    for (std::size_t j = 0; j < Tile<T>::vectors; ++j)
      *reinterpret_cast<Unaligned*>(target + j * lanes<T>) *= weights[k];
  }
}

template <class T>
constexpr std::size_t line = 64 / sizeof(T);

// A register tile of sums over rows a[i * row_stride + k * depth_stride] and a panel b.
template <class T, std::size_t Vectors, bool Fetch, bool FetchRows>
__attribute__((always_inline)) inline void register_tile(const T* a, std::ptrdiff_t row_stride,
                                                         std::ptrdiff_t depth_stride, const T* b, std::size_t depth,
                                                         T* c, std::size_t ldc, bool accumulate, const T* ahead,
                                                         std::ptrdiff_t ahead_step) {
  using Vector = typename VectorOf<T, lanes<T>>::type;
  using Unaligned = typename VectorOf<T, lanes<T>>::unaligned;
  constexpr std::size_t rows = Tile<T>::rows, panel = Tile<T>::panel;

  Vector sum[rows][Vectors] = {};
  for (std::size_t k = 0; k < depth; ++k, a += depth_stride, b += panel) {
    // The next panel comes from the third-level cache, whose latency the hardware's own prefetch does not hide.
    if constexpr (Fetch) __builtin_prefetch(ahead);
    // So do the next rows, where they follow each other in memory; to the second level, not to push the panel out.
    if constexpr (FetchRows) {
      if (k % line<T> == 0) {
#pragma GCC unroll 8
        for (std::size_t i = 0; i < rows; ++i)
          __builtin_prefetch(a + static_cast<std::ptrdiff_t>(rows + i) * row_stride, 0, 2);
      }
    }
    ahead += ahead_step;
    Vector right[Vectors];
#pragma GCC unroll 8
    for (std::size_t j = 0; j < Vectors; ++j) right[j] = *reinterpret_cast<const Unaligned*>(b + j * lanes<T>);
#pragma GCC unroll 8
    for (std::size_t i = 0; i < rows; ++i) {
#pragma GCC unroll 8
      for (std::size_t j = 0; j < Vectors; ++j) sum[i][j] += a[static_cast<std::ptrdiff_t>(i) * row_stride] * right[j];
    }
  }
#pragma GCC unroll 8
  for (std::size_t i = 0; i < rows; ++i) {
#pragma GCC unroll 8
    for (std::size_t j = 0; j < Vectors; ++j) {
      auto* target = reinterpret_cast<Unaligned*>(c + i * ldc + j * lanes<T>);
      *target = accumulate ? *target + sum[i][j] : sum[i][j];
    }
  }
}

template <class T, std::size_t Vectors>
void inner_products(const T* a, const T* b, std::size_t depth, T* c, std::size_t ldc, bool accumulate, const T* ahead,
                    std::ptrdiff_t ahead_step) {
  constexpr bool fetch = fetched_per_step<T> > 0;
  register_tile<T, Vectors, fetch, false>(a, 1, Tile<T>::panel, b, depth, c, ldc, accumulate, ahead, ahead_step);
}

template <class T, std::size_t Vectors>
void row_products(const T* a, std::ptrdiff_t row_stride, std::ptrdiff_t depth_stride, const T* b, std::size_t depth,
                  T* c, std::size_t ldc, bool accumulate) {
  register_tile<T, Vectors, false, true>(a, row_stride, depth_stride, b, depth, c, ldc, accumulate, b, 0);
}

template <class T>
void pack_weighted(const T* const* rows, const T* weights, std::size_t depth, std::size_t width, std::ptrdiff_t stride,
                   T* target, bool accumulate) {
  using Unaligned = typename VectorOf<T, lanes<T>>::unaligned;
  constexpr std::size_t panel = Tile<T>::panel;
  const std::size_t whole = stride == 1 ? width - width % lanes<T> : 0;
  for (std::size_t k = 0; k < depth; ++k, target += panel) {
    const T weight = weights[k];
    const T* row = rows[k];
    for (std::size_t i = 0; i < whole; i += lanes<T>) {
      const auto product = weight * *reinterpret_cast<const Unaligned*>(row + i);
      auto* to = reinterpret_cast<Unaligned*>(target + i);
      *to = accumulate ? *to + product : product;
    }
    for (std::size_t i = whole; i < width; ++i) {
      const T product = weight * row[static_cast<std::ptrdiff_t>(i) * stride];
      target[i] = accumulate ? target[i] + product : product;
    }
  }
}

template <class T>
void dots(const T* const* rows, const T* y, std::size_t ldy, std::size_t count, std::size_t length,
          std::ptrdiff_t stride, double* sums) {
  using Vector = typename VectorOf<T, lanes<T>>::type;
  using Unaligned = typename VectorOf<T, lanes<T>>::unaligned;
  constexpr std::size_t n = lanes<T>;
  const std::size_t whole = stride == 1 ? length - length % n : 0;
  for (std::size_t r = 0; r < count; ++r, y += ldy) {
    const T* row = rows[r];
    Vector even{}, odd{};
    std::size_t i = 0;
    for (; i + 2 * n <= whole; i += 2 * n) {
      even += *reinterpret_cast<const Unaligned*>(row + i) * *reinterpret_cast<const Unaligned*>(y + i);
      odd += *reinterpret_cast<const Unaligned*>(row + i + n) * *reinterpret_cast<const Unaligned*>(y + i + n);
    }
    if (i < whole) even += *reinterpret_cast<const Unaligned*>(row + i) * *reinterpret_cast<const Unaligned*>(y + i);
    even += odd;
    double total = 0;
    if (whole > 0) {
      for (std::size_t l = 0; l < n; ++l) total += static_cast<double>(even[l]);
    }
    for (i = whole; i < length; ++i) {
      total += static_cast<double>(row[static_cast<std::ptrdiff_t>(i) * stride]) * static_cast<double>(y[i]);
    }
    sums[r] = total;
  }
}

// Whole vectors only, no scalar tail: an entry's bits must not depend on the column it stands in.
template <class T>
void add_term(T* sum, const T* p, std::size_t n, T offset, T scale) {
  using Unaligned = typename VectorOf<T, lanes<T>>::unaligned;
  for (std::size_t i = 0; i < n; i += lanes<T>) {
    *reinterpret_cast<Unaligned*>(sum + i) += scale * (*reinterpret_cast<const Unaligned*>(p + i) + offset);
  }
}

template <class T>
void add_hadamard(T* sum, const T* p, const T* q, std::size_t n, T offset, T scale) {
  using Unaligned = typename VectorOf<T, lanes<T>>::unaligned;
  for (std::size_t i = 0; i < n; i += lanes<T>) {
    const auto first = scale * (*reinterpret_cast<const Unaligned*>(p + i) + offset);
    *reinterpret_cast<Unaligned*>(sum + i) += first * *reinterpret_cast<const Unaligned*>(q + i);
  }
}

// By rows and by columns, and then the mean of both: an order that a transposition does not change.
template <class T>
T sum_pairs(const T* values, std::ptrdiff_t stride, std::size_t rows, std::size_t cols, T* columns) {
  // Several rows at once, whose chains of additions are independent.
  constexpr std::size_t together = 4;
  for (std::size_t u = 0; u < cols; ++u) columns[u] = 0;
  T by_rows = 0, by_columns = 0;
  for (std::size_t t = 0; t < rows; t += together) {
    const std::size_t count = rows - t < together ? rows - t : together;
    T sums[together] = {};
    for (std::size_t u = 0; u < cols; ++u) {
#pragma GCC unroll 4
      for (std::size_t i = 0; i < together; ++i) {
        if (i >= count) break;
        const T value = values[static_cast<std::ptrdiff_t>(t + i) * stride + static_cast<std::ptrdiff_t>(u)];
        sums[i] += value;
        columns[u] += value;
      }
    }
    for (std::size_t i = 0; i < count; ++i) by_rows += sums[i];
  }
  for (std::size_t u = 0; u < cols; ++u) by_columns += columns[u];
  return (by_rows + by_columns) / 2;
}

constexpr std::size_t double_lanes = lanes<double>;
using Doubles = VectorOf<double, double_lanes>;

template <class T>
Doubles::type load_doubles(const T* p) {
  using Narrow = typename VectorOf<T, double_lanes>::unaligned;
  return __builtin_convertvector(*reinterpret_cast<const Narrow*>(p), Doubles::type);
}

double reduce(Doubles::type v) {
  double total = 0;
  for (std::size_t i = 0; i < double_lanes; ++i) total += v[i];
  return total;
}

template <class T>
RowSums row_sums(const T* row, const T* other, std::size_t n, double* column_sums, double* other_column_sums) {
  Doubles::type sum{}, squares{}, other_sum{}, other_squares{}, inner{};
  const std::size_t whole = n - n % double_lanes;
  for (std::size_t i = 0; i < whole; i += double_lanes) {
    const auto x = load_doubles(row + i);
    sum += x;
    squares += x * x;
    *reinterpret_cast<Doubles::unaligned*>(column_sums + i) += x;
    if (other) {
      const auto y = load_doubles(other + i);
      other_sum += y;
      other_squares += y * y;
      inner += x * y;
      *reinterpret_cast<Doubles::unaligned*>(other_column_sums + i) += y;
    }
  }
  RowSums sums{reduce(sum), reduce(squares), reduce(other_sum), reduce(other_squares), reduce(inner)};
  for (std::size_t i = whole; i < n; ++i) {
    const double x = row[i];
    sums.sum += x;
    sums.squares += x * x;
    column_sums[i] += x;
    if (other) {
      const double y = other[i];
      sums.other_sum += y;
      sums.other_squares += y * y;
      sums.inner_product += x * y;
      other_column_sums[i] += y;
    }
  }
  return sums;
}

template <class T>
Comparison compare(const T* left, std::ptrdiff_t left_stride, const T* right, std::ptrdiff_t right_stride,
                   std::size_t rows, std::size_t cols) {
  using Vector = typename VectorOf<T, lanes<T>>::type;
  using Unaligned = typename VectorOf<T, lanes<T>>::unaligned;
  Vector highest{}, lowest{}, gap{}, poison{};
  Doubles::type squares{}, other_squares{};
  Comparison found{};
  const std::size_t whole = cols - cols % lanes<T>;
  for (std::size_t r = 0; r < rows; ++r, left += left_stride, right += right_stride) {
    for (std::size_t i = 0; i < whole; i += lanes<T>) {
      const Vector x = *reinterpret_cast<const Unaligned*>(left + i),
                   y = *reinterpret_cast<const Unaligned*>(right + i);
      const Vector difference = x - y;
      highest = x > highest ? x : highest;
      highest = y > highest ? y : highest;
      lowest = x < lowest ? x : lowest;
      lowest = y < lowest ? y : lowest;
      gap = difference > gap ? difference : gap;
      gap = -difference > gap ? -difference : gap;
      poison += difference - difference;
      for (std::size_t l = 0; l < lanes<T>; l += double_lanes) {
        const auto a = load_doubles(left + i + l), b = load_doubles(right + i + l);
        squares += a * a;
        other_squares += b * b;
      }
    }
    for (std::size_t i = whole; i < cols; ++i) {
      const T x = left[i], y = right[i], difference = x > y ? x - y : y - x;
      const T high = x > y ? x : y, low = x > y ? -y : -x;
      found.largest = high > found.largest ? high : found.largest;
      found.largest = low > found.largest ? low : found.largest;
      found.gap = difference > found.gap ? difference : found.gap;
      found.squares += static_cast<double>(x) * x;
      found.other_squares += static_cast<double>(y) * y;
      found.poison += difference - difference;
    }
  }
  for (std::size_t l = 0; l < lanes<T>; ++l) {
    if (highest[l] > found.largest) found.largest = highest[l];
    if (-lowest[l] > found.largest) found.largest = -lowest[l];
    if (gap[l] > found.gap) found.gap = gap[l];
    found.poison += poison[l];
  }
  found.squares += reduce(squares);
  found.other_squares += reduce(other_squares);
  return found;
}

template <class T>
double dot(const T* row, const double* y, std::size_t n) {
  Doubles::type sum{};
  const std::size_t whole = n - n % double_lanes;
  for (std::size_t i = 0; i < whole; i += double_lanes) sum += load_doubles(row + i) * load_doubles(y + i);
  double total = reduce(sum);
  for (std::size_t i = whole; i < n; ++i) total += row[i] * y[i];
  return total;
}

template <class T>
double multiply_add(std::size_t iterations, T* sink) {
  using Vector = typename VectorOf<T, lanes<T>>::type;
  constexpr std::size_t chains = Tile<T>::rows * Tile<T>::vectors;
  Vector sum[chains] = {}, factor = {}, summand = {};
  for (std::size_t i = 0; i < lanes<T>; ++i) {
    factor[i] = sink[0];
    summand[i] = sink[1];
  }
  // Chains that started alike would be the same chain to the compiler.
  for (std::size_t i = 0; i < chains; ++i) sum[i] += static_cast<T>(i);
  for (std::size_t k = 0; k < iterations; ++k) {
#pragma GCC unroll 32
    for (std::size_t i = 0; i < chains; ++i) sum[i] = sum[i] * factor + summand;
  }
  for (std::size_t i = 0; i < chains; ++i) {
    for (std::size_t j = 0; j < lanes<T>; ++j) sink[0] += sum[i][j];
  }
  return 2.0 * static_cast<double>(iterations) * static_cast<double>(chains * lanes<T>);
}

// Panels narrower than the widest leave the last entries of the table unused.
template <class T, std::size_t Vectors>
constexpr std::size_t narrowed = Vectors < Tile<T>::vectors ? Vectors : Tile<T>::vectors;
template <class T, std::size_t Vectors>
constexpr auto narrow_inner_products = inner_products<T, narrowed<T, Vectors>>;
template <class T, std::size_t Vectors>
constexpr auto narrow_row_products = row_products<T, narrowed<T, Vectors>>;

template <class T>
constexpr KernelTable<T> table() {
  return {Tile<T>::panel,
          Tile<T>::rows,
          lanes<T>,
          pack<T>,
          pack_columns<T>,
          turn<T>,
          weigh<T>,
          {narrow_inner_products<T, 1>, narrow_inner_products<T, 2>, narrow_inner_products<T, 3>,
           narrow_inner_products<T, 4>, narrow_inner_products<T, 5>, narrow_inner_products<T, 6>},
          {narrow_row_products<T, 1>, narrow_row_products<T, 2>, narrow_row_products<T, 3>, narrow_row_products<T, 4>,
           narrow_row_products<T, 5>, narrow_row_products<T, 6>},
          fetched_per_step<T>,
          pack_weighted<T>,
          dots<T>,
          transpose_square<T>,
          add_term<T>,
          add_hadamard<T>,
          sum_pairs<T>,
          row_sums<T>,
          compare<T>,
          dot<T>,
          multiply_add<T>};
}

}  // namespace

#define KG_CONCAT(a, b) a##b
#define KG_TABLE(isa) KG_CONCAT(kernels_, isa)
extern const Kernels KG_TABLE(KG_ISA);
const Kernels KG_TABLE(KG_ISA) = {KG_ISA_NAME, table<float>(), table<double>()};

}  // namespace kernelgrowth::cpu
