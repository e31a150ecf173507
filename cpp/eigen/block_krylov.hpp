// Thick-restarted block Krylov iteration for the top of a symmetric operator's spectrum, written once over a space of
// long vectors (CpuSpace). It differs from textbook block Lanczos in five ways. The basis is kept and orthogonalised in
// full, each block at least twice, and the projected matrix is made of the inner products themselves, not of a
// three-term recurrence. Directions that run dry are replaced by random ones. Residuals come from what is left of the
// images once the basis is projected out, so they are those of the products as they were made, and no product is spent
// on them. It stops on residuals relative to the largest eigenvalue, so that a rapidly decaying spectrum does not ask
// for digits of its tail that the products do not have. And it hands over what it has seen outside the returned
// vectors, from which the caller bounds what they may have missed.
#pragma once

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "eigen/small.hpp"
#include "kernelgrowth/eigen.hpp"
#include "kernelgrowth/error.hpp"

namespace kernelgrowth::eigen {

// LAPACK's work space for n columns, 2 n^2 + 6 n + 1 numbers, is counted in an int.
inline constexpr index_t most_columns = 32000;

template <class T>
void check_arguments(const BlockProduct<T>& product, const KrylovStart<T>& start, const MatrixView<T>& vectors,
                     const KrylovOptions& options) {
  const index_t n = vectors.rows;
  if (!product) throw InvalidArgument("block_krylov: no operator");
  if (n < 1 || options.wanted < 1 || options.width < 1) throw InvalidArgument("block_krylov: nothing is asked for");
  if (vectors.cols < options.wanted) throw InvalidArgument("block_krylov: vectors has too few columns");
  if (options.wanted > n - start.locked.cols) {
    throw InvalidArgument("block_krylov: more pairs are asked for than the complement of the locked vectors has");
  }
  if (options.wanted + 2 * std::max(options.width, start.block.cols) > most_columns && n > most_columns) {
    throw InvalidArgument("block_krylov: so many pairs make problems too large for LAPACK's integers");
  }
  if (start.block.cols < 1) throw InvalidArgument("block_krylov: there is no start");
  for (const auto* block : {&start.block, &start.locked, &start.probes}) {
    if (block->cols > 0 && block->rows != n) throw InvalidArgument("block_krylov: a block has another number of rows");
  }
}

template <class Space>
class BlockKrylov {
 public:
  using T = typename Space::Scalar;
  using Vectors = typename Space::Vectors;

  BlockKrylov(const Space& space, const BlockProduct<T>& product, const KrylovStart<T>& start,
              const KrylovOptions& options)
      : space_(space),
        product_(product),
        options_(options),
        room_(space.rows() - start.locked.cols),
        width_(std::min(room_, std::max(options.width, start.block.cols))),
        columns_(basis_columns()),
        basis_(space.allocate(columns_)),
        work_(space.allocate(width_)),
        scratch_(space.allocate(width_)),
        locked_(space.allocate(std::max<index_t>(1, start.locked.cols))),
        locked_count_(start.locked.cols),
        projected_(columns_, columns_) {
    result_.exponent = options.exponent;
    chooses_exponent_ = options.choose_exponent;
    norm_ = options.least_scale;
    next_check_ = options.first_check;
    if (locked_count_ > 0) space_.copy(start.locked, locked());
    const index_t count = std::min(room_, start.block.cols);
    const Vectors block = work_.columns(0, count);
    space_.copy(MatrixView<const T>{start.block.data, start.block.rows, count, start.block.row_stride}, block);
    const std::vector<double> squares = diagonal(space_.inner(block, block));
    project_out(block, locked());
    place(block, squares, count);
  }

  KrylovResult run(const Vectors& vectors, const MatrixView<const T>& probes) {
    try {
      while (!step()) extend();
      if (probes.cols > 0 && size_ < room_) probe(probes);
    } catch (...) {
      if (size_ == 0) throw;
      result_.error = std::current_exception();
    }
    solve();
    look_outside();
    result_.values = pairs_.values;
    result_.values.resize(static_cast<std::size_t>(leading()));
    result_.residuals = residuals_;
    result_.exhausted = size_ == room_;
    space_.combine(basis_.columns(0, size_), transposed_rows(leading()),
                   Vectors{vectors.data, vectors.rows, leading(), vectors.row_stride});
    return std::move(result_);
  }

