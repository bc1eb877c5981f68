"""Which launches are compiled: every kernel, as its launcher launches it on large problems."""

import functools

import torch

from fused_elbo.kernels.triton.bernoulli_nll import launch_bernoulli_nll as bernoulli
from fused_elbo.kernels.triton.categorical_nll import launch_categorical_nll as categorical
from fused_elbo.kernels.triton.discretized_mix_logistic_nll import (
    launch_discretized_mix_logistic_nll as mix_logistic,
)
from fused_elbo.kernels.triton.elbo_loss import launch_total, scale_
from fused_elbo.kernels.triton.gaussian_kl import launch_gaussian_kl as kl
from fused_elbo.kernels.triton.gaussian_nll import launch_gaussian_nll as nll
from fused_elbo.kernels.triton.gaussian_rsample import launch_rsample as rsample
from fused_elbo.kernels.triton.gaussian_rsample import launch_rsample_backward as rsample_backward
from fused_elbo.kernels.triton.importance_weights import importance_weights
from fused_elbo.kernels.triton.laplace_nll import launch_laplace_nll as laplace
from fused_elbo.kernels.triton.launch import recording
from fused_elbo.kernels.triton.marginals_log_prob import (
    marginals_log_prob,
    marginals_log_prob_backward,
)
from fused_elbo.kernels.triton.mixture_log_prob import mixture_log_prob, mixture_log_prob_backward
from fused_elbo.kernels.triton.poisson_nll import launch_poisson_nll as poisson
from fused_elbo.kernels.triton.posterior import (
    posterior_kl,
    posterior_kl_backward,
    posterior_sample_kl,
    posterior_sample_kl_backward,
)
from fused_elbo.kernels.triton.rsample_kl import rsample_kl, rsample_kl_backward

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}
ROWS = 2**16  # enough for the tile that large problems get
COLUMNS = (64, 1024)
COMPONENTS = 4096  # of a mixture, and rows: one pass over all pairs
# Samples of the kernels that loop over them: more than one, which would be compiled in.
SAMPLES = 4


