"""The posterior of latent diffusion's autoencoders, as diffusers and CompVis have it."""

import math

import torch
from torch import Generator, Tensor

from ..dispatch import choice, gaussian_calls, layouts, sample_calls, validate
from ..dispatch.types import Implementation, Parametrisation, Shape

PARAMETRISATION = Parametrisation("clamped_logvar")
EVENT = [1, 2, 3]  # the dimensions that the KL sums over


class DiagonalGaussianDistribution:
    r"""``DiagonalGaussianDistribution`` of diffusers and of CompVis' latent diffusion.

    A Gaussian whose mean and log variance are the two halves of ``parameters``:

    .. math:: \mu, r = \mathrm{halves}, \quad \ell = \mathrm{clamp}(r, -30, 20), \quad
              z = \mu + e^{\ell / 2} \epsilon, \quad
              KL = \tfrac12 \sum_{chw} \big[\mu^2 + e^{\ell} - 1 - \ell\big]

    The first :meth:`sample` reads ``parameters`` once and also computes the KL, so that a later
    :meth:`kl` costs nothing. A :meth:`kl` that comes first computes the KL alone, because the
    original draws no noise there; a later sample then reads ``parameters`` again. Backward writes
    one gradient for ``parameters``, which is 0 for log variances outside the clamp. Equivalent
    PyTorch::

        mean, logvar = parameters.chunk(2, dim=1)
        logvar = logvar.clamp(-30.0, 20.0)
        mean + torch.exp(0.5 * logvar) * torch.randn(mean.shape)             # sample()
        0.5 * (mean.pow(2) + logvar.exp() - 1 - logvar).sum(dim=[1, 2, 3])   # kl()

    The one line: ``from fused_elbo.compat import DiagonalGaussianDistribution``; or, for a model of
    diffusers, ``autoencoder_kl.DiagonalGaussianDistribution = DiagonalGaussianDistribution`` in its
    module ``diffusers.models.autoencoders.autoencoder_kl``.

    Samples are the original's for the same seed, up to rounding, on CPUs and wherever a
    ``generator`` is given. On CUDA without a generator, and on CPUs with ``impl="numba"``, the
    kernel draws its own noise and does not store it.

    The oddities are the original's. For 5-D parameters the KL is summed over dimensions 1 to 3, has
    the shape ``[B, W]``, and takes a pass of its own; for 3-D ones it is an error. A deterministic
    posterior has ``std`` and ``var`` of 0, still draws noise, and has a KL and an nll of
    ``tensor([0.])`` on the CPU. :meth:`nll` sums over dimensions 1 to 3 by default. One thing
    differs: attributes are computed when they are read, and assigning one is an error.

    Args:
        parameters: ``[B, 2 C, ...]``, in any floating dtype; channels_last ones are not copied.
            Sums are taken in float32, or in float64.
        deterministic: as above.
        impl: ``"auto"``, ``"triton"``, ``"numba"`` or ``"reference"``.

    ``mean``, ``logvar`` (clamped), ``std`` and ``var`` are ``[B, C, ...]``, in the dtype of
    ``parameters``.

    Raises:
        ValueError: an odd number of channels, which the original would broadcast, or none.
        TypeError, RuntimeError: as :func:`fused_elbo.gaussian_log_prob`.

    github.com/huggingface/diffusers, models/autoencoders/vae.py; Rombach et al., "High-resolution
    image synthesis with latent diffusion models", CVPR 2022, appendix G.

    >>> posterior = DiagonalGaussianDistribution(torch.zeros(2, 8, 4, 4))
    >>> posterior.sample().shape, posterior.kl()
    (torch.Size([2, 4, 4, 4]), tensor([0., 0.]))
    """

    def __init__(
        self, parameters: Tensor, deterministic: bool = False, *, impl: Implementation = "auto"
    ):
        validate.tensors(parameters=parameters)
        choice.check_impl(impl)
        if parameters.dim() < 2 or parameters.shape[1] % 2 or 0 in parameters.shape[1:]:
            shape = validate.describe({"parameters": parameters})
            raise ValueError(f"expected [B, 2 C, ...], means and log variances, got {shape}")
        self.parameters = parameters
        self.deterministic = deterministic
        self.impl: Implementation = impl
        self._kl: Tensor | None = None  # of the first sample, until it is asked for
        # Under autocast on CUDA exponentials and sums are float32, and so are the original's
        # results.
        autocast = parameters.is_cuda and validate.autocasts(parameters)
        half = parameters.dtype in (torch.float16, torch.bfloat16)
        self._operand = parameters.float() if autocast and half else parameters

    @property
    def mean(self) -> Tensor:
        return self.parameters.chunk(2, 1)[0]

    @property
    def logvar(self) -> Tensor:
        return self.parameters.chunk(2, 1)[1].clamp(-30.0, 20.0)

    @property
    def std(self) -> Tensor:
        return torch.zeros_like(self.mean) if self.deterministic else torch.exp(0.5 * self.logvar)

    @property
    def var(self) -> Tensor:
        return torch.zeros_like(self.mean) if self.deterministic else torch.exp(self.logvar)

    def sample(self, generator: Generator | list[Generator] | None = None) -> Tensor:
        """z, differentiable; a list of generators has one for each example's noise."""
        if self.deterministic:
            return self.mean + self.std * self._noise(generator)
        own = self.impl in ("triton", "numba") or self.parameters.is_cuda
        eps = None if own and generator is None else self._noise(generator)
        z, kl = sample_calls.posterior_sample_kl(
            self._operand, None, None, None, PARAMETRISATION, eps=eps, impl=self.impl
        )
        if z.dim() == 4:  # for other ranks the original's KL is another sum
            self._kl = kl.to(z.dtype)
        return z

    def kl(self, other: "DiagonalGaussianDistribution | None" = None) -> Tensor:
        """The KL to ``other``, by default N(0, I), in nats, ``[B]``; see the quirks above."""
        if self.deterministic:
            return torch.Tensor([0.0])
        if other is None and self._kl is not None:
            kl, self._kl = self._kl, None
            # A KL that was computed without a gradient must not serve where one is wanted now.
            if kl.requires_grad == (torch.is_grad_enabled() and self.parameters.requires_grad):
                return kl
        prior = None
        if other is not None:
            if not self._alike(other):
                return self._textbook_kl(other)
            prior = other._operand
        operands = self._operand, None, prior, None
        elementwise = self.parameters.dim() != 4
        kl = gaussian_calls.posterior_kl(
            *operands, PARAMETRISATION, elementwise=elementwise, impl=self.impl
        )
        return (kl.sum(EVENT) if elementwise else kl).to(self._operand.dtype)

    def nll(self, sample: Tensor, dims: tuple[int, ...] = (1, 2, 3)) -> Tensor:
        """-log N(sample), summed over ``dims``, in nats: torch's own operations."""
        if self.deterministic:
            return torch.Tensor([0.0])
        squares = torch.pow(sample - self.mean, 2) / self.var
        return 0.5 * torch.sum(math.log(2.0 * math.pi) + self.logvar + squares, dim=dims)

    def mode(self) -> Tensor:
        """The mean."""
        return self.mean

    def _noise(self, generator):
        """torch.randn's noise, drawn as in diffusers: on the CPU for a generator of the CPU.

        Its dtype is that of the parameters, because the same seed draws other numbers in another.
        """
        shape: Shape = layouts.latent_shape(self.parameters, None)
        several = generator if isinstance(generator, list) else [generator]
        shape = (1, *shape[1:]) if len(several) > 1 else shape
        like = self.parameters
        if several[0] is not None and several[0].device != like.device:
            like = like.new_empty(0, device=several[0].device)
        drawn = [sample_calls.torch_normals(shape, like, g, impl=self.impl) for g in several]
        return (drawn[0] if len(drawn) == 1 else torch.cat(drawn)).to(self.parameters.device)

    def _alike(self, other):
        """Whether a kernel can take the other's parameters beside these."""
        if not isinstance(other, DiagonalGaussianDistribution) or other.deterministic:
            return False
        a, b = self._operand, other._operand
        return a.shape == b.shape and a.dtype == b.dtype and a.device == b.device

    def _textbook_kl(self, other):
        distance = torch.pow(self.mean - other.mean, 2) / other.var
        logvar_ratio = self.logvar - other.logvar
        terms = distance + self.var / other.var - 1.0 - logvar_ratio
        return 0.5 * torch.sum(terms, dim=EVENT)
