"""The likelihoods that ``elbo_loss`` can have: one line each, for all backends.

To add the kernels of a likelihood, say of ``gamma``:

1. Declare ``gamma_nll`` in ``ops.py`` with ``@declare(..., launchers=LIKELIHOOD)``. The first two
   arguments are the network's output and x; then come the distribution's further parameters, then
   numbers. ``gradients`` names the arguments that have one.
2. Write ``triton/gamma_nll.py`` and ``numba/gamma_nll.py``, each with one launcher:

       launch_gamma_nll(*arguments, dnll=None, scale=1.0, values=None, needs=())

   It takes the op's arguments and returns ``(nll, gradients)``:

   - ``values`` says what ``nll`` is. None: None. "rows": a new tensor with the nll of each row.
     "total": numbers [n], contiguous, whose sum is that of all rows: one per program or per row.
   - ``needs`` has one bool per argument in ``gradients``; missing ones at the end are False.
     ``gradients`` is the list of the tensors that ``needs`` asks for, in that order.
   - ``dnll`` is the upstream gradient [rows], with any stride. If it is None, the upstream gradient
     is ``scale`` for every row.

   The op and its backward need no more: both are made from this launcher, below.
3. Add its line to ``LIKELIHOODS`` below, and its PyTorch twin beside the others in ``estimators/``.

x may have fewer rows than the network's output [samples * rows, cols], which then holds one sample
of all rows after another. Both backends have ``samples_of`` for this in their ``launch.py``.
"""

from typing import Any, NamedTuple

from torch import Tensor

from .backends import Backend
from .library import Run, launcher
from .rows import samples_in


class Likelihood(NamedTuple):
    """The arguments of ``elbo_loss`` that an op takes.

    Attributes:
        op: its name. The module of a backend and its launcher are named after it.
        parameters: how many of the further tensors (width, zero_logits) it takes.
        width_value: whether it takes a float too, which stands for a width that is None.
        constants: its last arguments.
    """

    op: str
    parameters: int = 0
    width_value: bool = False
    constants: tuple[Any, ...] = ()

    def options(
        self,
        width: Tensor | None = None,
        width_value: float = 0.0,
        zero_logits: Tensor | None = None,
    ) -> tuple[Any, ...]:
        """The arguments that follow the network's output and x."""
        values = (width_value,) if self.width_value else ()
        return *(width, zero_logits)[: self.parameters], *values, *self.constants


LIKELIHOODS = {
    "bernoulli": Likelihood("bernoulli_nll", constants=(False,)),
    "probabilities": Likelihood("bernoulli_nll", constants=(True,)),
    "gaussian": Likelihood("gaussian_nll", parameters=1, width_value=True, constants=(1,)),
    "laplace": Likelihood("laplace_nll", parameters=1, width_value=True),
    "poisson": Likelihood("poisson_nll"),
    "negative_binomial": Likelihood(
        "negative_binomial_nll", parameters=2, width_value=True, constants=(False,)
    ),
    "multinomial": Likelihood("multinomial_nll"),
    "categorical": Likelihood("categorical_nll"),
}


def forward_launcher(backend: Backend, family: str, name: str) -> Run:
    """The implementation of the op X: a call of ``launch_X``."""
    launch = launcher(backend, family, f"launch_{name}")

    def forward(*arguments: Any) -> Tensor:
        return launch(*arguments, values="rows")[0]

    return forward


def backward_launcher(backend: Backend, family: str, name: str) -> Run:
    """The implementation of the op X_backward: a call of the same launcher."""
    launch = launcher(backend, family, f"launch_{name.removesuffix('_backward')}")

    def backward(dnll: Tensor, *arguments: Any) -> list[Tensor]:
        *given, needs = arguments
        return launch(*given, dnll=dnll, needs=needs)[1]

    return backward


def loss_launcher(backend: Backend, family: str, name: str) -> Run:
    """The implementation of the op [scale * sum of X, the wanted gradients], for the family X."""
    launch = launcher(backend, family, f"launch_{family}")

    def loss(*arguments: Any) -> list[Tensor]:
        *given, scale, needs = arguments
        nll, gradients = launch(*given, scale=scale, values="total", needs=needs)
        return [nll.sum() * scale, *gradients]

    return loss


def elbo_launcher(backend: Backend, family: str, name: str) -> Run:
    """The implementation of ``elbo_loss``: the launcher of its likelihood, and ``launch_total``."""
    total = launcher(backend, family, "launch_total")

    def elbo_loss(
        recon: Tensor,
        x: Tensor,
        width: Tensor | None,
        zero_logits: Tensor | None,
        width_value: float,
        kl: Tensor | None,
        likelihood: str,
        beta: float,
        scale: float,
        needs: list[bool],
    ) -> list[Tensor]:
        found = LIKELIHOODS[likelihood]
        launch = launcher(backend, found.op, f"launch_{found.op}")
        options = found.options(width, width_value, zero_logits)
        nll_scale = scale / samples_in(recon, x)
        nll, gradients = launch(recon, x, *options, scale=nll_scale, values="total", needs=needs)
        return [*total(nll, kl, nll_scale, scale, beta), *gradients]

    return elbo_loss


LIKELIHOOD = forward_launcher, backward_launcher
