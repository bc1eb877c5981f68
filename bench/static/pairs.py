"""The kernels that compare every row with every component. None has a contract of bytes.

They are counted by their innermost loops, where an element is a latent of a pair.
"""

from fused_elbo.kernels.triton.marginals_log_prob import (
    marginals_log_prob,
    marginals_log_prob_backward,
)
from fused_elbo.kernels.triton.mixture_log_prob import mixture_log_prob, mixture_log_prob_backward

from .operands import StaticCase

COMPONENTS = 4096  # and as many rows: one pass over all pairs
OF_Z, OF_COMPONENTS = [True, False, False, False], [False, True, True, False]


def cases(t):
    inputs = *(tensor[:COMPONENTS] for tensor in (t.a, t.b, t.c)), None
    grad, by_latent = t.rows[:COMPONENTS], t.sums(t.cols, COMPONENTS)

    def mixture_backward(needs):
        return lambda: mixture_log_prob_backward(grad, *inputs, grad, needs)

    def marginals_backward(needs):
        return lambda: marginals_log_prob_backward(grad, *inputs, by_latent, needs)

    calls = {
        "mixture_log_prob forward": lambda: mixture_log_prob(*inputs),
        "mixture_log_prob backward of z": mixture_backward(OF_Z),
        "mixture_log_prob backward of components": mixture_backward(OF_COMPONENTS),
        "marginals_log_prob forward": lambda: marginals_log_prob(*inputs),
        "marginals_log_prob stratified forward": lambda: marginals_log_prob(
            *inputs, 2 * COMPONENTS
        ),
        "marginals_log_prob backward of z": marginals_backward(OF_Z),
        "marginals_log_prob backward of components": marginals_backward(OF_COMPONENTS),
    }
    return [StaticCase(name, None, call, "innermost") for name, call in calls.items()]
