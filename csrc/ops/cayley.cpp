// Q = (I + alpha A)^-1 (I - alpha A). With P = Q + I, the map L from the parameter to A, and its adjoint L*:
//   tangent   dQ = -(alpha / 2) P L(dX) P
//   gradient  dX = L*(-(alpha / 2) P^H G P^H), from the saved output alone: the backward op (G, Q)
//   and of that op, for an incoming H with A = L(H):  dG = -(alpha / 2) P A P,  dQ = -(alpha / 2) (G P^H A^H + A^H P^H G)
// L is the identity (cayley), the triangle of X mirrored (skew_cayley), or the entries of v in their places (skew_cayley_packed).
#include "../cayley.h"

#include "../ops.h"

namespace fastparam {

Tensor skew_of_triangle(const Tensor& X, bool lower) {
  if (!X.is_complex()) return Skew::call(X, lower);
  const Tensor T = lower ? X.tril() : X.triu();
  return T - conj_transpose(T);
}

Tensor triangle_of_skew(const Tensor& G, bool lower) {
  if (!G.is_complex()) return SkewAdjoint::call(G, lower);
  const Tensor D = G - conj_transpose(G);
  return lower ? D.tril() : D.triu();
}

namespace {

Tensor plus_identity(const Tensor& Q) { return Q + at::eye_symint(Q.sym_size(-1), Q.options()); }

// ---- L and its adjoint, differentiable, on any device ------------------------------------------------------------------------------

struct Whole {
  static Tensor expand(const Tensor& A) { return A; }
  static Tensor collapse(const Tensor& G) { return G; }
};

struct Triangle {
  static Tensor expand(const Tensor& X, bool lower) { return skew_of_triangle(X, lower); }
  static Tensor collapse(const Tensor& G, bool lower) { return triangle_of_skew(G, lower); }
};

struct Packed {
  // The places of the entries in the flattened matrix.
  static Tensor places(int64_t n, const Tensor& like) {
    const Tensor rows_columns = at::triu_indices(n, n, 1, at::TensorOptions().dtype(at::kLong).device(like.device()));
    return rows_columns[0] * n + rows_columns[1];
  }
  static Tensor expand(const Tensor& v) {
    const int64_t n = packed_order(v.sym_size(-1).guard_int(__FILE__, __LINE__));
    c10::SymDimVector flat(v.sym_sizes().begin(), v.sym_sizes().end()), square = flat;
    flat.back() = n * n;
    square.back() = n;
    square.emplace_back(n);
    const Tensor T = at::zeros_symint(flat, v.options()).index_add(-1, places(n, v), v).view_symint(square);
    return T - conj_transpose(T);
  }
  static Tensor collapse(const Tensor& G) {
    const int64_t n = G.sym_size(-1).guard_int(__FILE__, __LINE__);
    c10::SymDimVector flat(G.sym_sizes().begin(), G.sym_sizes().end() - 1);
    flat.back() = n * n;
    return (G - conj_transpose(G)).reshape_symint(flat).index_select(-1, places(n, G));
  }
};

// ---- ATen expressions --------------------------------------------------------------------------------------------------------------

// I + aA of a skew A is never singular. To look for others synchronises a device with the host.
Tensor solve(const Tensor& A, double alpha, bool raise_singular = false) {
  const Tensor I = at::eye_symint(A.sym_size(-1), A.options()), B = alpha * A;
  return std::get<0>(at::linalg_solve_ex(I + B, I - B, /*left=*/true, raise_singular));
}

template <class Layout, class... Rest>  // of a skew A
Tensor without_kernel(const Tensor& X, double alpha, Rest... rest) {
  return solve(Layout::expand(X.to(at::toOpMathType(X.scalar_type())), rest...), alpha).to(X.scalar_type()).contiguous();
}

template <class Layout, class... Rest>
Tensor backward_without_kernel(const Tensor& G, const Tensor& Q, double alpha, Rest... rest) {
  const auto type = at::toOpMathType(Q.scalar_type());
  const Tensor PH = conj_transpose(plus_identity(Q.to(type)));
  const Tensor dA = (-alpha / 2) * at::matmul(at::matmul(PH, G.to(type)), PH);
  return Layout::collapse(dA, rest...).to(Q.scalar_type()).contiguous();
}

// ---- derivatives -------------------------------------------------------------------------------------------------------------------

template <class Forward, class Backward, class Layout, class... Rest>
struct Derivatives {
  static Tensor tangent(const Tensor& dX, const Tensor& Q, double alpha, Rest... rest) {
    const Tensor P = plus_identity(Q);
    return (-alpha / 2) * at::matmul(at::matmul(P, Layout::expand(dX, rest...)), P);
  }

