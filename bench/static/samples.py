"""The kernels that draw samples: one, K, K with their log ratios, and one with its KL."""

from fused_elbo.kernels.triton.gaussian_rsample import launch_rsample as rsample
from fused_elbo.kernels.triton.gaussian_rsample import launch_rsample_backward as rsample_backward
from fused_elbo.kernels.triton.rsample_kl import rsample_kl, rsample_kl_backward

from .operands import OF_ALL, OF_Q, ROWS, SAMPLES, StaticCase

SHARED_ROWS = 64  # so few that programs share the samples of a row


def cases(t):
    return [*plain(t), *log_ratios(t), *with_kl(t)]


def plain(t):
    """One sample, whose kernel has no loop, and K."""
    q = (None, *t.q[1:])  # the gradients do not depend on mu
    dz = t.full(SAMPLES)
    return [
        StaticCase(
            "gaussian_rsample forward",
            3,
            lambda: rsample(t.q, t.seed, 1, with_log_ratio=False),
        ),
        StaticCase(
            "gaussian_rsample backward",
            4,
            lambda: rsample_backward(t.c[None], None, q, t.seed, OF_Q, samples=1),
        ),
        StaticCase(
            "gaussian_rsample samples forward",
            1,
            lambda: rsample(t.q, t.seed, SAMPLES, with_log_ratio=False),
            "longest",
        ),
        StaticCase(
            "gaussian_rsample samples backward",
            1,
            lambda: rsample_backward(dz, None, q, t.seed, OF_Q, samples=SAMPLES),
            "longest",
        ),
    ]


def log_ratios(t):
    """An element is one of z: what is done once for all samples is around the loop."""
    dz, dlog_ratio = t.full(SAMPLES), t.sums(SAMPLES, ROWS)
    few = (t.a[:SHARED_ROWS], t.b[:SHARED_ROWS], None, None)
    dz_of_few = t.empty(64, SHARED_ROWS, t.cols)
    dlog_ratio_of_few = t.sums(64, SHARED_ROWS)

    def forward(variant, inputs, samples=SAMPLES, **options):
        def call():
            return rsample(inputs, t.seed, samples, with_log_ratio=True, **options)

        return StaticCase(f"rsample_log_ratio{variant} forward", 1, call, "longest")

    def backward(variant, inputs, needs, grads=(dz, dlog_ratio), **options):
        def call():
            return rsample_backward(*grads, inputs, t.seed, needs, samples=len(grads[0]), **options)

        return StaticCase(f"rsample_log_ratio{variant} backward", 1, call, "longest")

    return [
        forward("", t.q),
        forward(" antithetic", t.q, antithetic=True),
        forward(" flat", t.q, improper_prior=True),
        forward(" prior", t.q_and_prior),
        backward("", t.q, OF_Q),
        backward(" antithetic", t.q, OF_Q, antithetic=True),
        backward(" path", t.q, OF_Q, gradient="path"),
        backward(" dreg", t.q, OF_Q, gradient="dreg"),
        backward(" prior", t.q_and_prior, OF_ALL),
        forward(" shared", few, samples=64),
        backward(" shared", few, OF_Q, grads=(dz_of_few, dlog_ratio_of_few)),
    ]


def with_kl(t):
    return [case for inputs in (t.q, t.q_and_prior) for case in passes_with_kl(inputs, t)]


def passes_with_kl(inputs, t):
    prior, needs, operands = ("", OF_Q, (3, 5)) if inputs is t.q else (" prior", OF_ALL, (5, 9))
    forward = StaticCase(
        f"rsample_kl{prior} forward", operands[0], lambda: rsample_kl(*inputs, t.seed, False)
    )
    backward = StaticCase(
        f"rsample_kl{prior} backward",
        operands[1],
        lambda: rsample_kl_backward(t.full(), t.rows, *inputs, t.seed, None, needs),
    )
    return [forward, backward]
