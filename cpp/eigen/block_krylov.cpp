#include "eigen/block_krylov.hpp"

#include "eigen/cpu_space.hpp"

namespace kernelgrowth {
namespace {

// LAPACK's work space for n columns, 2 n^2 + 6 n + 1 numbers, is counted in an int.
constexpr index_t most_columns = 32000;

template <class T>
void check(const BlockProduct<T>& product, const KrylovStart<T>& start, const MatrixView<T>& vectors,
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

}  // namespace

template <class T>
BlockProduct<T> stored_product(const StridedMatrix<T>& matrix, const GemmOptions& options) {
  return [matrix, options](const MatrixView<const T>& v, const MatrixView<T>& out) {
    gemm<T>(matrix, {v.data, v.rows, v.cols, v.row_stride, 1}, out, options);
  };
}

template <class T>
KrylovResult block_krylov(const BlockProduct<T>& product, const KrylovStart<T>& start, const MatrixView<T>& vectors,
                          const KrylovOptions& options) {
  check(product, start, vectors, options);
  const eigen::CpuSpace<T> space(vectors.rows, options.threads, options.isa, options.poll);
  return eigen::BlockKrylov<eigen::CpuSpace<T>>(space, product, start, options).run(vectors, start.probes);
}

template BlockProduct<float> stored_product(const StridedMatrix<float>&, const GemmOptions&);
template BlockProduct<double> stored_product(const StridedMatrix<double>&, const GemmOptions&);
template KrylovResult block_krylov(const BlockProduct<float>&, const KrylovStart<float>&, const MatrixView<float>&,
                                   const KrylovOptions&);
template KrylovResult block_krylov(const BlockProduct<double>&, const KrylovStart<double>&, const MatrixView<double>&,
                                   const KrylovOptions&);

}  // namespace kernelgrowth
