"""The kernels of whole losses: images under a mixture of logistics, totals, importance weights."""

from fused_elbo.kernels.triton.discretized_mix_logistic_nll import (
    launch_discretized_mix_logistic_nll as mix_logistic,
)
from fused_elbo.kernels.triton.elbo_loss import launch_total, scale_
from fused_elbo.kernels.triton.gaussian_nll import launch_gaussian_nll
from fused_elbo.kernels.triton.importance_weights import importance_weights

from .operands import ROWS, SAMPLES, StaticCase

IMAGES, COLORS, NUMBERS = 64, 3, 100  # RGB; a pixel has ten mixtures of ten numbers


def cases(t):
    return [*images(t), *totals(t), *weights(t)]


def images(t):
    """Images of as many pixels as there are columns."""
    image = t.empty(IMAGES, NUMBERS, t.cols), t.empty(IMAGES, COLORS, t.cols), 1 / 255, 0.999, 0.0
    grad = t.sums(IMAGES, t.cols)
    calls = {
        "forward": {"values": "rows"},
        "backward": {"dnll": grad, "needs": [True]},
        "forward + gradient": {"scale": 0.5, "values": "total", "needs": [True]},
    }

    def case(which):
        name = f"discretized_mix_logistic_nll {which}"
        return StaticCase(name, None, lambda: mix_logistic(*image, **calls[which]))

    return [case(which) for which in calls]


def totals(t):
    """The launches of ``elbo_loss`` after its likelihood, which add up its partial sums."""

    def total():
        partial, _ = launch_gaussian_nll(t.a, t.b, None, 0.0, 1, values="total")
        launch_total(partial, t.rows, 1.0, 1.0, 1.0)

    return [
        StaticCase("elbo_loss total", None, total),
        StaticCase("elbo_loss scale", 2, lambda: scale_(t.a, t.rows[0])),
    ]


def weights(t):
    """A few samples of many examples, and 64 samples."""
    few, many = t.sums(SAMPLES, ROWS), t.rows.view(64, -1)
    return [
        StaticCase("importance_weights", None, lambda: importance_weights(few, few, 0.0)),
        StaticCase("importance_weights of 64", None, lambda: importance_weights(many, many, 0.0)),
    ]
