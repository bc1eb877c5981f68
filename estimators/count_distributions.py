"""Distributions of counts, as torch.distributions and as Pyro's."""

import torch
from torch import Tensor
from torch.distributions import Distribution, Gamma, constraints
from torch.distributions import NegativeBinomial as TorchNegativeBinomial

from .dispatch import choice, likelihood_calls
from .dispatch.types import Implementation


class NegativeBinomial(TorchNegativeBinomial):
    r"""``torch.distributions.NegativeBinomial`` whose ``log_prob`` keeps its digits and is fused.

    .. math:: \log p(x) = \log \frac{\Gamma(x + r)}{\Gamma(r) \, x!} + r \log \sigma(-l)
              + x \log \sigma(l)

    for r = ``total_count`` and logits l, in nats: the mean is :math:`r e^l`. torch's own has an
    error of whole nats where r is large. Samples, mean, variance and all else are torch's.
    Equivalent PyTorch::

        torch.distributions.NegativeBinomial(total_count, probs, logits)

    Pyro asks more of a distribution than torch does, and brings it along::

        from pyro.distributions.torch_distribution import TorchDistributionMixin

        class PyroNegativeBinomial(NegativeBinomial, TorchDistributionMixin):
            pass

    Args:
        total_count, probs, logits, validate_args: as torch has them.
        impl: ``"auto"`` (kernels on CUDA and CPU tensors, else the reference), ``"triton"``,
            ``"numba"`` or ``"reference"``.

    ``log_prob`` is in the dtype of the logits, of each element, and differentiable in
    ``total_count``, ``probs`` and ``logits``.

    Raises:
        ValueError, TypeError: what torch raises; also an unknown ``impl``.

    >>> NegativeBinomial(torch.tensor(2.0), logits=torch.tensor(0.0)).log_prob(torch.tensor(0.0))
    tensor(-1.3863)
    """

    def __init__(
        self,
        total_count: float | Tensor,
        probs: Tensor | None = None,
        logits: Tensor | None = None,
        validate_args: bool | None = None,
        *,
        impl: Implementation = "auto",
    ):
        choice.check_impl(impl)
        self.impl = impl
        super().__init__(total_count, probs, logits, validate_args)

    def expand(self, batch_shape, _instance=None):
        new = self._get_checked_instance(NegativeBinomial, _instance)
        new.impl = self.impl
        return super().expand(batch_shape, _instance=new)

    def log_prob(self, value: Tensor) -> Tensor:
        """The log-likelihood of each count, in nats."""
        if self._validate_args:
            self._validate_sample(value)
        log_count = torch.log(self.total_count)
        return _log_prob(value, log_count + self.logits, log_count, self.impl)


class GammaPoisson(Distribution):
    r"""Pyro's ``GammaPoisson``: a Poisson whose rate is Gamma(concentration, rate).

    .. math:: \log p(x) = \log \frac{\Gamma(x + c)}{\Gamma(c) \, x!} + c \log \frac{r}{1 + r}
              - x \log (1 + r)

    for the concentration c and the rate r, in nats: a negative binomial of mean c / r and inverse
    dispersion c, as cell2location has it. Equivalent PyTorch::

        torch.distributions.NegativeBinomial(concentration, logits=-torch.log(rate))

    For a site of Pyro's, add its mixin as for :class:`NegativeBinomial`.

    Args:
        concentration, rate: positive, broadcast together; numbers or tensors.
        validate_args: as for all of torch.distributions; by default theirs.
        impl: as for :class:`NegativeBinomial`.

    ``log_prob`` is of each element, and differentiable in ``concentration`` and ``rate``.

    Raises:
        ValueError: arguments that are not positive, if they are validated; an unknown ``impl``.

    Kleshchevnikov et al., "Cell2location maps fine-grained cell types in spatial transcriptomics",
    Nature Biotechnology 2022.

    >>> GammaPoisson(torch.tensor(2.0), torch.tensor(1.0)).log_prob(torch.tensor(0.0))
    tensor(-1.3863)
    """

    arg_constraints = {  # noqa: RUF012  the base class has it as a property
        "concentration": constraints.positive,
        "rate": constraints.positive,
    }
    support = constraints.nonnegative_integer

    def __init__(
        self,
        concentration: float | Tensor,
        rate: float | Tensor,
        validate_args: bool | None = None,
        *,
        impl: Implementation = "auto",
    ):
        choice.check_impl(impl)
        self.impl = impl
        self._gamma = Gamma(concentration, rate, validate_args=validate_args)
        super().__init__(self._gamma.batch_shape, validate_args=validate_args)

    @property
    def concentration(self) -> Tensor:
        return self._gamma.concentration

    @property
    def rate(self) -> Tensor:
        return self._gamma.rate

    def expand(self, batch_shape, _instance=None):
        new = self._get_checked_instance(GammaPoisson, _instance)
        new.impl = self.impl
        new._gamma = self._gamma.expand(batch_shape)
        Distribution.__init__(new, new._gamma.batch_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def mean(self) -> Tensor:
        return self.concentration / self.rate

    @property
    def variance(self) -> Tensor:
        return self.mean * (1 + 1 / self.rate)

    def sample(self, sample_shape=torch.Size()) -> Tensor:  # noqa: B008  torch's
        """Counts ``[*sample_shape, *batch_shape]``."""
        with torch.no_grad():
            return torch.poisson(self._gamma.sample(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """The log-likelihood of each count, in nats."""
        if self._validate_args:
            self._validate_sample(value)
        log_count = torch.log(self.concentration)
        return _log_prob(value, log_count - torch.log(self.rate), log_count, self.impl)


def _log_prob(value, log_mean, log_theta, impl):
    shape = torch.broadcast_shapes(value.shape, log_mean.shape)
    wide = log_mean.expand(shape or (1,))
    log_theta = log_theta.expand(log_mean.shape or (1,))
    nll = likelihood_calls.negative_binomial_nll_terms(wide, value, log_theta, None, impl=impl)
    return -nll.reshape(shape).to(log_mean.dtype)
