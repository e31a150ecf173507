#include <algorithm>
#include <string>
#include <tuple>
#include <vector>

#include "gram_arguments.hpp"

namespace kernelgrowth::python {
namespace {

using Arguments = GramArguments<py::array>;

template <class T>
void run_gram(const std::vector<Arguments::Term>& arguments, py::array& out, bool stacked, GramOptions options) {
  index_t stack = 1, stride = 0;
  py::array first = out;
  if (stacked) {
    if (out.ndim() < 3 || out.shape(0) < 1 || out.strides(0) % static_cast<index_t>(sizeof(T)) != 0) {
      throw py::value_error("gram: a stacked out must be (stack, [kernels,] rows, columns)");
    }
    stack = out.shape(0);
    stride = out.strides(0) / static_cast<index_t>(sizeof(T));
    first = out[py::int_(0)];
  }
  const MatrixView<T> view = Arguments::output<T>(first, options.kernels, options.kernel_stride);
  const auto terms = Arguments::make_terms<T>(arguments, options.symmetric);
  const py::gil_scoped_release release;
  if (stacked) {
    gram_stack<T>(terms, view, stack, stride, options);
  } else {
    gram<T>(terms, view, options);
  }
}

void bind_gram(const std::vector<Arguments::Term>& terms, py::array out, bool symmetric, bool accumulate,
               std::size_t workspace, int threads, const std::string& isa, bool bf16, bool stacked) {
  GramOptions options;
  options.bf16 = bf16;
  options.symmetric = symmetric;
  options.accumulate = accumulate;
  options.workspace = workspace;
  options.threads = threads;
  options.isa = isa;
  options.poll = signal_poll();
  if (holds<float>(out)) {
    run_gram<float>(terms, out, stacked, options);
  } else if (holds<double>(out)) {
    run_gram<double>(terms, out, stacked, options);
  } else {
    throw py::type_error("gram: out must be float32 or float64");
  }
}

// minimum and full workspace of all terms together, and the largest minimum of a term alone
std::tuple<std::size_t, std::size_t, std::size_t> bind_workspace(const std::vector<Arguments::Term>& arguments,
                                                                 index_t rows, index_t cols, index_t kernels,
                                                                 bool symmetric, int threads) {
  GramOptions options;
  options.symmetric = symmetric;
  options.threads = threads;
  options.kernels = kernels;
  auto measure = [&]<class T>(T) {
    const auto terms = Arguments::make_terms<T>(arguments, symmetric);
    const MatrixView<T> out{nullptr, rows, cols, cols};
    const std::span<const Term<T>> all(terms);
    const GramWorkspace need = gram_workspace<T>(all, out, options);
    std::size_t alone = 0;
    for (std::size_t i = 0; i < terms.size(); ++i) {
      alone = std::max(alone, gram_workspace<T>(all.subspan(i, 1), out, options).minimum);
    }
    return std::tuple{need.minimum, need.full, alone};
  };
  const bool single = !arguments.empty() && Arguments::is_single_precision(std::get<0>(arguments.front()));
  return single ? measure(float{}) : measure(double{});
}

}  // namespace

void register_gram(py::module_& m) {
  using namespace py::literals;
  m.def("gram", &bind_gram, "terms"_a, "out"_a, py::kw_only(), "symmetric"_a, "accumulate"_a = false, "workspace"_a = 0,
        "threads"_a = 0, "isa"_a = "", "bf16"_a = false, "stacked"_a = false);
  m.def("gram_workspace", &bind_workspace, "terms"_a, "rows"_a, "cols"_a, py::kw_only(), "kernels"_a = 1, "symmetric"_a,
        "threads"_a = 0);
}

}  // namespace kernelgrowth::python
