"""Bad input of mixtures and the decomposition of the KL."""

import pytest
import torch

from helpers.bad_input import I64, IMPLS, bad, check, t

TABLE = {
    "mixture latents": bad(
        "mixture_log_prob",
        t(5, 4),
        t(3, 2),
        t(3, 2),
        says=["one D", "z (5, 4)", "mu (3, 2)", "logvar (3, 2)"],
    ),
    "mixture of latents that would broadcast": bad(
        "mixture_log_prob", t(5, 1), t(3, 2), t(3, 2), says=["one D", "z (5, 1)", "mu (3, 2)"]
    ),
    "mixture z a number": bad("mixture_log_prob", t(), t(3, 2), t(3, 2), says=["z ()", "[..., D]"]),
    "mixture components of other shapes": bad(
        "mixture_log_prob",
        t(5, 2),
        t(3, 2),
        t(4, 2),
        says=["broadcast", "mu (3, 2)", "logvar (4, 2)"],
    ),
    "mixture components in three dimensions": bad(
        "mixture_log_prob", t(5, 2), t(1, 3, 2), t(3, 2), says=["[K, D]", "mu (1, 3, 2)"]
    ),
    "mixture one component without its dimension": bad(
        "mixture_log_prob", t(5, 2), t(2), t(2), says=["[K, D]", "mu (2,)"]
    ),
    "mixture of no components": bad(
        "mixture_log_prob", t(5, 2), t(0, 2), t(0, 2), says=["K >= 1", "mu (0, 2)"]
    ),
    "mixture log_weights": bad(
        "mixture_log_prob",
        t(5, 2),
        t(3, 2),
        t(3, 2),
        t(5),
        says=["log_weights (5,)", "[K]", "mu (3, 2)"],
    ),
    "mixture of integers": bad(
        "mixture_log_prob",
        t(5, 2),
        t(3, 2),
        torch.ones(3, 2, dtype=I64),
        error=TypeError,
        says=["logvar", "float32", "torch.int64"],
    ),
}


@IMPLS
@pytest.mark.parametrize("case", TABLE)
def test_raises_and_names_the_argument(case, impl, device):
    check(TABLE[case], impl, device)
