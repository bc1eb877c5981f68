"""Calls of every registered op: operands that are there and that are None, all needs and some."""

import torch

from fused_elbo.kernels.backends import backend_of

BF16, F32 = torch.bfloat16, torch.float32


def op_calls(device, rows=3, cols=5):
    """{name: [arguments, ...]}, of random numbers."""
    t = lambda *shape, dtype=F32: torch.randn(shape, device=device, dtype=dtype)  # noqa: E731
    seed = torch.tensor(5, device=device)
    a, b, c, d = (t(rows, cols) for _ in range(4))
    e, several, both = t(rows), t(2 * rows, cols), t(2, rows, cols)
    column = t(rows, 1)
    many_counts = 30 * b.abs().round()
    counts, classes = b.abs().round(), torch.arange(rows, device=device) % cols
    half = a.to(BF16)
    no = [False, False]
    both_halves = t(rows, 2 * cols)
    clamped, plain, soft = (
        ("clamped_logvar", 0.0, 0.0),
        ("log_std", 0.0, 0.0),
        ("log_std", 5.0, 0.01),
    )
    # Backends may keep the noise of one sample.
    keeps = [False, True] if backend_of(a).keeps_noise else [False]
    return {
        "gaussian_kl": [(a, b, None, None), (a, b, c, d), (half, half, None, None)],
        "gaussian_kl_backward": [
            (e, a, b, None, None, [True, True, False, False]),
            (e, a, b, c, d, [False, True, True, True]),
        ],
        "gaussian_nll": [
            (a, b, None, 0.5, 1),
            (a, b, column, 0.0, 1),
            (a, b, c, 0.0, -1),
            (several, b, None, 0.5, 1),
        ],
        "gaussian_nll_backward": [
            (e, a, b, None, 0.5, 1, [True, False, False]),
            (e, a, b, column, 0.0, 1, [True, True, True]),
            (e, a, b, c, 0.0, -1, [False, True, True]),
            (t(2 * rows), several, b, t(2 * rows, 1), 0.0, 1, [True, True, True]),
        ],
        "bernoulli_nll": [
            (a, b, False),
            (half, half, False),
            (several, b, False),
            (a.sigmoid(), b.sigmoid(), True),
        ],
        "bernoulli_nll_backward": [
            (e, a, b, False, [True, True]),
            (e, a, b, False, [False, True]),
            (t(2 * rows), several, b, False, [True, True]),
            (e, a.sigmoid(), b.sigmoid(), True, [True, True]),
        ],
        "laplace_nll": [
            (a, b, None, 0.5),
            (a, b, column, 0.0),
            (several, b, t(2 * rows, cols), 0.0),
        ],
        "laplace_nll_backward": [
            (e, a, b, None, 0.5, [True, False, False]),
            (e, a, b, column, 0.0, [True, True, True]),
            (e, a, b, c, 0.0, [False, True, True]),
        ],
        "poisson_nll": [(a, counts), (half, counts), (several, counts)],
        "poisson_nll_backward": [(e, a, counts, [True]), (t(2 * rows), several, counts, [True])],
        "negative_binomial_nll": [
            (a, counts, None, None, 0.5, False),
            (a, counts, column, None, 0.0, True),
            (several, counts, t(1, cols), t(2 * rows, cols), 0.0, False),
        ],
        "negative_binomial_nll_backward": [
            (e, a, counts, None, None, 0.5, False, [True, False, False]),
            (c, a, counts, column, None, 0.0, True, [True, True, False]),
            (e, a, many_counts, t(1, cols), c, 0.0, False, [True] * 3),
            (
                t(2 * rows),
                several,
                counts,
                t(2 * rows, cols),
                None,
                0.0,
                False,
                [False, True, False],
            ),
        ],
        "softmax_negative_binomial_nll": [
            (a, counts, None, column, None, 0.5),
            (a, many_counts, t(1, cols), column, c, 0.0),
            (several, counts, t(2 * rows, cols), t(2 * rows, 1), None, 0.0),
        ],
        "softmax_negative_binomial_nll_backward": [
            (e, a, counts, None, column, None, 0.5, [True, False, False, False]),
            (e, a, many_counts, t(1, cols), column, c, 0.0, [True] * 4),
            (e, a, counts, column, column, None, 0.0, [False, True, True, False]),
        ],
        "softmax_negative_binomial_loss": [
            (a, counts, t(1, cols), column, c, 0.0, 0.5, [True] * 4),
            (a, counts, None, column, None, 0.5, 1.0, [False] * 4),
        ],
        "multinomial_nll": [(a, counts), (half, counts), (several, counts)],
        "multinomial_nll_backward": [
            (e, a, many_counts, [True]),
            (t(2 * rows), several, counts, [True]),
        ],
        "categorical_nll": [(a, classes), (half, classes), (several, classes)],
        "categorical_nll_backward": [
            (e, a, classes, [True]),
            (t(2 * rows), several, classes, [True]),
        ],
        "gaussian_rsample": [
            (a, b, seed, 3, False),
            (half, half, seed, 2, False),
            *((a, b, seed, None, keep) for keep in keeps),
        ],
        "gaussian_rsample_backward": [
            (both, b, seed, 2, None, [True, True]),
            (t(1, rows, cols), b, seed, 1, None, [False, True]),
            (c, b, seed, None, None, [True, True]),
            *((c, b, seed, None, d, [True, True]) for keep in keeps if keep),
        ],
        "rsample_log_ratio": [
            (a, b, None, None, seed, 0, 2, "total", False, False),
            (a, b, c, d, seed, 3, 4, "total", False, True),
            (half, half, None, None, seed, 0, 1, "path", True, False),
        ],
        "rsample_log_ratio_backward": [
            (both, t(2, rows), a, b, c, d, seed, 0, 2, "dreg", False, False, [True] * 4),
            (None, t(2, rows), a, b, None, None, seed, 1, 2, "total", True, True, [True] * 2 + no),
            (both, None, a, b, c, d, seed, 0, 2, "path", False, False, [False, *[True] * 3]),
        ],
        "mixture_log_prob": [
            (a, several, several, t(2 * rows)),
            (half, half, half, None),
        ],
        "mixture_log_prob_backward": [
            (e, a, several, several, t(2 * rows), e, [True] * 4),
            (e, a, b, c, None, e, [True, *[False] * 3]),
            (e, a, b, c, None, e, [False, True, True, False]),
        ],
        "marginals_log_prob": [
            (a, several, several, t(2 * rows)),
            (half, half, half, None),
        ],
        "marginals_log_prob_backward": [
            (e, a, several, several, t(2 * rows), t(cols, rows), [True] * 4),
            (e, a, b, c, None, t(cols, rows), [True, *[False] * 3]),
            (e, a, b, c, None, t(cols, rows), [False, True, True, False]),
        ],
        "kl_decomposition": [
            (a, b, c, several, several, None),
            (half, half, half, None, None, 2 * rows),
        ],
        "kl_decomposition_backward": [
            (e, None, e, a, b, c, several, several, None, t(cols + 1, rows), [True] * 5),
            (e, e, e, a, b, c, None, None, 2 * rows, t(cols + 1, rows), [True] * 3 + no),
            (
                None,
                e,
                None,
                a,
                b,
                c,
                None,
                None,
                None,
                t(cols + 1, rows),
                [False, *[True] * 2, *no],
            ),
            (e, e, e, a, b, c, several, several, None, t(cols + 1, rows), [*no, True, *no]),
        ],
        "discretized_mix_logistic_nll": [
            (t(rows, 20, cols), t(rows, 3, cols), 1 / 255, 0.999, 0.0),
            (t(rows, 10, cols, dtype=BF16), t(rows, 3, cols), 1 / 31, 0.99, 1e-5),
        ],
        "discretized_mix_logistic_nll_backward": [
            (a, t(rows, 20, cols), t(rows, 3, cols), 1 / 255, 0.999, 0.0, [True]),
        ],
        "discretized_mix_logistic_loss": [
            (t(rows, 20, cols), t(rows, 3, cols), 1 / 255, 0.999, 0.0, 0.5, [True]),
            (t(rows, 20, cols), t(rows, 3, cols), 1 / 255, 0.999, 0.0, 1.0, [False]),
        ],
        "posterior_kl": [
            (both_halves, None, None, None, *clamped, False),
            (a, b, c, d, *soft, True),
            (half, half, c, d, *plain, False),
            (a, b, None, None, *plain, True),
            (a, b.abs() + 0.5, c, d.abs() + 0.5, "std", 0.0, 0.0, False),
        ],
        "posterior_kl_backward": [
            (e, both_halves, None, both_halves, None, *clamped, False, [True, False] * 2),
            (a, a, b, c, d, *soft, True, [True] * 4),
            (e, a, b, c, d, "log_std", 0.0, 0.01, False, [False, True, True, False]),
            (e, a, b.abs() + 0.5, None, None, "variance", 0.0, 0.0, False, [True, True, *no]),
        ],
        "posterior_sample_kl": [
            (both_halves, None, None, None, c, None, *clamped, False),
            (a, b, c, d, None, seed, *soft, False),
            *((half, a, c, d, None, seed, *plain, keep) for keep in keeps),
        ],
        "posterior_sample_kl_backward": [
            (
                c,
                e,
                both_halves,
                None,
                None,
                None,
                d,
                None,
                *clamped,
                False,
                None,
                [True, *no, False],
            ),
            (c, e, a, b, c, d, None, seed, *soft, False, None, [True] * 4),
            (None, e, a, b, c, d, None, seed, *plain, False, None, [False, False, True, True]),
            (c, None, a, b, None, None, None, seed, *plain, False, None, [True, True, *no]),
            *((c, e, a, b, c, d, None, seed, *plain, True, d, [True] * 4) for k in keeps if k),
        ],
        "importance_weights": [
            (t(4, rows), None, 0.0),
            (t(4, rows), t(4, rows), 0.5),
            (t(1, rows), t(1, rows), 1.0),
        ],
        "rsample_kl": [
            (a, b, None, None, seed, False),
            (a, b, c, d, seed, False),
            *((half, a, None, None, seed, keep) for keep in keeps),
        ],
        "rsample_kl_backward": [
            (c, e, a, b, None, None, seed, None, [True, True, False, False]),
            (None, e, a, b, c, d, seed, None, [True, True, True, True]),
            (c, None, a, b, None, None, seed, None, [True, False, False, False]),
            *((c, e, a, b, c, d, seed, d, [True] * 4) for keep in keeps if keep),
        ],
        "elbo_loss": [
            (a, b, None, None, 0.0, e, "bernoulli", 0.5, 0.1, [True, True]),
            (a, b, None, None, 0.5, None, "gaussian", 1.0, 1.0, [False, False, False]),
            (a, b, column, None, 0.0, e, "gaussian", 1.0, 1.0, [True, False, True]),
            (a, b, c, None, 0.0, e, "gaussian", 1.0, 1.0, [True, True, True]),
            (several, b, None, None, 0.0, e, "bernoulli", 1.0, 1.0, [True, True]),
            (a, b, c, None, 0.0, e, "laplace", 1.0, 1.0, [True, True, True]),
            (a, counts, None, None, 0.0, e, "poisson", 1.0, 1.0, [True]),
            (several, classes, None, None, 0.0, e, "categorical", 1.0, 1.0, [True]),
        ],
        "scale_": [(t(rows, cols), torch.tensor(2.0, device=device))],
    }


def results_of(calls):
    """Every tensor that the ops return for these arguments, in order."""
    for name, several in calls.items():
        op = getattr(torch.ops.fused_elbo, name).default
        for arguments in several:
            made = op(*arguments)
            yield from [made] if isinstance(made, torch.Tensor) else made or []