  struct Node : BackwardNode<Node, Tensor, double, Rest...> {
    static std::string label() { return Backward::word(); }
    static variable_list backward(const Needs&, const Tensor& G, const Tensor& Q, const double& alpha, const Rest&... rest) {
      return {Backward::call(G, Q, alpha, rest...)};
    }
  };

  static Tensor forward(c10::DispatchKeySet keys, const Tensor& X, double alpha, Rest... rest) {
    auto node = make_node<Node>(X);
    Tensor Q = Forward::below_autograd(keys, X, alpha, rest...);
    attach(node, Q);
    if (isFwGradDefined(X)) set_tangent(Q, tangent(X._fw_grad(0), Q, alpha, rest...));
    save(node, Q, alpha, rest...);
    return Q;
  }

  struct SecondNode : BackwardNode<SecondNode, Tensor, Tensor, double, Rest...> {
    static std::string label() { return std::string(Backward::word()) + "_backward"; }
    static variable_list backward(const Needs& needs, const Tensor& H, const Tensor& G, const Tensor& Q, const double& alpha,
                                  const Rest&... rest) {
      variable_list result(2);
      if (needs[0]) result[0] = tangent(H, Q, alpha, rest...);
      if (needs[1]) {
        const Tensor PH = conj_transpose(plus_identity(Q)), AH = conj_transpose(Layout::expand(H, rest...));
        result[1] = (-alpha / 2) * (at::matmul(G, at::matmul(PH, AH)) + at::matmul(at::matmul(AH, PH), G));
      }
      return result;
    }
  };

