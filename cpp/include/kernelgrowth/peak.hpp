#pragma once

#include <string>

namespace kernelgrowth {

// The machine's ceiling, measured: operations a second of independent multiply-adds in registers, on `threads` threads
// at once (0: default_threads()), the best of several short runs; `quick` ones take a twentieth of a second together,
// and may miss the ceiling of a machine that others use.
template <class T>
double multiply_add_peak(int threads, const std::string& isa, bool quick = false);

// Bytes read and written a second by copies larger than any cache, on `threads` threads at once; the best of several.
double copy_bandwidth(int threads);

}  // namespace kernelgrowth
