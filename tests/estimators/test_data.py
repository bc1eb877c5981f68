"""Data that a likelihood cannot have, of floats: said where a look makes nobody wait."""

import itertools
import warnings

import pytest
import torch

from fused_elbo import (
    bernoulli_nll,
    discretized_mix_logistic_nll,
    elbo_loss,
    gaussian_nll,
    iwae_loss,
    poisson_nll,
)
from fused_elbo.estimators.dispatch import likelihood_calls
from helpers.machine import KERNELS, ON_GPU

IMPLS = pytest.mark.parametrize("impl", [KERNELS, "reference", "auto"])
CPU = pytest.mark.skipif(ON_GPU, reason="a look at values on a GPU makes the host wait")
LOGITS = torch.tensor([[2.0, -1.0, 3.0]] * 4)
GREY = torch.tensor([[200.0, 10.0, 255.0]] * 4)


@IMPLS
@CPU
@pytest.mark.kernels
class TestBernoulli:
    @pytest.fixture(autouse=True)
    def first_call(self, monkeypatch):
        monkeypatch.setattr(likelihood_calls, "unit_calls", itertools.count())

    def test_the_first_calls_are_looked_at_and_then_one_of_as_many(self, impl):
        said = []
        for call in range(3 * likelihood_calls.LOOKED_AT + 1):
            with warnings.catch_warnings(record=True) as found:
                warnings.simplefilter("always")
                bernoulli_nll(LOGITS, GREY, impl=impl)
            said += [call] * len(found)
        assert said == [*range(100), 100, 200, 300]

    @pytest.mark.parametrize(
        "call",
        [
            lambda x, impl: bernoulli_nll(LOGITS, x, impl=impl),
            lambda x, impl: elbo_loss(LOGITS, x, kl=x[:, 0], impl=impl),
            lambda x, impl: elbo_loss(LOGITS, x, kl=x[:, 0], beta=torch.ones(()), impl=impl),
            lambda x, impl: elbo_loss(LOGITS, x, kl=x[:, 0], reduction="none", impl=impl),
            lambda x, impl: iwae_loss(LOGITS.expand(2, 4, 3), x, torch.zeros(2, 4), impl=impl),
        ],
        ids=["nll", "loss", "loss, a learned beta", "losses", "iwae"],
    )
    def test_grey_values(self, call, impl):
        with pytest.warns(UserWarning, match=r"negative.*nats.*\[0, 1\].*x / 255") as found:
            call(GREY, impl)
        assert {w.filename for w in found} == {__file__}  # the caller's line
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            call(GREY / 255, impl)

    def test_it_is_the_loss_of_sure_predictions(self, impl):
        """No rounding error is below zero."""
        x = torch.cat((torch.ones(500), torch.zeros(500), torch.rand(1000))).expand(3, 2000)
        sure = torch.tensor([20.0, 100.0, 3e4])[:, None] * (2 * x - 1).sign()
        logits = torch.where((x == 0) | (x == 1), sure, torch.logit(x))
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            assert bernoulli_nll(logits[:, :1000], x[:, :1000], impl=impl).min() >= 0
            bernoulli_nll(logits, x, impl=impl)
            bernoulli_nll(logits[:0], x[:0], impl=impl)

    def test_others_may_be_negative(self, impl):
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            assert gaussian_nll(GREY, GREY, -9.0, impl=impl).max() < 0
            assert poisson_nll(GREY.log(), -GREY, impl=impl).isnan().all()


@IMPLS
@CPU
@pytest.mark.kernels
class TestLevels:
    """The mixture of logistics has levels of [-1, 1]."""

    params = torch.zeros(2, 20, 3)
    levels = torch.randint(256, (2, 3, 3), generator=torch.Generator().manual_seed(1)).float()

    def test_of_0_to_255(self, impl):
        with pytest.raises(ValueError, match=r"x must be in \[-1, 1\].*2 \* x / 255 - 1"):
            discretized_mix_logistic_nll(self.params, self.levels, 2, impl=impl)
        with pytest.raises(ValueError, match=r"2 \* x / 31 - 1"):
            discretized_mix_logistic_nll(self.params, self.levels // 8, 2, bits=5, impl=impl)

    def test_of_0_to_1(self, impl):
        with pytest.warns(UserWarning, match=r"\[0, 1\].*2 \* x - 1"):
            discretized_mix_logistic_nll(self.params, self.levels / 255, 2, impl=impl)

    def test_as_they_should_be(self, impl):
        bright = 2 * (128 + self.levels // 2) / 255 - 1
        assert bright.min() >= 0
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            for x in (2 * self.levels / 255 - 1, bright, bright.bfloat16(), bright[:0]):
                discretized_mix_logistic_nll(self.params[: len(x)], x, 2, impl=impl)
