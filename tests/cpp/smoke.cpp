// A C++ program that uses the library: values, gradients and an error of one op.
#include <fastparam/ops.h>
#include <torch/torch.h>

#include <iostream>

int main() {
  const torch::Tensor X = torch::randn({5, 33, 33}, torch::requires_grad());
  const torch::Tensor G = torch::randn({5, 33, 33});

  const torch::Tensor A = fastparam::Skew::call(X, /*lower=*/false);
  bool right = torch::equal(A, X.triu(1) - X.triu(1).mT());

  const torch::Tensor grad = torch::autograd::grad({A}, {X}, {G})[0];
  right = right && torch::equal(grad, (G - G.mT()).triu(1));

  bool raised = false;
  try {
    fastparam::Symmetric::call(torch::ones({3, 4}), false);
  } catch (const c10::ValueError& error) {
    raised = std::string(error.what_without_backtrace()) ==
             "symmetric: expected X of shape (..., n, n), got (3, 4)";
  }
  std::cout << (right ? "values right" : "values WRONG") << ", " << (raised ? "error right" : "error WRONG")
            << std::endl;
  return right && raised ? 0 : 1;
}