 private:
  using Clock = std::chrono::steady_clock;

  // Directions of unit columns whose squared length is below `dependent` are linearly dependent as far as a Gram matrix
  // can tell; and what is left of a unit vector below `dry` is the rounding of the product it came from.
  static double dependent() { return std::max(1e-12, 16 * Space::epsilon()); }
  static double dry() { return 16 * Space::epsilon(); }
  // One projection takes an overlap down to its product with the rounding error: below this it is down to rounding.
  static constexpr double small_overlap = 0.1, nearly_orthonormal = 0.01;
  static constexpr int most_rounds = 30;
  static constexpr index_t few_blocks = 8, basis_blocks = 10, widest_basis = 4096;
  // How small the residual of the complement's leading Ritz value must be against its distance from the threshold.
  static constexpr double search_margin = 1e-3;
  // LAPACK takes about as long for n^3 of a small problem as products take for so many operations (on AVX-512).
  static constexpr double operations_per_cube = 500;
  static constexpr index_t most_unchecked = 2;

  // At least two blocks beside what is wanted; ten where products cost much, and their small problems do not.
  index_t basis_columns() const {
    const index_t least = options_.wanted + 2 * width_;
    const index_t blocks = std::isfinite(options_.pass_operations) ? few_blocks : basis_blocks;
    const index_t usual = std::min(options_.wanted + blocks * width_, widest_basis);
    return std::min(room_, std::max(least, options_.columns > 0 ? options_.columns : usual));
  }
  Vectors locked() const { return locked_.columns(0, locked_count_); }
  index_t leading() const { return std::min(options_.wanted, size_); }
  // Products that so many vectors take.
  index_t cost(index_t columns) const { return (columns + options_.width - 1) / options_.width; }

  // One product with the pending block, and what follows from it. True when the iteration has ended.
  bool step() {
    const Vectors image = work_.columns(0, pending_);
    image_is_rest_ = false;
    multiply(basis_.columns(size_, pending_), image);
    project_out(image, locked());
    const index_t end = size_ + pending_;
    Small projections = space_.inner(basis_.columns(0, end), image);
    check_finite(projections);
    space_.subtract(basis_.columns(0, end), projections, image);
    Small rest = space_.inner(image, image);
    std::vector<double> squares = diagonal(rest);
    for (index_t i = 0; i < end; ++i) {
      for (index_t j = 0; j < pending_; ++j) {
        squares[static_cast<std::size_t>(j)] += projections(i, j) * projections(i, j);
      }
    }
    check_symmetric(projections, squares);

    for (index_t i = 0; i < end; ++i) {
      for (index_t j = 0; j < pending_; ++j) {
        const double value =
            i < size_ ? projections(i, j) : (projections(i, j) + projections(size_ + j, i - size_)) / 2;
        projected_(i, size_ + j) = projected_(size_ + j, i) = value;
      }
    }
    image_squares_ = std::move(squares);
    rest_ = std::move(rest);
    rest_first_ = size_;
    image_is_rest_ = true;
    size_ = end;

    const index_t following = std::min(width_, room_ - size_);
    const bool spent = result_.passes + cost(following) > options_.max_passes || elapsed() > options_.time_limit;
    const bool last = size_ == room_ || (spent && leading() == options_.wanted);
    const bool dry_run = total(diagonal(rest_)) <= std::pow(options_.tolerance * norm_, 2.0);
    if (!last && !dry_run && result_.passes < next_check_) return false;
    solve();
    result_.accepted = acceptable();
    return last || result_.accepted;
  }

  bool acceptable() {
    if (leading() < options_.wanted) return false;
    const index_t required = options_.required > 0 ? std::min(options_.required, options_.wanted) : options_.wanted;
    const double worst = *std::max_element(residuals_.begin(), residuals_.begin() + required);
    const double limit = options_.tolerance * std::max(result_.scale, options_.least_scale);
    const double value = pairs_.values.front();
    // One that is not required may still rise above those that are.
    const double least = pairs_.values[static_cast<std::size_t>(required - 1)] + limit;
    for (index_t i = required; i < options_.wanted; ++i) {
      if (pairs_.values[static_cast<std::size_t>(i)] + residuals_[static_cast<std::size_t>(i)] > least) {
        schedule_check(worst, limit);
        return false;
      }
    }
    if (value > options_.threshold) return true;
    if (std::isfinite(options_.threshold)) {
      return worst <= std::max(limit, search_margin * (options_.threshold - value));
    }
    schedule_check(worst, limit);
    return worst <= limit;
  }

