// Gives an op of this package its derivatives: the code that PyTorch generates for its own ops
// (VariableType, Functions), written by hand. An op takes a tensor first and returns one tensor.
//
//   linear<Skew, SkewAdjoint, bool>
//       The Autograd kernel of a linear op, whose derivative is another op.
//   BackwardNode, make_node, attach, set_tangent, save
//       The parts of the Autograd kernel of any other op (see cayley/cayley.cpp).
#pragma once

#include <torch/csrc/autograd/VariableTypeUtils.h>
#include <torch/csrc/dynamo/compiled_autograd.h>
#include <torch/version.h>

#include <mutex>
#include <optional>
#include <string>
#include <tuple>
#include <type_traits>
#include <vector>

#include "op.h"

namespace fastparam {

using torch::autograd::isFwGradDefined;
using torch::autograd::variable_list;

// ---- one node type for all torch versions -----------------------------------------------------------------

#if TORCH_VERSION_MAJOR == 2 && TORCH_VERSION_MINOR < 13
template <class Node>
using NodePtr = std::shared_ptr<Node>;
template <class Node>
NodePtr<Node> new_node() {
  return {new Node(), torch::autograd::deleteNode};
}
#else
template <class Node>
using NodePtr = c10::intrusive_ptr<Node>;
template <class Node>
NodePtr<Node> new_node() {
  return c10::make_intrusive<Node>();
}
#endif

// ---- backward nodes ---------------------------------------------------------------------------------------

// The part of an argument that a node keeps: the value of a scalar, or a SavedVariable of a tensor.
template <class T>
struct Saved {
  T value;
  void save(const T& v, const torch::autograd::Node*) { value = v; }
  T unpack(torch::autograd::Node&) const { return value; }
  void reset() {}
  void collect(torch::dynamo::autograd::CompiledNodeArgs& args) const { args.collect(value); }
  template <class Swap>
  void before(Swap&) {}
  template <class Swap>
  void after(Swap&) {}
};

template <>
struct Saved<Tensor> {
  torch::autograd::SavedVariable value;
  bool is_output = false;
  void save(const Tensor& v, const torch::autograd::Node* node) {
    // saving an output as an input would be a reference cycle, which leaks
    is_output = v.grad_fn().get() == node;
    value = torch::autograd::SavedVariable(v, is_output);
  }
  Tensor unpack(torch::autograd::Node& node) const { return value.unpack(node.getptr()); }
  void reset() { value.reset_data(); }
  void collect(torch::dynamo::autograd::CompiledNodeArgs& args) const { args.collect(value, is_output); }
  template <class Swap>
  void before(Swap& swap) {
    swap.before(value);
  }
  template <class Swap>
  void after(Swap& swap) {
    swap.after(value);
  }
};

template <>
struct Saved<std::optional<Tensor>> {
  bool present = false;
  Saved<Tensor> tensor;
  void save(const std::optional<Tensor>& v, const torch::autograd::Node* node) {
    present = v.has_value();
    if (present) tensor.save(*v, node);
  }
  std::optional<Tensor> unpack(torch::autograd::Node& node) const {
    return present ? std::optional<Tensor>(tensor.unpack(node)) : std::nullopt;
  }
  void reset() { tensor.reset(); }
  void collect(torch::dynamo::autograd::CompiledNodeArgs& args) const {
    args.collect(present);
    if (present) tensor.collect(args);
  }
  template <class Swap>
  void before(Swap& swap) {
    if (present) tensor.before(swap);
  }
  template <class Swap>
  void after(Swap& swap) {
    if (present) tensor.after(swap);
  }
};

// Whether each input of the op needs a gradient, in the order of the arguments of make_node.
using Needs = std::vector<bool>;

// `Self` defines
//   static std::string label();
//   static variable_list backward(const Needs& needs, const Tensor& G, const T&... saved);
// `backward` returns the gradients of all inputs of make_node; those that are not needed can be undefined.
// It is static, because compiled autograd calls it without a node, and made of differentiable ops, for
// double backward.
template <class Self, class... T>
struct BackwardNode : torch::autograd::Node {
  std::tuple<Saved<T>...> saved;

  std::string name() const override { return Self::label(); }

  variable_list apply(variable_list&& grads) override {
    std::lock_guard<std::mutex> lock(mutex_);
    return std::apply([&](const auto&... s) { return run(needs(), grads[0], s.unpack(*this)...); }, saved);
  }

  void release_variables() override {
    std::lock_guard<std::mutex> lock(mutex_);
    std::apply([](auto&... s) { (s.reset(), ...); }, saved);
  }

