"""One record per likelihood: all that checks, dispatch and losses know about it.

The rest follows from its name: the op and the reference are called ``{name}_nll``.
"""

import math
from typing import Literal, NamedTuple, TypeAlias, get_args

LikelihoodName: TypeAlias = Literal[
    "bernoulli",
    "gaussian",
    "laplace",
    "categorical",
    "poisson",
    "negative_binomial",
    "multinomial",
]
NAMES = get_args(LikelihoodName)


class Likelihood(NamedTuple):
    """One likelihood: its arguments, its data, and when torch's own loss is faster."""

    name: str
    # The names of the decoder's output and of the data in the likelihood's own function.
    recon: str = "recon"
    x: str = "x"
    # Its other arguments, by name. A width is a number or a tensor that broadcasts to recon, and
    # 0.0 by default; the others are such tensors, and None by default.
    width: str | None = None
    optional: tuple[str, ...] = ()
    # Whether the op takes a width that is one for all examples as a single row [1, cols].
    width_by_column: bool = False
    # "real": floating or integer. "unit": floating in [0, 1], or bool. "counts": floating or
    # integer, without a gradient. "classes": integers; recon has one more dimension, their logits.
    data: Literal["real", "unit", "counts", "classes"] = "real"
    # Elements of recon on a CPU below which torch's own loss is faster than a kernel; and the same
    # where the width is a tensor, for which torch has several operations instead of one loss.
    torch_below: int = 0
    torch_below_if_learned: int = 0
    # The same for ``elbo_loss``, whose kernel has the gradient in the forward pass already; where
    # no width is a tensor.
    torch_below_in_loss: int = 0
    # Whether torch.compile makes on a CPU what is as fast as a kernel.
    left_to_compiler: bool = False
    # The recon of masked events: at x = 0 it gives a likelihood of 1, together with
    # ``hidden_width`` if there is a width. exp(-1e4) is 0 in every dtype.
    hidden: float = -1e4
    hidden_width: float | None = None

    @property
    def parameters(self) -> tuple[str, ...]:
        """The names of all arguments beside recon and x."""
        return self.optional if self.width is None else (self.width, *self.optional)

    @property
    def is_categorical(self) -> bool:
        return self.data == "classes"


LIKELIHOODS = {
    record.name: record
    for record in (
        Likelihood(
            "bernoulli", recon="logits", data="unit", torch_below=2**16, torch_below_in_loss=2**13
        ),
        # A Bernoulli's probabilities instead of its logits: kernels only, and for ``compat`` alone.
        Likelihood("probabilities", data="unit"),
        Likelihood(
            "gaussian",
            width="recon_logvar",
            torch_below=2**19,
            torch_below_in_loss=2**16,
            left_to_compiler=True,
            hidden=0.0,
            hidden_width=-math.log(2 * math.pi),
        ),
        Likelihood(
            "laplace",
            width="log_scale",
            torch_below=2**16,
            torch_below_if_learned=2**15,
            torch_below_in_loss=2**15,
            left_to_compiler=True,
            hidden=0.0,
            hidden_width=-math.log(2),
        ),
        Likelihood("poisson", recon="log_rate", data="counts"),
        Likelihood(
            "negative_binomial",
            recon="log_mean",
            width="log_theta",
            optional=("zero_logits",),
            width_by_column=True,
            data="counts",
            hidden_width=0.0,
        ),
        Likelihood("multinomial", recon="logits", x="counts", data="counts"),
        Likelihood(
            "categorical",
            recon="logits",
            x="target",
            data="classes",
            torch_below=2**18,
            torch_below_in_loss=2**16,
            left_to_compiler=True,
        ),
    )
}
WIDTHS = {record.width for record in LIKELIHOODS.values() if record.width is not None}


def owners(parameter: str) -> list[str]:
    """The names of the likelihoods that have this parameter."""
    return [record.name for record in LIKELIHOODS.values() if parameter in record.parameters]
