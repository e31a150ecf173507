// Vectors packed for multiplication: rows of whole chunks, padded with zeros, in the numbers that are multiplied.
#pragma once

#include "cuda/tiles.hpp"
#include "kernelgrowth/precision.hpp"

namespace kernelgrowth::cuda {

// Elements first_element .. first_element + length of the vectors of some examples. What a factor holds in memory, or
// the gradients of an outer product (as in view.hpp), which exist nowhere else. Strides count elements.
template <class T>
struct RowsSource {
  const T* data = nullptr;
  Index example_stride = 0, output_stride = 0, position_stride = 0, element_stride = 1;
  const T* weights = nullptr;  // one for each element, or null

  bool is_outer_product = false;
  const T* activations = nullptr;
  const T* backprops = nullptr;
  Index activation_strides[3] = {};  // example, position, element
  Index backprop_strides[4] = {};    // example, output, position, element
  Index summed_positions = 1, inputs = 0, units = 0;
  bool bias = false;

  Index first_example = 0, examples = 0, outputs = 1, positions = 1, first_element = 0, length = 0;
};

// Rows of one position and output follow one another; those of examples that there are not, up to `rows`, are zero.
struct PackedRows {
  unsigned char* data = nullptr;
  Index rows = 0, row_bytes = 0, position_bytes = 0, output_bytes = 0;
};

template <class T>
void launch_rows(const RowsSource<T>& source, const PackedRows& target, Precision precision, void* stream);

}  // namespace kernelgrowth::cuda