  // Small problems that cost more than a product are not solved after each while the progress since the last one lets
  // expect that many passes are left.
  void schedule_check(double worst, double limit) {
    const double cube = std::pow(static_cast<double>(size_), 3.0);
    next_check_ = result_.passes + 1;
    if (operations_per_cube * cube > options_.pass_operations && last_worst_ > worst && worst > limit && limit > 0) {
      const double rate = std::log(last_worst_ / worst) / static_cast<double>(result_.passes - last_check_);
      next_check_ += std::min<index_t>(most_unchecked, static_cast<index_t>(std::log(worst / limit) / rate / 3));
    }
    last_worst_ = worst;
    last_check_ = result_.passes;
  }

  // Ritz pairs of the basis, with residuals of the leading ones: K Q s - Q s value = (what is left of the images) s.
  void solve() {
    if (solved_ == size_) return;
    // One more than wanted, which tells what may come next.
    pairs_ = eigen_symmetric(projected_, size_, std::min(size_, options_.wanted + 1));
    result_.scale = std::max(std::abs(pairs_.values.front()), norm_);
    residuals_.clear();
    if (image_is_rest_) {
      measure_residuals();
    } else {
      for (const double square : diagonal(rest_of_images(leading()))) {
        residuals_.push_back(std::sqrt(std::max(0.0, square)));
      }
    }
    solved_ = size_;
  }

  // From the vectors themselves: their inner products would not tell residuals below the square root of the rounding.
  void measure_residuals() {
    const Vectors image = work_.columns(0, rest_.rows());
    for (index_t first = 0; first < leading(); first += width_) {
      const index_t count = std::min(width_, leading() - first);
      Small coordinates(rest_.rows(), count);
      for (index_t a = 0; a < rest_.rows(); ++a) {
        for (index_t i = 0; i < count; ++i) coordinates(a, i) = pairs_.vectors(first + i, rest_first_ + a);
      }
      const Vectors rest = scratch_.columns(0, count);
      space_.combine(image, coordinates, rest);
      for (const double square : diagonal(space_.inner(rest, rest))) residuals_.push_back(std::sqrt(square));
    }
  }

  // Inner products of what is left of the images of the first `count` Ritz vectors.
  Small rest_of_images(index_t count) const {
    const index_t m = rest_.rows();
    Small half(count, m), result(count, count);
    for (index_t i = 0; i < count; ++i) {
      for (index_t a = 0; a < m; ++a) {
        for (index_t b = 0; b < m; ++b) half(i, b) += pairs_.vectors(i, rest_first_ + a) * rest_(a, b);
      }
      for (index_t j = 0; j < count; ++j) {
        for (index_t b = 0; b < m; ++b) result(i, j) += half(i, b) * pairs_.vectors(j, rest_first_ + b);
      }
    }
    return result;
  }

  void look_outside() {
    if (options_.wanted < size_) result_.next_value = pairs_.values[static_cast<std::size_t>(options_.wanted)];
    for (index_t i = 0; i < size_; ++i) {
      result_.projected_trace += projected_(i, i);
      for (index_t j = 0; j < size_; ++j) result_.projected_squares += projected_(i, j) * projected_(i, j);
    }
    result_.rest_squares = total(diagonal(rest_));
    result_.rest_norm = std::sqrt(std::max(0.0, largest_eigenvalue(rest_)));
  }

  void probe(const MatrixView<const T>& probes) {
    double squares = 0;
    for (index_t j = 0; j < probes.cols; j += width_) {
      const index_t count = std::min(width_, probes.cols - j);
      const Vectors block = scratch_.columns(0, count), image = work_.columns(0, count);
      space_.copy(MatrixView<const T>{probes.data + j, probes.rows, count, probes.row_stride}, block);
      project_out(block, locked());
      project_out(block, basis_.columns(0, size_));
      multiply(block, image);
      project_out(image, locked());
      project_out(image, basis_.columns(0, size_));
      squares += total(diagonal(space_.inner(image, image)));
    }
    result_.probe_squares = squares;
  }

