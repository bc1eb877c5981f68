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

    The first :meth:`sample` reads ``parameters`` once and computes the KL too, so that a
    :meth:`kl` after it costs nothing. Called first, :meth:`kl` computes the KL alone, for the
    original draws no noise there; a sample after it reads again. Backward writes one gradient for
    ``parameters``, with 0 for log variances outside the clamp. Equivalent PyTorch::

        mean, logvar = parameters.chunk(2, dim=1)
        logvar = logvar.clamp(-30.0, 20.0)
        mean + torch.exp(0.5 * logvar) * torch.randn(mean.shape)             # sample()
        0.5 * (mean.pow(2) + logvar.exp() - 1 - logvar).sum(dim=[1, 2, 3])   # kl()

    The one line: ``from fused_elbo.compat import DiagonalGaussianDistribution``; or, for a model of
    diffusers, ``autoencoder_kl.DiagonalGaussianDistribution = DiagonalGaussianDistribution`` in its
    module ``diffusers.models.autoencoders.autoencoder_kl``.

    Samples are the original's for the same seed, to rounding, on CPUs and wherever a ``generator``
    is given. On CUDA without one the kernel draws its own noise: as random, and not stored. (On
    CPUs that is ``impl="numba"``.)

    Its oddities are the original's: of 5-D parameters the KL is summed over dimensions 1 to 3 and
    has shape ``[B, W]``, and takes a pass of its own (of 3-D ones it is an error); a deterministic
    posterior has ``std`` and ``var`` of 0, draws noise all the same, and has a KL and an nll of
    ``tensor([0.])`` on the CPU; :meth:`nll` without other ``dims`` sums over 1 to 3. But attributes
    that nobody asks for are not computed, and none can be assigned: that is an error.

    Args:
        parameters: ``[B, 2 C, ...]``; channels_last ones are read as they lie. Any floating dtype;
            sums are taken in float32, or float64.
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
        # Autocast on CUDA has exponentials and sums in float32, and so the original its results.
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
        """z, differentiable; of a list of generators each draws the noise of an example."""
        if self.deterministic:
            return self.mean + self.std * self._noise(generator)
        own = self.impl in ("triton", "numba") or self.parameters.is_cuda
        eps = None if own and generator is None else self._noise(generator)
        z, kl = sample_calls.posterior_sample_kl(
            self._operand, None, None, None, PARAMETRISATION, eps=eps, impl=self.impl
        )
        if z.dim() == 4:  # of others it is not the original's
            self._kl = kl.to(z.dtype)
        return z

    def kl(self, other: "DiagonalGaussianDistribution | None" = None) -> Tensor:
        """The KL to ``other``, by default N(0, I), in nats, ``[B]``; see the quirks above."""
        if self.deterministic:
            return torch.Tensor([0.0])
        if other is None and self._kl is not None:
            kl, self._kl = self._kl, None
            # The KL of a sample without a gradient is of no use where a gradient is wanted now.
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
        """torch.randn's, as diffusers draws it: a CPU's generator on the CPU, whatever the device.

        In the dtype of the parameters, for in another one the same seed draws other numbers.
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
