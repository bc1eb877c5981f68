"""Bad callables, arguments and tensors are refused by name."""

import math

import pytest
import torch

from fused_elbo.estimators.bounds import estimate
from helpers.estimates import EVERY, generator
from helpers.exact_bounds import SPACE

pytestmark = pytest.mark.usefixtures("one_thread")


def broken(change):
    """A log-likelihood, changed."""
    return lambda z: change(SPACE.log_likelihood(z), z)


BAD_CALLABLES = {
    "wrong shape": (lambda v, z: v.sum(0), ["log_likelihood(z)", "(6, 2)", "(6, 2, 3)", "(2,)"]),
    "one number a pixel": (lambda v, z: z, ["must have shape (6, 2)", "got (6, 2, 3)"]),
    "a trailing 1": (lambda v, z: v.unsqueeze(-1), ["(6, 2)", "got (6, 2, 1)"]),
    "no tensor": (lambda v, z: 0.0, ["log_likelihood(z)", "got float"]),
    "nan": (
        lambda v, z: torch.where(v == v.max(), torch.nan, v),
        ["log_likelihood(z)", "is NaN at 1 sample"],
    ),
}


@pytest.mark.parametrize("case", BAD_CALLABLES)
@EVERY
def test_bad_callable(name, case):
    change, words = BAD_CALLABLES[case]
    mu = SPACE.mu.clone().requires_grad_()
    with pytest.raises(ValueError, match="log_likelihood") as error:
        estimate(name, mu, SPACE.logvar, 6, log_likelihood=broken(change), generator=generator())
    assert [word for word in words if word not in str(error.value)] == []


def test_bad_callable_is_named_joint_where_it_is_one():
    with pytest.raises(ValueError, match=r"log_joint\(z\) must have shape \(6, 2\)"):
        estimate("iwae", *SPACE.q(), 6, log_joint=lambda z: z)


@pytest.mark.parametrize(
    ("name", "samples", "options", "kind", "words"),
    [
        ("iwae", 0, {}, ValueError, "num_samples must be at least 1, got 0"),
        ("elbo", -1, {}, ValueError, "num_samples must be at least 1, got -1"),
        ("iwae", 2.0, {}, TypeError, "num_samples must be an int.*float"),
        ("iwae", True, {}, TypeError, "num_samples must be an int.*bool"),
        ("iwae", None, {}, TypeError, "num_samples must be an int.*NoneType"),
        ("reinforce", 1, {}, ValueError, "reinforce needs num_samples >= 2, got 1"),
        ("vimco", 1, {}, ValueError, "vimco needs num_samples >= 2, got 1"),
        ("iwea", 2, {}, ValueError, "name must be one of 'elbo'.*'jackknife', got 'iwea'"),
        ("iwae", 2, {"alpha": 1}, ValueError, "iwae takes no options, got alpha"),
        ("elbo", 2, {"bits": 1}, ValueError, "elbo takes beta, free_bits.*got bits"),
        ("elbo", 2, {"free_bits_per": "x"}, ValueError, "free_bits_per must be one of.*'x'"),
        ("elbo", 2, {"free_bits": -1.0}, ValueError, "free_bits.*-1"),
        ("elbo", 2, {"beta": math.nan}, ValueError, "beta.*nan"),
        ("elbo-monte-carlo", 2, {"beta": "1"}, TypeError, "beta must be a number, got str"),
        ("miwae", 6, {"groups": 4}, ValueError, "multiple of groups, got 6 and 4"),
        ("piwae", 6, {"groups": 12}, ValueError, "multiple of groups, got 6 and 12"),
        ("miwae", 6, {"groups": 0}, ValueError, "groups.*0"),
        ("piwae", 6, {"groups": 2.0}, TypeError, "groups must be an int, got float"),
        ("ciwae", 6, {"mix": 1.5}, ValueError, "mix.*1.5"),
        ("ciwae", 6, {"mix": -0.1}, ValueError, "mix.*-0.1"),
        ("renyi", 6, {"alpha": math.nan}, ValueError, "alpha.*nan"),
        ("renyi", 6, {"alpha": "a"}, TypeError, "alpha must be a number, got str"),
        ("cubo", 6, {"order": 0}, ValueError, "order must be positive, got 0"),
        ("jackknife", 6, {"order": 6}, ValueError, "order.*6"),
        ("jackknife", 6, {"order": -1}, ValueError, "order.*-1"),
        ("jackknife", 6, {"order": 1.5}, TypeError, "order must be an int, got float"),
        ("jackknife", 60, {"order": 9}, ValueError, "order 9 with 60 samples needs .* sums"),
        ("iwae", 6, {"sampling": "halton"}, ValueError, "sampling must be one of.*'halton'"),
        ("iwae", 6, {"impl": "fast"}, ValueError, "impl must be one of.*'fast'"),
        ("iwae", 6, {"prior_mu": torch.zeros(4).double()}, ValueError, r"prior_mu \(4,\)"),
        ("iwae", 6, {"log_joint": sum}, ValueError, "exactly one of log_likelihood and log_joint"),
        ("iwae", 6, {"log_likelihood": None}, ValueError, "exactly one of log_likelihood and"),
        (
            "iwae",
            6,
            {"log_likelihood": None, "log_joint": SPACE.log_joint, "prior_mu": SPACE.mu},
            ValueError,
            "prior_mu and prior_logvar go with log_likelihood",
        ),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, (str, int, float)) else "",
)
def test_bad_argument(name, samples, options, kind, words):
    arguments = {"log_likelihood": SPACE.log_likelihood} | options
    with pytest.raises(kind, match=words):
        estimate(name, *SPACE.q(), samples, **arguments)


def test_bad_tensors():
    with pytest.raises(ValueError, match=r"mu \(3, 4\), logvar \(3, 5\)"):
        estimate("iwae", torch.zeros(3, 4), torch.zeros(3, 5), log_likelihood=sum)
    with pytest.raises(TypeError, match=r"mu must have one of the dtypes.*int64"):
        estimate("iwae", torch.zeros(3, 4).long(), torch.zeros(3, 4), log_likelihood=sum)