def cases(dtype, cols):
    """name -> (full-size operands read + written, a call of the launcher)."""

    def full(*samples):
        return torch.empty(*samples, ROWS, cols, dtype=dtype)

    acc = torch.float64 if dtype == torch.float64 else torch.float32
    a, b, c, d, grad = full(), full(), full(), full(), torch.empty(ROWS, dtype=acc)
    seed, classes = torch.empty((), dtype=torch.int64), torch.empty(ROWS, dtype=torch.int64)
    q, q_and_prior = (a, b, None, None), (a, b, c, d)
    dlog_ratio = torch.empty(SAMPLES, ROWS, dtype=acc)
    recon_samples = full(SAMPLES)
    flat_samples = recon_samples.view(-1, cols)
    grad_samples = torch.empty(SAMPLES * ROWS, dtype=acc)

    parameters = torch.empty(ROWS, 2 * cols, dtype=dtype), None, None, None
    forms = {
        "clamped logvar": (3, 5, parameters, "clamped_logvar", 0.0, 0.0),
        "log std": (5, 9, q_and_prior, "log_std", 0.0, 0.0),
        "soft clamp": (5, 9, q_and_prior, "log_std", 5.0, 0.01),
    }

    if dtype == torch.float64:  # 96 bytes of stack a thread in backward, where nobody trains
        del forms["soft clamp"]

    def posterior_samples():
        """Forward and backward of the forms that the literature has."""
        for name, (read, through, inputs, *form) in forms.items():
            options, needs = (None, seed, *form, False), [t is not None for t in inputs]
            yield (
                f"posterior_sample_kl {name} forward",
                (read, functools.partial(posterior_sample_kl, *inputs, *options)),
            )
            given = full(), grad, *inputs, *options, None, needs
            yield (
                f"posterior_sample_kl {name} backward",
                (through, functools.partial(posterior_sample_kl_backward, *given)),
            )

    def of_variances():
        """Not in float64, whose logarithm takes 16 bytes of stack a thread."""
        if dtype != torch.float64:
            options = *q, "variance", 0.0, 0.0, False
            yield "posterior_kl of variances forward", (2, lambda: posterior_kl(*options))
            backward = functools.partial(posterior_kl_backward, grad, *options, both)
            yield "posterior_kl of variances backward", (4, backward)

    mixture = a[:COMPONENTS], b[:COMPONENTS], c[:COMPONENTS], None, None
    of_latents = torch.empty(cols, COMPONENTS, dtype=acc)
    grad_mixture, of_components = grad[:COMPONENTS], [False, True, True, False]

    # An RGB image of ``cols`` pixels, with ten mixtures.
    image = torch.empty(64, 100, cols, dtype=dtype), torch.empty(64, 3, cols, dtype=dtype)
    image = *image, 1 / 255, 0.999, 0.0
    grad_pixels = torch.empty(64, cols, dtype=acc)

    def log_ratio(inputs, **options):
        return lambda: rsample(inputs, seed, SAMPLES, with_log_ratio=True, **options)

    def log_ratio_backward(inputs, needs, **options):
        return lambda: rsample_backward(
            recon_samples, dlog_ratio, inputs, seed, needs, samples=SAMPLES, **options
        )

    two, both, all_four = (True, True, False), (True, True, False, False), (True,) * 4
    recon = (True, False, False)
    fused = {"scale": 0.5, "values": "total"}
    return {
        "gaussian_log_prob forward": (3, lambda: nll(a, b, c, 0.0, -1, values="rows")),
        "gaussian_log_prob backward": (
            6,
            lambda: nll(a, b, c, 0.0, -1, dnll=grad, needs=(True,) * 3),
        ),
        "gaussian_kl forward": (2, lambda: kl(q)),
        "gaussian_kl backward": (4, lambda: kl(q, grad=grad, needs=both)),
        "gaussian_kl prior forward": (4, lambda: kl(q_and_prior)),
        "gaussian_kl prior backward": (8, lambda: kl(q_and_prior, grad=grad, needs=all_four)),
        "gaussian_rsample forward": (3, lambda: rsample(q, seed, 1, with_log_ratio=False)),
        "gaussian_rsample backward": (
            4,
            lambda: rsample_backward(c[None], None, (None, *q[1:]), seed, both, samples=1),
        ),
        "gaussian_rsample samples forward": (
            1,
            lambda: rsample(q, seed, SAMPLES, with_log_ratio=False),
        ),
        "gaussian_rsample samples backward": (
            1,
            lambda: rsample_backward(
                recon_samples, None, (None, *q[1:]), seed, both, samples=SAMPLES
            ),
        ),
        "rsample_log_ratio forward": (1, log_ratio(q)),
        "rsample_log_ratio antithetic forward": (1, log_ratio(q, antithetic=True)),
        "rsample_log_ratio flat forward": (1, log_ratio(q, flat=True)),
        "rsample_log_ratio prior forward": (1, log_ratio(q_and_prior)),
        "rsample_log_ratio backward": (1, log_ratio_backward(q, both)),
        "rsample_log_ratio antithetic backward": (1, log_ratio_backward(q, both, antithetic=True)),
        "rsample_log_ratio path backward": (1, log_ratio_backward(q, both, gradient="path")),
        "rsample_log_ratio dreg backward": (1, log_ratio_backward(q, both, gradient="dreg")),
        "rsample_log_ratio prior backward": (1, log_ratio_backward(q_and_prior, all_four)),
        "rsample_log_ratio shared forward": (
            1,
            lambda: rsample((a[:64], b[:64], None, None), seed, 64, with_log_ratio=True),
        ),
        "rsample_log_ratio shared backward": (
            1,
            lambda: rsample_backward(
                torch.empty(64, 64, cols, dtype=dtype),
                dlog_ratio.new_empty(64, 64),
                (a[:64], b[:64], None, None),
                seed,
                both,
                samples=64,
            ),
        ),
        "rsample_kl forward": (3, lambda: rsample_kl(*q, seed, False)),
        "rsample_kl backward": (5, lambda: rsample_kl_backward(c, grad, *q, seed, None, both)),
        "rsample_kl prior forward": (5, lambda: rsample_kl(*q_and_prior, seed, False)),
        "rsample_kl prior backward": (
            9,
            lambda: rsample_kl_backward(full(), grad, *q_and_prior, seed, None, all_four),
        ),
        **dict(posterior_samples()),
        "posterior_kl of elements forward": (
            4 + acc.itemsize // dtype.itemsize,  # in the dtype of sums
            lambda: posterior_kl(*q_and_prior, "log_std", 0.0, 0.0, True),
        ),
        "posterior_kl of elements backward": (
            9,
            lambda: posterior_kl_backward(
                full(), *q_and_prior, "log_std", 0.0, 0.0, True, all_four
            ),
        ),
        **dict(of_variances()),
        "gaussian_nll forward": (2, lambda: nll(a, b, None, 0.0, 1, values="rows")),
        "gaussian_nll backward": (3, lambda: nll(a, b, None, 0.0, 1, dnll=grad, needs=recon)),
        "gaussian_nll forward + gradient": (
            3,
            lambda: nll(a, b, None, 0.0, 1, needs=recon, **fused),
        ),
        "gaussian_nll learned forward": (3, lambda: nll(a, b, c, 0.0, 1, values="rows")),
        "gaussian_nll learned backward": (
            5,
            lambda: nll(a, b, c, 0.0, 1, dnll=grad, needs=(True, False, True)),
        ),
        "gaussian_nll learned forward + gradient": (
            5,
            lambda: nll(a, b, c, 0.0, 1, needs=(True, False, True), **fused),
        ),
        "gaussian_nll samples forward": (
            2,
            lambda: nll(flat_samples, b, None, 0.0, 1, values="rows"),
        ),
        "gaussian_nll samples backward": (
            3,
            lambda: nll(flat_samples, b, None, 0.0, 1, dnll=grad_samples, needs=recon),
        ),
        "bernoulli_nll samples forward": (
            2,
            lambda: bernoulli(flat_samples, b, False, values="rows"),
        ),
        "bernoulli_nll samples backward": (
            3,
            lambda: bernoulli(flat_samples, b, False, dnll=grad_samples, needs=two[1:]),
        ),
        "bernoulli_nll forward": (2, lambda: bernoulli(a, b, False, values="rows")),
        "bernoulli_nll backward": (3, lambda: bernoulli(a, b, False, dnll=grad, needs=two[1:])),
        "bernoulli_nll forward + gradient": (
            3,
            lambda: bernoulli(a, b, False, needs=two[1:], **fused),
        ),
        "bernoulli_nll probabilities forward": (
            2,
            lambda: bernoulli(a, b, True, values="total"),
        ),
        "bernoulli_nll probabilities backward": (
            3,
            lambda: bernoulli(a, b, True, dnll=grad, needs=two[1:]),
        ),
        "bernoulli_nll probabilities forward + gradient": (
            3,
            lambda: bernoulli(a, b, True, needs=two[1:], **fused),
        ),
        "laplace_nll forward": (2, lambda: laplace(a, b, None, 0.0, values="rows")),
        "laplace_nll backward": (3, lambda: laplace(a, b, None, 0.0, dnll=grad, needs=recon)),
        "laplace_nll forward + gradient": (
            3,
            lambda: laplace(a, b, None, 0.0, needs=recon, **fused),
        ),
        "laplace_nll learned forward + gradient": (
            5,
            lambda: laplace(a, b, c, 0.0, needs=(True, False, True), **fused),
        ),
        "poisson_nll forward": (2, lambda: poisson(a, b, values="rows")),
        "poisson_nll backward": (3, lambda: poisson(a, b, dnll=grad, needs=two[1:])),
        "poisson_nll forward + gradient": (3, lambda: poisson(a, b, needs=two[1:], **fused)),
        # No contract of bytes: two rows' int64 classes are a 128-bit access too.
        "categorical_nll forward": (None, lambda: categorical(a, classes, values="rows")),
        "categorical_nll backward": (
            None,
            lambda: categorical(a, classes, dnll=grad, needs=recon),
        ),
        "categorical_nll forward + gradient": (
            None,
            lambda: categorical(a, classes, needs=recon, **fused),
        ),
        "mixture_log_prob forward": (None, lambda: mixture_log_prob(*mixture)),
        "mixture_log_prob backward of z": (
            None,
            lambda: mixture_log_prob_backward(
                grad_mixture, *mixture, grad_mixture, [True, False, False, False]
            ),
        ),
        "mixture_log_prob backward of components": (
            None,
            lambda: mixture_log_prob_backward(grad_mixture, *mixture, grad_mixture, of_components),
        ),
        "marginals_log_prob forward": (None, lambda: marginals_log_prob(*mixture)),
        "marginals_log_prob stratified forward": (
            None,
            lambda: marginals_log_prob(*mixture[:4], 2 * COMPONENTS),
        ),
        "marginals_log_prob backward of z": (
            None,
            lambda: marginals_log_prob_backward(
                grad_mixture, *mixture, of_latents, [True, False, False, False]
            ),
        ),
        "marginals_log_prob backward of components": (
            None,
            lambda: marginals_log_prob_backward(grad_mixture, *mixture, of_latents, of_components),
        ),
        "discretized_mix_logistic_nll forward": (None, lambda: mix_logistic(*image, values="rows")),
        "discretized_mix_logistic_nll backward": (
            None,
            lambda: mix_logistic(*image, dnll=grad_pixels, needs=[True]),
        ),
        "discretized_mix_logistic_nll forward + gradient": (
            None,
            lambda: mix_logistic(*image, scale=0.5, values="total", needs=[True]),
        ),
        "elbo_loss total": (
            None,
            lambda: launch_total(nll(a, b, None, 0.0, 1, values="total")[0], grad, 1.0, 1.0, 1.0),
        ),
        "elbo_loss scale": (2, lambda: scale_(a, grad[0])),
        "importance_weights": (
            None,
            lambda: importance_weights(dlog_ratio, dlog_ratio, 0.0),
        ),
        "importance_weights of 64": (
            None,
            lambda: importance_weights(grad.view(64, -1), grad.view(64, -1), 0.0),
        ),
    }


def record(call):
    """The last launch that ``call`` makes: (kernel, arguments, constexprs). Nothing runs."""
    with recording() as launches:
        call()
    return launches[-1]
