#pragma once

namespace kernelgrowth {

// The LAPACK routines that small dense problems go to, with Fortran's calling convention and 32-bit integers. Nothing
// is linked: whoever uses the library hands over those of the LAPACK that is loaded already (SciPy's, from Python).
struct Lapack {
  // All eigenvalues, ascending, and eigenvectors of a symmetric matrix by divide and conquer.
  void (*dsyevd)(char* jobz, char* uplo, int* n, double* a, int* lda, double* w, double* work, int* lwork, int* iwork,
                 int* liwork, int* info) = nullptr;
  // Some of them by relatively robust representations; null: all are always computed.
  void (*dsyevr)(char* jobz, char* range, char* uplo, int* n, double* a, int* lda, double* vl, double* vu, int* il,
                 int* iu, double* abstol, int* m, double* w, double* z, int* ldz, int* isuppz, double* work, int* lwork,
                 int* iwork, int* liwork, int* info) = nullptr;
  // Sets how many threads the routines may use and returns how many it was; null where they cannot be told.
  int (*set_threads)(int threads) = nullptr;
};

void set_lapack(const Lapack& table);

// std::logic_error where none was set.
const Lapack& lapack();

}  // namespace kernelgrowth