  // image = 2^-exponent A block
  void multiply(const Vectors& block, const Vectors& image) {
    for (index_t j = 0; j < block.cols; j += options_.width) {
      const index_t count = std::min(options_.width, block.cols - j);
      product_(Space::as_const(slice(block, j, count)), slice(image, j, count));
      ++result_.passes;
    }
    rescale(image);
  }

  static Vectors slice(const Vectors& v, index_t first, index_t count) {
    return {v.data + first, v.rows, count, v.row_stride};
  }

  // Makes what is left of the last images the next block.
  void extend() {
    const index_t room = std::min(width_, room_ - size_);
    const Vectors image = work_.columns(0, pending_);
    const std::vector<double> squares = image_squares_;
    if (size_ + room > columns_) restart(room);
    image_is_rest_ = false;
    place(image, squares, room);
  }

  // Ritz vectors in place of the basis; the images' rest is orthogonal to them as it was to the basis.
  void restart(index_t room) {
    const index_t keep = std::min({options_.wanted + width_, columns_ - room, size_});
    pairs_ = eigen_symmetric(projected_, size_, keep);
    const auto kept = space_.allocate(keep);
    space_.combine(basis_.columns(0, size_), transposed_rows(keep), kept.columns(0, keep));
    space_.copy(kept.columns(0, keep), basis_.columns(0, keep));
    Small coupling = rest_of_images(keep);
    for (index_t i = 0; i < keep; ++i) {
      for (index_t j = 0; j < keep; ++j) projected_(i, j) = i == j ? pairs_.values[static_cast<std::size_t>(i)] : 0.0;
    }
    rest_ = std::move(coupling);
    rest_first_ = 0;
    size_ = keep;
    solved_ = 0;
  }

  // Makes `room` orthonormal columns the pending block: those that span the candidates outside locked vectors and
  // basis, topped up at random. The candidates are orthogonal to those up to rounding already; `squares` are their
  // squared lengths before. Columns are combined by what their Gram matrix says (`whitening`): a few products of
  // matrices instead of many short ones.
  void place(const Vectors& candidates, std::vector<double> squares, index_t room) {
    // Nor is anything known below the rounding of products with other vectors.
    const double least = std::pow(2 * Space::epsilon() * norm_, 2.0);
    for (double& square : squares) square = std::max(square * dry() * dry(), least);
    index_t count = 0;
    for (;;) {
      // Directions that are too short beside others to be told from them in one Gram matrix come in a later turn.
      const Small weights = whitening(space_.inner(candidates, candidates), squares, dependent(), room - count);
      if (weights.cols() == 0) break;
      space_.combine(candidates, weights, basis_.columns(size_ + count, weights.cols()));
      const index_t before = std::exchange(count, orthonormalize(count, count + weights.cols()));
      if (count == room || count == before) break;
      project_out(candidates, basis_.columns(size_, count));
    }
    for (int round = 0; count < room; ++round) {
      if (round == most_rounds) throw std::runtime_error("block_krylov: no orthonormal block was found");
      space_.randomize(basis_.columns(size_ + count, room - count), options_.seed, ++stream_);
      count = orthonormalize(count, room);
    }
    pending_ = room;
  }

  // Makes columns [done, end) behind the basis orthonormal to everything before them and to each other, and returns the
  // end of those that are left: what depends on others is dropped.
  index_t orthonormalize(index_t done, index_t end) {
    for (int round = 0; done < end; ++round) {
      // What never comes clear of the others is their rounding.
      if (round == most_rounds) return done;
      const Vectors block = basis_.columns(size_ + done, end - done);
      std::vector<double> squares = diagonal(space_.inner(block, block));
      const double overlap =
          std::max(project_out(block, locked(), squares), project_out(block, basis_.columns(0, size_ + done), squares));
      const Small inner = space_.inner(block, block);
      const bool settled = overlap < small_overlap && distance_from_identity(inner) < nearly_orthonormal;
      for (double& square : squares) square *= dry() * dry();
      const Small rotation = whitening(inner, squares, dependent(), end - done);
      end = done + rotation.cols();
      if (end == done) break;
      const Vectors rotated = scratch_.columns(0, rotation.cols());
      space_.combine(block, rotation, rotated);
      space_.copy(rotated, basis_.columns(size_ + done, rotation.cols()));
      if (settled) break;
    }
    return end;
  }

