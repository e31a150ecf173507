// Part of both modules: each has a table of its own.
#include <dlfcn.h>

#include <string>
#include <string_view>

#include "bindings.hpp"
#include "kernelgrowth/lapack.hpp"

namespace kernelgrowth::python {
namespace {

// SciPy's pointers to LAPACK are capsules named by the signature, of which only that with C's int is known here.
template <class Routine>
void take(const py::capsule& capsule, const char* name, int integers, Routine& routine) {
  const std::string_view signature = capsule.name();
  int found = 0;
  for (std::size_t at = 0; (at = signature.find(", int *", at)) != std::string_view::npos; ++at) ++found;
  if (!signature.starts_with("void (char *, char *,") || found != integers) {
    throw py::type_error(std::string("set_lapack: ") + name + " has another signature: " + std::string(signature));
  }
  routine = reinterpret_cast<Routine>(capsule.get_pointer<void>());
}

void bind_lapack(const py::capsule& dsyevd, const py::capsule& dsyevr) {
  Lapack table;
  take(dsyevd, "dsyevd", 6, table.dsyevd);
  take(dsyevr, "dsyevr", 11, table.dsyevr);
  // The OpenBLAS behind it, if it is one, is found through the library that the pointer lies in: there may be others.
  Dl_info where;
  if (dladdr(dsyevd.get_pointer<void>(), &where) != 0) {
    if (void* library = dlopen(where.dli_fname, RTLD_LAZY | RTLD_NOLOAD)) {
      table.set_threads =
          reinterpret_cast<decltype(table.set_threads)>(dlsym(library, "openblas_set_num_threads_local"));
      dlclose(library);
    }
  }
  set_lapack(table);
}

}  // namespace

void register_lapack(py::module_& m) {
  using namespace py::literals;
  m.def("set_lapack", &bind_lapack, py::kw_only(), "dsyevd"_a, "dsyevr"_a);
}

}  // namespace kernelgrowth::python
