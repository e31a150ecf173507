// Where the vectors of a product and their g's lie: panels of units, and how rows of a probe set are reached.
#pragma once

#include <algorithm>

#include "cpu/packing.hpp"
#include "kernelgrowth/matmul.hpp"

namespace kernelgrowth::cpu {

// Calls visit(i, example, position) for `count` rows from `first` on.
template <class T, class Visit>
void each_row(const OuterProducts<T>& side, index_t first, index_t count, const Visit& visit) {
  index_t n = first / side.positions, t = first % side.positions;
  for (index_t i = 0; i < count; ++i) {
    visit(i, n, t);
    if (++t == side.positions) {
      t = 0;
      ++n;
    }
  }
}

template <class T>
const T* activation(const OuterProducts<T>& s, index_t n, index_t t) {
  return s.activations + n * s.activation_strides[0] + t * s.activation_strides[1];
}
template <class T>
const T* backprop(const OuterProducts<T>& s, index_t n, index_t c, index_t t) {
  return s.backprops + n * s.backprop_strides[0] + c * s.backprop_strides[1] + t * s.backprop_strides[2];
}

// The g's of several vectors in panels, [input][unit]. They are divided into slots, of whole panels of one vector, or
// of one panel of several short ones: so a vector's units lie in the same columns whatever vectors stand beside it.
struct ProductLayout {
  index_t panel, units, inputs;
  index_t output_units;   // units of one output; those of all outputs follow one another where these are traced over
  index_t padded_inputs;  // to whole register tiles
  index_t vectors_per_slot, panels_per_slot;

  template <class T>
  ProductLayout(const ProductTerm<T>& term, index_t panel_width, index_t tile_rows)
      : panel(panel_width),
        units(term.left.units * (term.fold ? term.left.outputs : 1)),
        inputs(term.left.inputs + (term.bias ? 1 : 0)),
        output_units(term.left.units),
        padded_inputs(round_up(inputs, tile_rows)),
        vectors_per_slot(units < panel ? panel / units : 1),
        panels_per_slot(ceil_div(units, panel)) {}

  index_t slots(index_t vectors) const { return ceil_div(vectors, vectors_per_slot); }
  index_t panels(index_t vectors) const { return slots(vectors) * panels_per_slot; }
  index_t panel_elements() const { return padded_inputs * panel; }

  // The part of a vector's units that lies side by side in memory and in a panel.
  struct Piece {
    index_t vector, output, unit, width, column;
  };

  // Of panel q, of so many vectors. Without `fold` the output is to be summed over, and is 0 here.
  template <class Visit>
  void pieces(index_t q, index_t count, const Visit& visit) const {
    const index_t first = q / panels_per_slot * vectors_per_slot, last = std::min(first + vectors_per_slot, count);
    const index_t begin = q % panels_per_slot * panel;
    for (index_t j = first; j < last; ++j) {
      ranges(begin, std::min(begin + panel, units), (j - first) * units, [&](Piece piece) {
        piece.vector = j;
        visit(piece);
      });
    }
  }

  // Units [begin, end) of a vector, the first of them in `column`, cut where one output ends and another begins.
  template <class Visit>
  void ranges(index_t begin, index_t end, index_t column, const Visit& visit) const {
    const index_t length = output_units;
    for (index_t r = begin; r < end;) {
      const index_t stop = std::min(end, r / length * length + length);
      visit(Piece{0, r / length, r % length, stop - r, column + (r - begin)});
      r = stop;
    }
  }

  index_t panel_width(index_t q, index_t count) const {
    if (units < panel) return units * std::min(vectors_per_slot, count - q * vectors_per_slot);
    return std::min(panel, units - q % panels_per_slot * panel);
  }
};

}  // namespace kernelgrowth::cpu
