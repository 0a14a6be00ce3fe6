// The Python module _C: loading it registers the ops; its functions are the direct entries, one a public op,
// and build facts.
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/utils/pybind.h>

#include "core/cpu/simd.h"
#include "core/shapes.h"
#include "ops.h"

namespace {

const char* compiler() {
#ifdef __clang__
  return "clang " __clang_version__;
#else
  return "g++ " __VERSION__;
#endif
}

std::vector<std::string> supported_levels() {
  std::vector<std::string> names;
  for (const auto& level : fastparam::cpu::supported_levels()) names.emplace_back(level.name);
  return names;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  using namespace fastparam;
  using torch::wrap_pybind_function_no_gil;  // C++ errors keep their Python type (ValueError), the GIL is
                                             // released
  m.def("symmetric", wrap_pybind_function_no_gil(&Symmetric::call), py::arg("X"), py::arg("lower") = false);
  m.def("skew", wrap_pybind_function_no_gil(&Skew::call), py::arg("X"), py::arg("lower") = false);
  m.def("masked_prune", wrap_pybind_function_no_gil(&MaskedPrune::call), py::arg("X"), py::arg("mask"));
  m.def("pack_mask", wrap_pybind_function_no_gil(&PackMask::call), py::arg("mask"));
  m.def("unpack_mask", wrap_pybind_function_no_gil(&UnpackMask::call), py::arg("packed"), py::arg("size"));
  m.def("cayley", wrap_pybind_function_no_gil(&Cayley::call), py::arg("A"), py::arg("alpha") = 1.0,
        py::arg("signs") = py::none());
  m.def("skew_cayley", wrap_pybind_function_no_gil(&SkewCayley::call), py::arg("X"), py::arg("alpha") = 1.0,
        py::arg("lower") = false, py::arg("signs") = py::none());
  m.def("skew_cayley_packed", wrap_pybind_function_no_gil(&SkewCayleyPacked::call), py::arg("v"),
        py::arg("alpha") = 1.0);
  m.def("stiefel_cayley", wrap_pybind_function_no_gil(&StiefelCayley::call), py::arg("X"),
        py::arg("alpha") = 1.0, py::arg("lower") = false, py::arg("signs") = py::none());
  m.def("trivialized_cayley", wrap_pybind_function_no_gil(&TrivializedCayley::call), py::arg("X"),
        py::arg("base"), py::arg("alpha") = 1.0, py::arg("lower") = false);

  // For inverses, which do work of their own before an op is called.
  m.def("check_square", torch::wrap_pybind_function(&check_square), py::arg("op"), py::arg("argument"),
        py::arg("X"));
  m.def("check_matrices", torch::wrap_pybind_function(&check_matrices), py::arg("op"), py::arg("argument"),
        py::arg("X"));
  m.def("compiler", &compiler);
  m.def("supported_levels", &supported_levels,
        "The instruction levels that this CPU can run, in the words of ATEN_CPU_CAPABILITY, lowest first.");
  m.def("bytes_at", &cpu::bytes_at, py::arg("level"), py::arg("largest"),
        "Bytes of the vector registers used at a level of torch's on a CPU whose largest have so many.");
  m.def("vector_bytes", &cpu::vector_bytes,
        "Bytes of the vector registers in use: 16, 32 (AVX2) or 64 (AVX-512).");
}
