// The shape rules, called by Meta, CPU and CUDA alike, and the real types that have kernels.
#pragma once

#include <ATen/core/Tensor.h>

#include <sstream>
#include <string>

namespace fastparam {

using at::Tensor;

inline std::string shape(c10::SymIntArrayRef sizes) {
  std::ostringstream out;
  const char* comma = "";
  out << "(";
  for (const auto& size : sizes) out << comma << size, comma = ", ";
  out << (sizes.size() == 1 ? ",)" : ")");
  return out.str();
}
inline std::string shape(const Tensor& X) { return shape(X.sym_sizes()); }

inline bool is_supported(at::ScalarType type) {
  return type == at::kFloat || type == at::kDouble || type == at::kBFloat16 || type == at::kHalf ||
         at::isComplexType(type);
}

inline void check_strided(const char* op, const char* argument, const Tensor& X) {
  TORCH_CHECK_VALUE(X.layout() == at::kStrided && !X.is_nested(), op, ": expected ", argument,
                    " to be a strided tensor, got ",
                    X.is_nested()               ? "a nested one"
                    : X.layout() == at::kMkldnn ? "an mkldnn one"
                                                : "a sparse one");
}

inline void check_dtype(const char* op, const char* argument, const Tensor& X) {
  TORCH_CHECK_VALUE(is_supported(X.scalar_type()), op, ": expected ", argument,
                    " of dtype float32, float64, bfloat16, float16 or complex, got ",
                    c10::getDtypeNames(X.scalar_type()).first);
}

inline void check_matrices(const char* op, const char* argument, const Tensor& X) {
  check_strided(op, argument, X);
  TORCH_CHECK_VALUE(X.dim() >= 2, op, ": expected ", argument, " of shape (..., n, k), got ", shape(X));
  check_dtype(op, argument, X);
}

// The check uses sym_eq(...).expect_true, so that torch.compile turns it into a run-time assertion for an
// unbacked size instead of giving up.
inline void check_square(const char* op, const char* argument, const Tensor& X) {
  check_strided(op, argument, X);
  TORCH_CHECK_VALUE(X.dim() >= 2 && X.sym_size(-2).sym_eq(X.sym_size(-1)).expect_true(__FILE__, __LINE__), op,
                    ": expected ", argument, " of shape (..., n, n), got ", shape(X));
  check_dtype(op, argument, X);
}

// Checks a second tensor, which must be like X, the argument called `name`.
inline void check_like(const char* op, const char* argument, const Tensor& t, const char* name,
                       const Tensor& X) {
  check_strided(op, argument, t);
  TORCH_CHECK_VALUE(t.sym_sizes() == X.sym_sizes(), op, ": expected ", argument, " to have the shape of ",
                    name, ", ", shape(X), ", got ", shape(t));
  TORCH_CHECK_VALUE(t.scalar_type() == X.scalar_type(), op, ": expected ", argument, " to have the dtype of ",
                    name, ", ", c10::getDtypeNames(X.scalar_type()).first, ", got ",
                    c10::getDtypeNames(t.scalar_type()).first);
  TORCH_CHECK_VALUE(t.device() == X.device(), op, ": expected ", argument, " on the same device as ", name,
                    " (", X.device(), "), got ", t.device());
}

// Outputs are contiguous, whatever the strides of the input.
inline Tensor empty_like_contiguous(const Tensor& X) { return X.new_empty_symint(X.sym_sizes()); }

// X as a batch of matrices whose rows are dense, with one stride for the batch and another for rows. Other
// layouts are copied.
struct Matrices {
  Tensor tensor;
  int64_t batch, n, batch_stride, row_stride;

  explicit Matrices(const Tensor& X) : n(X.size(-1)) {
    batch = X.numel() / (n * n);
    tensor = dense_rows(X) ? X : X.contiguous();
    row_stride = n == 1 ? 1 : tensor.stride(-2);
    batch_stride = 0;  // of the last dimension with more than one entry
    for (int64_t d = X.dim() - 3; d >= 0 && batch_stride == 0; --d)
      if (X.size(d) > 1) batch_stride = tensor.stride(d);
  }

 private:
  static bool dense_rows(const Tensor& X) {
    if (X.size(-1) > 1 && X.stride(-1) != 1) return false;
    int64_t next = -1;  // the stride that the previous dimension must have
    for (int64_t d = X.dim() - 3; d >= 0; --d) {
      if (X.size(d) == 1) continue;
      if (next >= 0 && X.stride(d) != next) return false;
      next = X.stride(d) * X.size(d);
    }
    return true;
  }
};

// Calls f with a value of the real type: a half type, float or double.
template <class F>
auto with_real_type(at::ScalarType type, const F& f) {
  switch (type) {
    case at::kHalf: return f(at::Half{});
    case at::kBFloat16: return f(at::BFloat16{});
    case at::kFloat: return f(float{});
    case at::kDouble: return f(double{});
    default: TORCH_INTERNAL_ASSERT(false, "fastparam: no kernel for ", c10::getDtypeNames(type).first);
  }
}

// Calls f with an unsigned integer of the size of an element, for ops that move elements without computing.
template <class F>
auto with_bits(const Tensor& X, const F& f) {
  switch (X.element_size()) {
    case 2: return f(uint16_t{});
    case 4: return f(uint32_t{});
    case 8: return f(uint64_t{});
    default:
      TORCH_INTERNAL_ASSERT(false, "fastparam: no kernel for elements of ", X.element_size(), " bytes");
  }
}

}  // namespace fastparam
