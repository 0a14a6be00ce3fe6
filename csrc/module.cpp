// The Python module _C. Loading it registers the ops; its functions are the direct entries, one per public
// op, and facts about the build.
#include <ATen/ATen.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/utils/pybind.h>

#include "cayley/inverse.h"
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

// Makes warnings of a direct entry name the line of Python that called it: the caller of its caller. They
// are shown after the call, because the code that shows them can call an op, and an op that warns once holds
// a lock while it does.
class AtTheCaller : public c10::WarningHandler {
 public:
  void show() const {
    if (messages.empty()) return;
    pybind11::gil_scoped_acquire gil;
    for (const std::string& message : messages) {
      if (PyErr_WarnEx(PyExc_UserWarning, message.c_str(), 2) == 0) continue;
      python_error raised;  // a filter has turned it into an error
      raised.persist();
      throw raised;
    }
  }

 private:
  void process(const c10::Warning& warning) override { messages.push_back(warning.msg()); }
  std::vector<std::string> messages;
};

template <auto call, class Call = decltype(call)>
struct Direct;
template <auto call, class... Arguments>
struct Direct<call, fastparam::Tensor (*)(Arguments...)> {
  static fastparam::Tensor run(Arguments... arguments) {
    AtTheCaller warnings;
    fastparam::Tensor result;
    try {
      const c10::WarningUtils::WarningHandlerGuard guard(&warnings);
      result = call(std::forward<Arguments>(arguments)...);
    } catch (...) {
      warnings.show();
      throw;
    }
    warnings.show();
    return result;
  }
};
// C++ errors keep their Python type (ValueError). The GIL is released.
template <class Op>
auto direct() {
  return torch::wrap_pybind_function_no_gil(&Direct<&Op::call>::run);
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  using namespace fastparam;
  m.def("symmetric", direct<Symmetric>(), py::arg("X"), py::arg("lower") = false);
  m.def("skew", direct<Skew>(), py::arg("X"), py::arg("lower") = false);
  m.def("masked_prune", direct<MaskedPrune>(), py::arg("X"), py::arg("mask"));
  m.def("pack_mask", direct<PackMask>(), py::arg("mask"));
  m.def("unpack_mask", direct<UnpackMask>(), py::arg("packed"), py::arg("size"));
  m.def("cayley", direct<Cayley>(), py::arg("A"), py::arg("alpha") = 1.0, py::arg("signs") = py::none());
  m.def("skew_cayley", direct<SkewCayley>(), py::arg("X"), py::arg("alpha") = 1.0, py::arg("lower") = false,
        py::arg("signs") = py::none());
  m.def("skew_cayley_packed", direct<SkewCayleyPacked>(), py::arg("v"), py::arg("alpha") = 1.0);
  m.def("stiefel_cayley", direct<StiefelCayley>(), py::arg("X"), py::arg("alpha") = 1.0,
        py::arg("lower") = false, py::arg("signs") = py::none());
  m.def("trivialized_cayley", direct<TrivializedCayley>(), py::arg("X"), py::arg("base"),
        py::arg("alpha") = 1.0, py::arg("lower") = false);
  m.def("matrix_exp", direct<MatrixExp>(), py::arg("A"));
  m.def("exp_frechet", direct<ExpFrechet>(), py::arg("A"), py::arg("E"));
  m.def("skew_exp", direct<SkewExp>(), py::arg("X"), py::arg("lower") = false);
  m.def("symmetric_exp", direct<SymmetricExp>(), py::arg("X"), py::arg("lower") = false);
  m.def("householder", direct<Householder>(), py::arg("X"));

  // Used by assignments and registrations, which do work of their own before they call an op.
  m.def("check_square", torch::wrap_pybind_function(&check_square), py::arg("op"), py::arg("argument"),
        py::arg("X"));
  m.def("check_matrices", torch::wrap_pybind_function(&check_matrices), py::arg("op"), py::arg("argument"),
        py::arg("X"));
  m.def("eliminate", torch::wrap_pybind_function_no_gil(&eliminate), py::arg("Q"), py::arg("signs"),
        py::arg("far"), py::arg("single"));
  m.def("inverse_of_square", torch::wrap_pybind_function_no_gil(&inverse_of_square), py::arg("Q"),
        py::arg("signs"), py::arg("alpha"), py::arg("lower"), py::arg("far"), py::arg("single"),
        py::arg("allowed"), py::arg("estimate"));
  m.def("orthogonal_factor", torch::wrap_pybind_function_no_gil(&orthogonal_factor), py::arg("X"),
        py::arg("type"));
  m.def("compiler", &compiler);
  m.def("supported_levels", &supported_levels,
        "The instruction levels that this CPU can run, in the words of ATEN_CPU_CAPABILITY, lowest first.");
  m.def("bytes_at", &cpu::bytes_at, py::arg("level"), py::arg("largest"),
        "Bytes of the vector registers used at a level of torch's on a CPU whose largest have so many.");
  m.def("vector_bytes", &cpu::vector_bytes,
        "Bytes of the vector registers in use: 16, 32 (AVX2) or 64 (AVX-512).");
}
