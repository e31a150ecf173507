#include "eigen/block_krylov.hpp"

#include "eigen/cpu_space.hpp"

namespace kernelgrowth {

template <class T>
BlockProduct<T> stored_product(const StridedMatrix<T>& matrix, const GemmOptions& options) {
  return [matrix, options](const MatrixView<const T>& v, const MatrixView<T>& out) {
    gemm<T>(matrix, {v.data, v.rows, v.cols, v.row_stride, 1}, out, options);
  };
}

template <class T>
KrylovResult block_krylov(const BlockProduct<T>& product, const KrylovStart<T>& start, const MatrixView<T>& vectors,
                          const KrylovOptions& options) {
  eigen::check_arguments(product, start, vectors, options);
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