  // Compiled autograd needs to know the arguments of the backward pass, and puts a call of `run` into its
  // graph.
  void compiled_args(torch::dynamo::autograd::CompiledNodeArgs& args) const override {
    std::apply([&](const auto&... s) { (s.collect(args), ...); }, saved);
  }

  variable_list apply_with_saved(const variable_list& grads,
                                 torch::dynamo::autograd::SwapSavedVariables& swap) override {
    using namespace torch::dynamo::autograd;
    std::apply([&](auto&... s) { (s.before(swap), ...); }, saved);
    PackedArgs packed;
    packed.pack(needs());
    std::apply([&](const auto&... s) { (packed.pack(s.unpack(*this)), ...); }, saved);
    const auto& python = getPyCompilerInterface();
    const std::string function =
        python->bind_function(swap.get_py_compiler(), name(), run_packed,
                              {IValuePacker<Needs>::packed_type(), IValuePacker<T>::packed_type()...},
                              /*is_custom_function=*/true, /*is_traceable=*/true);
    variable_list result = python->call_function(
        swap.get_py_compiler(), "apply_functional", function, grads, std::move(packed).vec(),
        IValuePacker<std::vector<std::optional<torch::autograd::InputMetadata>>>::pack(
            get_input_metadata(next_edges())));
    std::apply([&](auto&... s) { (s.after(swap), ...); }, saved);
    return result;
  }

 private:
  Needs needs() const {
    Needs result(num_outputs());
    for (size_t i = 0; i < result.size(); ++i) result[i] = task_should_compute_output(i);
    return result;
  }

  static variable_list run(const Needs& needs, const Tensor& G, const T&... values) {
    if (!G.defined()) return variable_list(needs.size());
    c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
    return Self::backward(needs, G, values...);
  }

  static variable_list run_packed(const variable_list& grads, const std::vector<c10::IValue>& args) {
    torch::dynamo::autograd::PackedArgs packed(args);
    const Needs needs = packed.unpack<Needs>();
    const std::tuple<T...> values{packed.unpack<T>()...};  // braces: evaluated from left to right
    return std::apply([&](const auto&... v) { return run(needs, grads[0], v...); }, values);
  }
};

// Returns a node with an edge to each input, or null if no gradient is needed.
template <class Node, class... Inputs>
NodePtr<Node> make_node(const Inputs&... inputs) {
  if (!torch::autograd::compute_requires_grad(inputs...)) return nullptr;
  auto node = new_node<Node>();
  node->set_next_edges(torch::autograd::collect_next_edges(inputs...));
  return node;
}

// The order of calls is attach, set_tangent, save: a saved output must have its grad_fn and its tangent
// already.
template <class Node>
void attach(const NodePtr<Node>& node, const Tensor& output) {
  if (node) torch::autograd::set_history(output, node);
}

// torch.func under autocast can round a tangent, so it is cast back; otherwise the cast does nothing.
inline void set_tangent(const Tensor& output, const Tensor& tangent) {
  output._set_fw_grad(tangent.to(output.scalar_type()), /*level=*/0, /*is_inplace_op=*/false);
}

template <class Node, class... T>
void save(const NodePtr<Node>& node, const T&... values) {
  if (!node) return;
  std::apply([&](auto&... s) { (s.save(values, node.get()), ...); }, node->saved);
#if TORCH_VERSION_MAJOR > 2 || TORCH_VERSION_MINOR >= 14
  torch::autograd::fire_node_creation_hooks(node);
#endif
}

// ---- linear ops -------------------------------------------------------------------------------------------

template <class Self, class Adjoint, class... Rest>
struct LinearBackward : BackwardNode<LinearBackward<Self, Adjoint, Rest...>, std::decay_t<Rest>...> {
  static std::string label() { return std::string(Self::word()) + "_backward"; }
  static variable_list backward(const Needs&, const Tensor& G, const std::decay_t<Rest>&... rest) {
    return {Adjoint::call(G, rest...)};
  }
};

// The Autograd kernel of an op that is linear in X. Its tangent is the op itself, its gradient the adjoint
// op.
template <class Self, class Adjoint, class... Rest>
Tensor linear(c10::DispatchKeySet keys, const Tensor& X, Rest... rest) {
  auto node = make_node<LinearBackward<Self, Adjoint, Rest...>>(X);
  Tensor Y = Self::below_autograd(keys, X, rest...);
  attach(node, Y);
  if (isFwGradDefined(X)) set_tangent(Y, Self::call(X._fw_grad(0), rest...));
  save(node, rest...);
  return Y;
}

}  // namespace fastparam
