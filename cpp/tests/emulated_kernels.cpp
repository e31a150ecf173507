// The sources of all kernels, for the host.
#include "cuda/gram_kernel.cu"
#include "cuda/rows.cu"
