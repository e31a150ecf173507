#pragma once

#include <cstdint>
#include <exception>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "kernelgrowth/gemm.hpp"
#include "kernelgrowth/runtime.hpp"
#include "kernelgrowth/view.hpp"

namespace kernelgrowth {

// out = A v for a symmetric A and some vectors, the columns of v. Both have A's rows; `out` is overwritten.
template <class T>
using BlockProduct = std::function<void(const MatrixView<const T>& v, const MatrixView<T>& out)>;

// The product with a stored matrix of any strides.
template <class T>
BlockProduct<T> stored_product(const StridedMatrix<T>& matrix, const GemmOptions& options);

struct KrylovOptions {
  index_t wanted = 1;       // eigenpairs
  index_t required = 0;     // how many of them have to meet the tolerance; 0: all
  index_t width = 1;        // vectors in a product, at most
  index_t columns = 0;      // of the basis, which is restarted when they are used up; 0: up to wanted + 10 width
  double tolerance = 1e-6;  // of residuals, relative to the largest absolute Ritz value, or to `least_scale`
  double least_scale = 0;
  double threshold = std::numeric_limits<double>::infinity();  // a leading Ritz value above it settles the search
  index_t max_passes = 100;  // products after which the iteration ends, once it has `wanted` pairs
  double time_limit = std::numeric_limits<double>::infinity();  // seconds after which it ends likewise
  index_t first_check =
      1;  // products before which no small problem is solved, unless next to nothing is left of images
  // Operations that a product takes, where they are few: small problems are then not solved after every product.
  double pass_operations = std::numeric_limits<double>::infinity();
  int exponent = 0;                  // products are multiplied by 2^-exponent, so that no square leaves double's range;
  bool choose_exponent = true;       // chosen by the first product that is not zero
  double symmetry_tolerance = 1e-4;  // how far u.Av and v.Au may be apart, relative to A's norm
  std::uint64_t seed = 0;            // of directions that replace those which run dry
  int threads = 0;                   // 0: default_threads()
  std::string isa;                   // empty: active_isa()
  Poll poll;
};

// What a block Krylov iteration begins with: the first block; orthonormal `locked` vectors, in whose complement
// everything happens; and `probes`, normally distributed and drawn apart from the first block, which are multiplied by
// what the operator is outside the basis once the iteration has ended (none: nothing is).
template <class T>
struct KrylovStart {
  MatrixView<const T> block, locked, probes;
};

// Ritz pairs of 2^-exponent A, values descending. All numbers below are of the scaled operator.
struct KrylovResult {
  std::vector<double> values;
  std::vector<double> residuals;  // norms of A v - value v, of the products as they were made
  double scale = 0;               // the largest Ritz value, or the norm that A has shown, whichever is larger
  int exponent = 0;
  index_t passes = 0;
  bool accepted = false;   // the tolerance was met, or the threshold passed
  bool exhausted = false;  // the basis spans the whole space: pairs are exact up to rounding, and none was missed
  // What is known outside the returned vectors. Q is the basis, and A Q - Q (Q'AQ) is the rest of the images.
  double next_value = -std::numeric_limits<double>::infinity();     // the Ritz value after those wanted
  double projected_squares = 0, projected_trace = 0;                // ||Q'AQ||_F^2 and its trace
  double rest_squares = 0, rest_norm = 0;                           // ||rest||_F^2 and ||rest||_2
  double probe_squares = std::numeric_limits<double>::quiet_NaN();  // ||(I - QQ') A (I - QQ') probes||_F^2
  // What the operator or the poll threw, where it ended the iteration: the pairs are those found before.
  std::exception_ptr error;
};

// The `wanted` algebraically largest eigenpairs of A on the complement of the locked vectors, by a thick-restarted
// block Krylov iteration. `vectors` has `wanted` columns and A's rows. Results do not depend on the number of threads.
// An error before there is a pair to hand over is rethrown.
template <class T>
KrylovResult block_krylov(const BlockProduct<T>& product, const KrylovStart<T>& start, const MatrixView<T>& vectors,
                          const KrylovOptions& options);

}  // namespace kernelgrowth
