"""Forward + backward of each op against eager PyTorch: launchers alone, and under autograd.

``python tests/numba_draft/measure.py [threads] [op ...]``: microseconds a call, nanoseconds an
element of the launchers, and how many times as long eager takes. The contenders take turns, and
medians are taken, for other programs run on the machine.
"""

import statistics
import sys
import time

import torch
import torch.nn.functional as F

import fused_elbo.kernels.numba as kernels
from fused_elbo.estimators import reference

SIZES = [(64, 16), (64, 256), (4096, 16), (4096, 256)]
SAMPLES = 8


def function_of(forward, backward, outputs):
    """An autograd function around two launchers, and nothing else."""

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *inputs):
            ctx.save_for_backward(*inputs)
            result = forward(*inputs)
            return tuple(result) if outputs > 1 else result

        @staticmethod
        def backward(ctx, *upstream):
            needs = list(ctx.needs_input_grad)
            gradients = iter(backward(upstream, ctx.saved_tensors, needs))
            return tuple(next(gradients) if n else None for n in needs)

    return Function.apply


def draw_seed():
    return torch.randint(2**63 - 1, (), dtype=torch.int64)


def operation(name, rows, cols):
    """(inputs, upstream, forward, backward, eager) of an op."""
    a, b, c, d, e = (torch.randn(rows, cols) for _ in range(5))
    row = torch.randn(rows)
    seed = draw_seed()
    if name == "gaussian_kl":
        return (
            (a, b), (row,),
            lambda mu, logvar: kernels.gaussian_kl(mu, logvar, None, None),
            lambda up, inputs, needs: kernels.gaussian_kl_backward(
                *up, *inputs, None, None, [*needs, False, False]
            ),
            lambda mu, logvar: -0.5 * (1 + logvar - mu.pow(2) - logvar.exp()).sum(-1),
        )  # fmt: skip
    if name == "gaussian_kl_prior":
        return (
            (a, b, c, d), (row,), kernels.gaussian_kl,
            lambda up, inputs, needs: kernels.gaussian_kl_backward(*up, *inputs, needs),
            reference.gaussian_kl,
        )  # fmt: skip
    if name == "gaussian_log_prob":
        return (
            (a, b, c), (row,),
            lambda recon, x, logvar: kernels.gaussian_nll(recon, x, logvar, 0.0, -1),
            lambda up, inputs, needs: kernels.gaussian_nll_backward(*up, *inputs, 0.0, -1, needs),
            lambda mu, x, logvar: torch.distributions.Normal(
                mu, (0.5 * logvar).exp(), validate_args=False
            ).log_prob(x).sum(-1),
        )  # fmt: skip
    if name == "gaussian_nll":
        return (
            (a,), (row,),
            lambda recon: kernels.gaussian_nll(recon, b, None, 0.0, 1),
            lambda up, inputs, needs: kernels.gaussian_nll_backward(
                *up, *inputs, b, None, 0.0, 1, [True, False, False]
            ),
            lambda recon: 0.5 * F.mse_loss(recon, b, reduction="none").sum(-1),
        )  # fmt: skip
    if name == "bernoulli_nll":
        x = b.sigmoid()
        return (
            (a,), (row,),
            lambda logits: kernels.bernoulli_nll(logits, x, False),
            lambda up, inputs, needs: kernels.bernoulli_nll_backward(
                *up, *inputs, x, False, [True, False]
            ),
            lambda logits: F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(-1),
        )  # fmt: skip
    if name == "rsample":
        return (
            (a, b), (e,),
            lambda mu, logvar: kernels.rsample(mu, logvar, seed, 1)[0],
            lambda up, inputs, needs: kernels.rsample_backward(
                up[0][None], inputs[1], seed, needs
            ),
            lambda mu, logvar: mu + (0.5 * logvar).exp() * torch.randn_like(mu),
        )  # fmt: skip
    if name == "rsample_kl":
        return (
            (a, b), (e, row),
            lambda mu, logvar: kernels.rsample_kl(mu, logvar, None, None, seed),
            lambda up, inputs, needs: kernels.rsample_kl_backward(
                *up, *inputs, None, None, seed, [*needs, False, False]
            ),
            lambda mu, logvar: (
                mu + (0.5 * logvar).exp() * torch.randn_like(mu),
                -0.5 * (1 + logvar - mu.pow(2) - logvar.exp()).sum(-1),
            ),
        )  # fmt: skip
    if name.startswith("rsample_log_ratio"):
        rest = seed, 0, SAMPLES, name.split(":")[1], False, False
        return (
            (a, b), (torch.randn(SAMPLES, rows, cols), torch.rand(SAMPLES, rows)),
            lambda mu, logvar: kernels.rsample_log_ratio(mu, logvar, None, None, *rest),
            lambda up, inputs, needs: kernels.rsample_log_ratio_backward(
                *up, *inputs, None, None, *rest, [*needs, False, False]
            ),
            lambda mu, logvar: reference.rsample_log_ratio(
                mu, logvar, SAMPLES, gradient=name.split(":")[1]
            ),
        )  # fmt: skip
    if name == "importance_weights":
        log_ratio = torch.randn(cols, rows)
        return (
            (log_ratio,), (row,),
            lambda log_ratio: kernels.importance_weights(log_ratio, None, 0.0)[0],
            lambda up, inputs, needs: [up[0] * inputs[0]],
            lambda log_ratio: torch.logsumexp(log_ratio, 0),
        )  # fmt: skip
    if name.startswith("elbo_loss"):
        likelihood = name.split(":")[1]
        x = b.sigmoid()
        one = torch.ones(())

        def forward(recon, kl):
            return kernels.elbo_loss(
                recon, x, None, 0.0, kl, likelihood, 1.0, 1 / rows, [True, False, False]
            )

        def fused(recon, kl):
            return forward(recon, kl)[0]

        def backward(up, inputs, needs):
            return [torch.empty_like(inputs[0]), up[0].expand(rows)]

        def eager(recon, kl):
            if likelihood == "gaussian":
                nll = 0.5 * F.mse_loss(recon, x, reduction="none").sum(-1)
            else:
                nll = F.binary_cross_entropy_with_logits(recon, x, reduction="none").sum(-1)
            return (nll + kl).mean()

        return (a, row), (one,), fused, backward, eager
    raise ValueError(name)


