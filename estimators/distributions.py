"""DiagonalNormal: the fused operations as a torch.distributions.Distribution."""

import math

import torch
from torch import Tensor
from torch.distributions import (
    Distribution,
    Independent,
    MultivariateNormal,
    Normal,
    constraints,
    kl_divergence,
    register_kl,
)
from torch.utils.weak import WeakTensorKeyDictionary

from .dispatch import choice, sample_calls, validate
from .dispatch.types import Implementation
from .functional import gaussian_kl, gaussian_log_prob
from .reference import reference, textbook


class DiagonalNormal(Distribution):
    r"""A Gaussian with diagonal covariance over the last dimension, from mean and log variance.

    .. math:: N(z; \mu, \mathrm{diag}\, e^{\ell})

    It stands in for ``Independent(Normal(mu, sigma), 1)``: same values, gradients and shapes,
    and on CPU tensors in float32 or float64 the same samples for the same seed, to rounding.
    Equivalent PyTorch::

        torch.distributions.Independent(Normal(mu, (0.5 * logvar).exp()), 1)

    Densities and KL divergences are the fused operations; so are samples, except on CPUs under
    ``impl="auto"``. One case differs: ``log_prob`` of a tensor that ``rsample`` or ``sample``
    returned is computed from its noise, in several operations of PyTorch, because where sigma is
    far below ``mu`` the difference of sample and mean has few digits left. If the sample, ``mu`` or
    ``logvar`` was written to since, the density is that of the current values. The noise is kept as
    long as the sample; where a kernel drew it, it is a seed.

    Pyro asks for more methods than torch does, and has a mixin with them::

        from pyro.distributions.torch_distribution import TorchDistributionMixin

        class PyroDiagonalNormal(DiagonalNormal, TorchDistributionMixin):
            pass

    Args:
        mu, logvar: ``[..., D]``, broadcast together; ``logvar`` is the **log variance**, 2 log
            sigma. float16, bfloat16, float32 or float64, of one dtype.
        loc, scale: instead of them, the mean and the standard deviation. They are also attributes.
            Pyro's ``LocScaleReparam(centered, shape_params=())`` calls the constructor with these.
        validate_args: as in all of torch.distributions, with the same default. On CUDA the check
            waits for the device.
        impl: ``"auto"`` (kernels on CUDA and CPU tensors, else the reference), ``"triton"``
            (for CUDA), ``"numba"`` (for CPUs) or ``"reference"``. On CPUs ``"auto"`` draws the
            samples of torch.distributions, those of ``torch.randn``.

    ``batch_shape`` is ``[...]`` and ``event_shape`` ``[D]``. ``log_prob``, ``entropy`` and
    ``kl_divergence`` are in nats, summed over D, in float32, or float64 for float64 arguments;
    samples are in the dtype of ``mu``. ``kl_divergence`` is registered for two DiagonalNormals, and
    in both directions for one and an ``Independent(Normal, 1)``. By torch's formulas it also takes
    a ``MultivariateNormal``, and the other ``Independent`` distributions for which torch has a
    formula, as Laplace. Where a module holds the distribution and its Parameters, a copy of the
    module has a distribution of the copied Parameters.

    Raises:
        TypeError: ``mu`` or ``logvar`` is no tensor but, for instance, a float; ``loc`` or
            ``scale`` is given alone, or together with ``mu`` or ``logvar``.
        ValueError: shapes that do not broadcast, or D = 0. If arguments are validated, also NaN in
            them, -inf in ``logvar``, and NaN or a wrong shape in a value.
        RuntimeError: ``impl="triton"`` or ``"numba"`` where its kernels cannot run.

    Kingma & Welling, "Auto-Encoding Variational Bayes", ICLR 2014, appendices B and C.2.

    >>> q = DiagonalNormal(torch.zeros(3, 2), torch.zeros(3, 2))
    >>> q.rsample((5,)).shape, q.batch_shape, q.event_shape
    (torch.Size([5, 3, 2]), torch.Size([3]), torch.Size([2]))
    >>> q.log_prob(torch.zeros(2))
    tensor([-1.8379, -1.8379, -1.8379])
    """

    arg_constraints = {  # noqa: RUF012  the base class has it as a property
        "mu": constraints.real_vector,
        "logvar": constraints.real_vector,
    }
    support = constraints.real_vector
    has_rsample = True

    def __init__(
        self,
        mu: Tensor | None = None,
        logvar: Tensor | None = None,
        validate_args: bool | None = None,
        *,
        loc: Tensor | None = None,
        scale: Tensor | None = None,
        impl: Implementation = "auto",
    ):
        if loc is not None or scale is not None:
            mu, logvar = _from_loc_and_scale(mu, logvar, loc, scale)
        if not isinstance(logvar, torch.Tensor):
            raise TypeError(
                "logvar must be a torch.Tensor of log variances, got "
                f"{type(logvar).__name__}; for a standard deviation sigma it is "
                "torch.full_like(mu, 2 * math.log(sigma))"
            )
        validate.tensors(mu=mu, logvar=logvar)
        choice.check_impl(impl)
        shape = validate.broadcast(mu=mu, logvar=logvar)
        self._mu, self._logvar = mu, logvar
        self.impl: Implementation = impl
        self._draws: WeakTensorKeyDictionary | None = None  # of the samples that are alive
        if validate_args is None:
            validate_args = self._validate_args
        # Torch cannot check the vectors of an empty batch.
        super().__init__(shape[:-1], shape[-1:], validate_args and shape.numel() > 0)
        # torch takes -inf for a real number, but it means a variance of 0, which Normal refuses.
        if self._validate_args and (logvar == -math.inf).any():
            raise ValueError("expected parameter logvar above -inf: a variance of 0 has no density")
        self._validate_args = validate_args

    # The tensors are kept as they were given: expand returns no leaf, and torch copies only leaves.
    @property
    def mu(self) -> Tensor:
        """The mean, of the distribution's shape."""
        return self._in_shape(self._mu)

    @mu.setter
    def mu(self, value: Tensor):
        self._mu = value

    @property
    def logvar(self) -> Tensor:
        """The log variance, of the distribution's shape."""
        return self._in_shape(self._logvar)

    @logvar.setter
    def logvar(self, value: Tensor):
        self._logvar = value

    def _in_shape(self, tensor):
        shape = self._extended_shape()
        same = tensor.dim() == len(shape) and tensor.shape == shape  # as in validate.broadcast
        return tensor if same else tensor.expand(shape)

    def expand(self, batch_shape, _instance=None):
        """The same distributions, broadcast to a larger batch."""
        new = self._get_checked_instance(DiagonalNormal, _instance)
        shape = torch.Size(batch_shape) + self.event_shape
        batch_shape = self.mu.expand(shape).shape[:-1]  # -1 is resolved to a size
        new._mu, new._logvar = self._mu, self._logvar
        new.impl, new._draws = self.impl, None
        super(DiagonalNormal, new).__init__(batch_shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def mean(self) -> Tensor:
        return self.mu

    @property
    def mode(self) -> Tensor:
        return self.mu

    @property
    def loc(self) -> Tensor:
        return self.mu

    @property
    def stddev(self) -> Tensor:
        return torch.exp(0.5 * self.logvar)

    @property
    def scale(self) -> Tensor:
        return self.stddev

    @property
    def variance(self) -> Tensor:
        return torch.exp(self.logvar)

    def rsample(self, sample_shape=()) -> Tensor:
        """z = mu + exp(logvar / 2) eps of shape ``[*sample_shape, ..., D]``, differentiable."""
        shape = self._extended_shape(sample_shape)
        samples = math.prod(sample_shape)
        if samples == 0:  # a grid of kernels has no dimension of 0
            return self.mu.expand(shape)
        draw = sample_calls.sampler(self.mu, samples, shape, impl=self.impl)
        z = draw(self.mu, self.logvar)
        if not torch.compiler.is_compiling():
            if self._draws is None:
                self._draws = WeakTensorKeyDictionary()
            self._draws[z] = shape, draw
        return z

    def sample(self, sample_shape=()) -> Tensor:
        """:meth:`rsample` without a gradient."""
        with torch.no_grad():
            return self.rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """log N(value; mu, diag exp logvar) [...], in nats; ``value`` has the dtype of ``mu``."""
        validate.tensors(value=value, mu=self.mu)
        broadcasts = value.dim() == 0 or value.shape[-1] == 1 != self.event_shape[0]
        if broadcasts:  # as Independent(Normal) does
            value = value.expand(value.shape[:-1] + self.event_shape)
        if self._validate_args and value.numel() > 0:
            self._validate_sample(value)
        shape = draw = None
        if self._draws is not None and not torch.compiler.is_compiling():
            shape, draw = self._draws.get(value, (None, None))
        if shape != value.shape:
            return gaussian_log_prob(value, self.mu, self.logvar, impl=self.impl)
        mu, logvar = self.mu.expand(value.shape), self.logvar.expand(value.shape)
        return _LogProbFromNoise.apply(value, mu, logvar, _noise(draw, value, self.mu, self.logvar))

    def entropy(self) -> Tensor:
        """1/2 sum_d (logvar_d + log 2 pi + 1) [...], in nats."""
        (logvar,) = reference.accumulate(self.logvar)
        return textbook.gaussian_entropy(logvar)

    def __getstate__(self):
        """The state without the noise of samples, which stay with this object and process."""
        return self.__dict__ | {"_draws": None}


def _from_loc_and_scale(mu, logvar, loc, scale):
    if mu is not None or logvar is not None or loc is None or scale is None:
        raise TypeError("expected mu and logvar, or loc and scale, and no other pair of them")
    validate.tensors(loc=loc, scale=scale)
    return loc, 2 * torch.log(scale)


@torch.no_grad()
def _noise(draw, z, mu, logvar):
    """The eps that z was drawn with; where z (or mu, logvar) was overwritten, eps recomputed."""
    wide_z, wide_mu, wide_logvar = reference.accumulate(z, mu, logvar)
    zero = wide_mu.new_zeros(()).expand(mu.shape)
    own = (wide_z - wide_mu) * torch.exp(-0.5 * wide_logvar)
    return torch.where(draw(mu, logvar) == z, draw(zero, zero), own)


class _LogProbFromNoise(torch.autograd.Function):
    """log N(z; mu, exp logvar) at z = mu + exp(logvar / 2) eps, all of one shape.

    The gradients are those of the density in its three arguments z, mu and logvar. That z itself
    depends on mu and logvar is left to autograd.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(z, mu, logvar, eps):
        return -0.5 * (eps.square() + logvar + textbook.LOG_2PI).sum(-1)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad):
        *inputs, eps = ctx.saved_tensors
        z, mu, logvar = reference.accumulate(*inputs)
        if torch.is_grad_enabled():  # to be differentiated again: eps as a function of the rest
            of_rest = (z - mu) * torch.exp(-0.5 * logvar)
            eps = eps + (of_rest - of_rest.detach())
        grad = grad.unsqueeze(-1)
        dmu = grad * eps * torch.exp(-0.5 * logvar)
        dlogvar = 0.5 * grad * (eps.square() - 1)
        gradients = zip((-dmu, dmu, dlogvar), inputs, strict=True)
        return *(g.to(t.dtype) for g, t in gradients), None


@register_kl(DiagonalNormal, DiagonalNormal)
def _kl_diagonal_diagonal(p, q):
    return _kl(p.mu, p.logvar, q.mu, q.logvar, choice.chosen_impl(p.impl, q.impl))


@register_kl(DiagonalNormal, Independent)
def _kl_diagonal_independent(p, q):
    if not _is_diagonal(q):
        return kl_divergence(_as_independent(p), q)
    return _kl(p.mu, p.logvar, *_mu_and_logvar(q), p.impl)


@register_kl(Independent, DiagonalNormal)
def _kl_independent_diagonal(p, q):
    if not _is_diagonal(p):
        return kl_divergence(p, _as_independent(q))
    return _kl(*_mu_and_logvar(p), q.mu, q.logvar, q.impl)


@register_kl(DiagonalNormal, MultivariateNormal)
def _kl_diagonal_full(p, q):
    return kl_divergence(_with_matrix(p), q)


@register_kl(MultivariateNormal, DiagonalNormal)
def _kl_full_diagonal(p, q):
    return kl_divergence(p, _with_matrix(q))


def _with_matrix(diagonal):
    mu, logvar = reference.accumulate(diagonal.mu, diagonal.logvar)
    root = torch.diag_embed(torch.exp(0.5 * logvar))
    return MultivariateNormal(mu, scale_tril=root, validate_args=False)


def _kl(mu, logvar, prior_mu, prior_logvar, impl):
    if mu.shape[-1] != prior_mu.shape[-1]:
        raise ValueError(f"event shapes differ: {mu.shape[-1:]} and {prior_mu.shape[-1:]}")
    return gaussian_kl(mu, logvar, prior_mu, prior_logvar, impl=impl)


def _is_diagonal(independent):
    """Whether it is Independent(Normal, 1): for others torch has the KL, or says so."""
    base = independent.base_dist
    return isinstance(base, Normal) and independent.reinterpreted_batch_ndims == 1


def _mu_and_logvar(independent) -> tuple[Tensor, Tensor]:
    return independent.base_dist.loc, 2 * independent.base_dist.scale.log()


def _as_independent(diagonal):
    mu, logvar = reference.accumulate(diagonal.mu, diagonal.logvar)
    base = Normal(mu, torch.exp(0.5 * logvar), validate_args=False)
    return Independent(base, 1, validate_args=False)