  static Tensor backward(c10::DispatchKeySet keys, const Tensor& G, const Tensor& Q, double alpha, Rest... rest) {
    auto node = make_node<SecondNode>(G, Q);
    Tensor R = Backward::below_autograd(keys, G, Q, alpha, rest...);
    attach(node, R);
    if (isFwGradDefined(G) || isFwGradDefined(Q)) {
      const Tensor Q0 = Q._fw_primal(0), G0 = G._fw_primal(0);  // the formula must not carry tangents of its own arguments
      Tensor dR;
      if (isFwGradDefined(G)) dR = Backward::call(G._fw_grad(0), Q0, alpha, rest...);
      if (isFwGradDefined(Q)) {
        const Tensor PH = conj_transpose(plus_identity(Q0)), dPH = conj_transpose(Q._fw_grad(0));
        const Tensor Z = at::matmul(at::matmul(dPH, G0), PH) + at::matmul(PH, at::matmul(G0, dPH));
        const Tensor D = Layout::collapse((-alpha / 2) * Z, rest...);
        dR = dR.defined() ? dR + D : D;
      }
      set_tangent(R, dR);
    }
    save(node, G, Q, alpha, rest...);
    return R;
  }
};

using OfWhole = Derivatives<Cayley, CayleyBackward, Whole>;
using OfTriangle = Derivatives<SkewCayley, SkewCayleyBackward, Triangle, bool>;
using OfPacked = Derivatives<SkewCayleyPacked, SkewCayleyPackedBackward, Packed>;

// ---- shapes, and every device without kernels of its own ---------------------------------------------------------------------------

template <class Self, class... Rest>
Tensor forward_meta(const Tensor& X, double alpha, Rest...) {
  check_cayley(Self::word(), Self::argument, X, alpha);
  return empty_like_contiguous(X);
}
template <class Self, class... Rest>
Tensor backward_meta(const Tensor& G, const Tensor& Q, double alpha, Rest...) {
  check_cayley_backward(Self::word(), G, Q, alpha);
  return empty_like_contiguous(Q);
}
Tensor packed_meta(const Tensor& v, double alpha) { return empty_unpacked_skew(v, check_packed("skew_cayley_packed", v, alpha)); }
Tensor packed_backward_meta(const Tensor& G, const Tensor& Q, double alpha) {
  check_cayley_backward("skew_cayley_packed_backward", G, Q, alpha);
  return empty_packed_skew(Q);
}

template <class Self, auto expression, class... Rest>
Tensor forward_elsewhere(const Tensor& X, double alpha, Rest... rest) {
  check_cayley(Self::word(), Self::argument, X, alpha);
  warn_no_kernel(X);
  return expression(X, alpha, rest...);
}
template <class Self, auto expression, class... Rest>
Tensor backward_elsewhere(const Tensor& G, const Tensor& Q, double alpha, Rest... rest) {
  check_cayley_backward(Self::word(), G, Q, alpha);
  warn_no_kernel(Q);
  return expression(G, Q, alpha, rest...);
}
Tensor packed_elsewhere(const Tensor& v, double alpha) {
  check_packed("skew_cayley_packed", v, alpha);
  warn_no_kernel(v);
  return fallback::skew_cayley_packed(v, alpha);
}

}  // namespace

namespace fallback {

Tensor cayley(const Tensor& A, double alpha) {
  return solve(A.to(at::toOpMathType(A.scalar_type())), alpha, A.is_cpu()).to(A.scalar_type()).contiguous();
}
Tensor cayley_backward(const Tensor& G, const Tensor& Q, double alpha) { return backward_without_kernel<Whole>(G, Q, alpha); }
Tensor skew_cayley(const Tensor& X, double alpha, bool lower) { return without_kernel<Triangle>(X, alpha, lower); }
Tensor skew_cayley_backward(const Tensor& G, const Tensor& Q, double alpha, bool lower) {
  return backward_without_kernel<Triangle>(G, Q, alpha, lower);
}
Tensor skew_cayley_packed(const Tensor& v, double alpha) { return without_kernel<Packed>(v, alpha); }
Tensor skew_cayley_packed_backward(const Tensor& G, const Tensor& Q, double alpha) { return backward_without_kernel<Packed>(G, Q, alpha); }

}  // namespace fallback

TORCH_LIBRARY_FRAGMENT(fastparam, m) {
  m.def("cayley(Tensor A, float alpha=1.0) -> Tensor", {at::Tag::pt2_compliant_tag});
  m.def("cayley_backward(Tensor G, Tensor Q, float alpha=1.0) -> Tensor", {at::Tag::pt2_compliant_tag});
  m.def("skew_cayley(Tensor X, float alpha=1.0, bool lower=False) -> Tensor", {at::Tag::pt2_compliant_tag});
  m.def("skew_cayley_backward(Tensor G, Tensor Q, float alpha=1.0, bool lower=False) -> Tensor", {at::Tag::pt2_compliant_tag});
  m.def("skew_cayley_packed(Tensor v, float alpha=1.0) -> Tensor", {at::Tag::pt2_compliant_tag});
  m.def("skew_cayley_packed_backward(Tensor G, Tensor Q, float alpha=1.0) -> Tensor", {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(fastparam, Meta, m) {
  m.impl("cayley", &forward_meta<Cayley>);
  m.impl("cayley_backward", &backward_meta<CayleyBackward>);
  m.impl("skew_cayley", &forward_meta<SkewCayley, bool>);
  m.impl("skew_cayley_backward", &backward_meta<SkewCayleyBackward, bool>);
  m.impl("skew_cayley_packed", &packed_meta);
  m.impl("skew_cayley_packed_backward", &packed_backward_meta);
}

TORCH_LIBRARY_IMPL(fastparam, CompositeExplicitAutograd, m) {
  m.impl("cayley", &forward_elsewhere<Cayley, fallback::cayley>);
  m.impl("cayley_backward", &backward_elsewhere<CayleyBackward, fallback::cayley_backward>);
  m.impl("skew_cayley", &forward_elsewhere<SkewCayley, fallback::skew_cayley, bool>);
  m.impl("skew_cayley_backward", &backward_elsewhere<SkewCayleyBackward, fallback::skew_cayley_backward, bool>);
  m.impl("skew_cayley_packed", &packed_elsewhere);
  m.impl("skew_cayley_packed_backward", &backward_elsewhere<SkewCayleyPackedBackward, fallback::skew_cayley_packed_backward>);
}

TORCH_LIBRARY_IMPL(fastparam, Autograd, m) {
  m.impl("cayley", &OfWhole::forward);
  m.impl("cayley_backward", &OfWhole::backward);
  m.impl("skew_cayley", &OfTriangle::forward);
  m.impl("skew_cayley_backward", &OfTriangle::backward);
  m.impl("skew_cayley_packed", &OfPacked::forward);
  m.impl("skew_cayley_packed_backward", &OfPacked::backward);
}

void no_autocast(torch::Library& m) {
  m.impl("cayley", &Cayley::no_autocast);
  m.impl("cayley_backward", &CayleyBackward::no_autocast);
  m.impl("skew_cayley", &SkewCayley::no_autocast);
  m.impl("skew_cayley_backward", &SkewCayleyBackward::no_autocast);
  m.impl("skew_cayley_packed", &SkewCayleyPacked::no_autocast);
  m.impl("skew_cayley_packed_backward", &SkewCayleyPackedBackward::no_autocast);
}
TORCH_LIBRARY_IMPL(fastparam, AutocastCPU, m) { no_autocast(m); }
TORCH_LIBRARY_IMPL(fastparam, AutocastCUDA, m) { no_autocast(m); }

}  // namespace fastparam