NAMES = [
    "gaussian_kl", "gaussian_kl_prior", "gaussian_log_prob", "gaussian_nll", "bernoulli_nll",
    "rsample", "rsample_kl", "rsample_log_ratio:total", "rsample_log_ratio:dreg",
    "importance_weights", "elbo_loss:gaussian", "elbo_loss:bernoulli",
]  # fmt: skip


def medians(functions, seconds=0.25):
    """Microseconds a call of each, taking turns."""
    for function in functions:
        function()
    start = time.perf_counter()
    for function in functions:
        function()
    calls = max(1, int(seconds / 15 / (time.perf_counter() - start)))
    times = [[] for _ in functions]
    for _ in range(15):
        for function, own in zip(functions, times, strict=True):
            start = time.perf_counter()
            for _ in range(calls):
                function()
            own.append((time.perf_counter() - start) / calls * 1e6)
    return [statistics.median(own) for own in times]


def measure(name, rows, cols):
    """Microseconds of (eager, under autograd, launchers, forward), and the elements."""
    inputs, upstream, forward, backward, eager = operation(name, rows, cols)
    leaves = [t.clone().requires_grad_() for t in inputs]
    fused = function_of(forward, backward, len(upstream))
    needs = [True] * len(inputs)

    def step(function):
        outputs = function(*leaves)
        torch.autograd.grad(outputs, leaves, upstream if len(upstream) > 1 else upstream[0])

    def launchers():
        forward(*inputs)
        backward(upstream, inputs, needs)

    contenders = lambda: step(eager), lambda: step(fused), launchers, lambda: forward(*inputs)
    return medians(contenders), rows * cols * (SAMPLES if "log_ratio" in name else 1)


def main():
    threads, *names = sys.argv[1:] or ["1"]
    torch.set_num_threads(int(threads))
    print(
        f"{'op':26}{'shape':>10}{'eager us':>11}{'autograd':>10}{'launchers':>10}{'forward':>9}"
        f"{'ns/el':>8}{'eager / autograd':>17}"
    )
    for name in names or NAMES:
        for rows, cols in SIZES:
            (eager, autograd, launchers, forward), elements = measure(name, rows, cols)
            print(
                f"{name:26}{f'{rows}x{cols}':>10}{eager:11.1f}{autograd:10.1f}{launchers:10.1f}"
                f"{forward:9.1f}{launchers * 1e3 / elements:8.2f}{eager / autograd:17.2f}"
            )


if __name__ == "__main__":
    main()
