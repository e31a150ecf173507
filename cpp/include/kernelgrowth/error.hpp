#pragma once

#include <stdexcept>

namespace kernelgrowth {

// Arguments that no call can satisfy: shapes that disagree, an ISA this machine lacks.
class InvalidArgument : public std::invalid_argument {
 public:
  using std::invalid_argument::invalid_argument;
};

// The smallest plan needs more workspace than the caller allows.
class WorkspaceTooSmall : public std::length_error {
 public:
  using std::length_error::length_error;
};

}  // namespace kernelgrowth
