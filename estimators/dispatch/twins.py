"""The table of twins: for each op's autograd function the same in PyTorch.

Second derivatives and batched gradients on a CPU are the twin's.
"""

from typing import Any

from torch import Tensor

from ...kernels import ops
from ..reference import on_rows, reference
from .likelihoods import LIKELIHOODS


def elbo_loss_on_rows(
    recon: Tensor,
    x: Tensor,
    width: Tensor | None,
    zero_logits: Tensor | None,
    width_value: float,
    kl: Tensor | None,
    likelihood: str,
    beta: float,
    scale: float,
    needs: Any,
) -> Any:
    """The op of a whole loss in PyTorch, as ``on_rows`` has the others."""
    op, options = ops.likelihood_op(likelihood, width, width_value, zero_logits)
    return on_rows.elbo_loss(op.function.twin(recon, x, *options), len(x), kl, beta, scale)


TWINS: dict[Any, Any] = {
    ops.gaussian_kl.function: reference.gaussian_kl,
    ops.gaussian_rsample.function: on_rows.rsample,
    ops.rsample_kl.function: on_rows.rsample_kl,
    ops.rsample_log_ratio.function: on_rows.rsample_log_ratio,
    ops.posterior_kl.function: reference.posterior_kl,
    ops.posterior_sample_kl.function: on_rows.posterior_sample_kl,
    ops.mixture_log_prob.function: reference.mixture_log_prob,
    ops.marginals_log_prob.function: reference.marginals_log_prob,
    ops.kl_decomposition.function: reference.kl_decomposition,
    ops.discretized_mix_logistic_nll.function: reference.discretized_mix_logistic_nll,
    ops.softmax_negative_binomial_nll.function: on_rows.softmax_negative_binomial_nll,
    ops.SoftmaxNegativeBinomialLossFunction: on_rows.softmax_negative_binomial_loss,
    ops.DiscretizedMixLogisticLossFunction: on_rows.discretized_mix_logistic_loss,
    ops.BalancedKLFunction: reference.balanced_kl,
    ops.ImportanceWeightsFunction: on_rows.importance_weights,
    ops.ELBOLossFunction: elbo_loss_on_rows,
}
for name in LIKELIHOODS:
    op, _ = ops.likelihood_op(name)
    TWINS[op.function] = getattr(on_rows, f"{op.__name__}")
for function, twin in TWINS.items():
    function.twin = staticmethod(twin)
