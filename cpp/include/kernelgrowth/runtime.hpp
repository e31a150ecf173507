#pragma once

#include <functional>
#include <string>
#include <vector>

#include "kernelgrowth/view.hpp"

namespace kernelgrowth {

// Threads to use when a call does not say: KERNELGROWTH_NUM_THREADS, else the CPUs this process may run on.
int default_threads();

// Called now and then on the calling thread during a long call; it may throw to stop the call.
using Poll = std::function<void()>;

// Runs body(index, worker) for index in [0, count), worker in [0, threads), in no promised order.
// Serial where it is called from inside another parallel_for, or while another thread uses the pool.
// The first exception of a body, or of poll, stops the rest and is rethrown.
void parallel_for(index_t count, int threads, const std::function<void(index_t, int)>& body, const Poll& poll = {});

// Instruction sets of this build that this machine can run, slowest first ("scalar", ..., "avx512").
std::vector<std::string> available_isas();

// The one in use: KERNELGROWTH_ISA if set (InvalidArgument if it cannot run here), else the fastest.
std::string active_isa();

// Whether this machine multiplies pairs of bfloat16 (AVX512_BF16), and this build knows how.
bool has_bf16();

}  // namespace kernelgrowth
