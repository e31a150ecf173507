#include "cuda/cuda_space.hpp"
#include "eigen/block_krylov.hpp"

namespace kernelgrowth::cuda {

template <class T>
KrylovResult block_krylov(const BlockProduct<T>& product, const KrylovStart<T>& start, const MatrixView<T>& vectors,
                          const KrylovOptions& options, const Room& room) {
  eigen::check_arguments(product, start, vectors, options);
  const CudaSpace<T> space(vectors.rows, room);
  return eigen::BlockKrylov<CudaSpace<T>>(space, product, start, options).run(vectors, start.probes);
}

template <class T>
void copy(const MatrixView<const T>& from, const MatrixView<T>& to, void* stream) {
  tall_copy<T>(from, to, stream);
}

template KrylovResult block_krylov(const BlockProduct<float>&, const KrylovStart<float>&, const MatrixView<float>&,
                                   const KrylovOptions&, const Room&);
template KrylovResult block_krylov(const BlockProduct<double>&, const KrylovStart<double>&, const MatrixView<double>&,
                                   const KrylovOptions&, const Room&);
template void copy(const MatrixView<const float>&, const MatrixView<float>&, void*);
template void copy(const MatrixView<const double>&, const MatrixView<double>&, void*);

}  // namespace kernelgrowth::cuda