  // Takes the orthonormal vectors `against` out of a block whose columns had these squared lengths before; returns the
  // largest cosine that a column had with them.
  double project_out(const Vectors& block, const Vectors& against, const std::vector<double>& squares = {}) {
    if (against.cols == 0) return 0;
    const Small overlaps = space_.inner(against, block);
    space_.subtract(against, overlaps, block);
    double largest = 0;
    for (index_t j = 0; j < static_cast<index_t>(squares.size()); ++j) {
      double sum = 0;
      for (index_t i = 0; i < against.cols; ++i) sum += overlaps(i, j) * overlaps(i, j);
      largest = std::max(largest, std::sqrt(sum / squares[static_cast<std::size_t>(j)]));
    }
    return largest;
  }

  Small transposed_rows(index_t count) const {
    Small result(size_, count);
    for (index_t i = 0; i < size_; ++i) {
      for (index_t j = 0; j < count; ++j) result(i, j) = pairs_.vectors(j, i);
    }
    return result;
  }

  // The first product that is not zero fixes the scale of all later ones, so that no square can underflow.
  void rescale(const Vectors& image) {
    if (chooses_exponent_) {
      const double largest = space_.largest(image);
      if (!std::isfinite(largest)) throw InvalidArgument("A @ V must be finite, got inf or nan");
      if (largest == 0) return;
      std::frexp(largest, &result_.exponent);
      chooses_exponent_ = false;
    }
    space_.scale(image, -result_.exponent);
  }

  void check_finite(const Small& values) const {
    double sum = 0;
    for (index_t i = 0; i < values.rows(); ++i) {
      for (index_t j = 0; j < values.cols(); ++j) sum += std::abs(values(i, j));
    }
    if (!std::isfinite(sum)) throw InvalidArgument("A @ V must be finite, got inf or nan");
  }

  void check_symmetric(const Small& projections, const std::vector<double>& squares) {
    norm_ = std::max(norm_, std::sqrt(*std::max_element(squares.begin(), squares.end())));
    double gap = 0;
    for (index_t i = 0; i < pending_; ++i) {
      for (index_t j = 0; j < i; ++j) {
        gap = std::max(gap, std::abs(projections(size_ + i, j) - projections(size_ + j, i)));
      }
    }
    // Images of all but the last block lie in the basis, to which this one is orthogonal.
    for (index_t i = 0; i < rest_first_; ++i) {
      for (index_t j = 0; j < pending_; ++j) gap = std::max(gap, std::abs(projections(i, j)));
    }
    if (gap > options_.symmetry_tolerance * norm_) {
      char text[16];
      std::snprintf(text, sizeof text, "%.1e", gap / norm_);
      throw InvalidArgument(std::string("A must be symmetric, got products with u·Av and v·Au ") + text +
                            " ||A|| apart");
    }
  }

  static double total(const std::vector<double>& values) { return std::accumulate(values.begin(), values.end(), 0.0); }

  double elapsed() const { return std::chrono::duration<double>(Clock::now() - started_).count(); }

  const Space& space_;
  const BlockProduct<T>& product_;
  const KrylovOptions& options_;
  const Clock::time_point started_ = Clock::now();
  index_t room_;   // dimensions of the complement of the locked vectors
  index_t width_;  // of a block: more than that of a product where the first one is
  index_t columns_;
  typename Space::Storage basis_, work_, scratch_, locked_;
  index_t locked_count_;
  Small projected_;      // the operator on the first `size_` columns of the basis
  index_t size_ = 0;     // columns whose images have been taken
  index_t pending_ = 0;  // columns behind them, the next block
  Small rest_;           // inner products of what is left of images, by coordinates from `rest_first_` on
  index_t rest_first_ = 0;
  bool image_is_rest_ = false;  // whether the working block still holds it
  std::vector<double> image_squares_;
  SmallEigen pairs_;
  std::vector<double> residuals_;
  index_t solved_ = 0;  // the size that `pairs_` belong to
  bool chooses_exponent_ = true;
  double norm_ = 0;  // of the operator, as far as it has shown
  index_t next_check_ = 0, last_check_ = 0;
  double last_worst_ = 0;
  std::uint64_t stream_ = 0;
  KrylovResult result_;
};

}  // namespace kernelgrowth::eigen
