"""Drop-ins for the losses of torch.nn.functional that serve as likelihood terms.

Where they can, these run the fused kernels: on CUDA and CPU tensors, ``reduction`` ``"mean"`` or
``"sum"``, arguments of one shape and dtype, no weights. Everything else goes to torch, as it would
have gone before. The kernels on CUDA have first derivatives only.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..dispatch import choice, likelihood_calls, loss_calls, validate
from ..dispatch.types import Implementation
from ..reference.reference import accumulate
from ..reference.textbook import LOG_2PI

# exp(-pi r^2) is a normalised Gaussian density. At its log variance the normalising constant is 0,
# so a squared error loses no digits to a constant that is added and subtracted again.
UNIT_NORMALISER = -LOG_2PI


def mse_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    weight: Tensor | None = None,
    *,
    impl: Implementation = "auto",
) -> Tensor:
    r"""``F.mse_loss``: the squared error, by default averaged over all elements.

    .. math:: \frac1N \sum_i (r_i - x_i)^2

    It is no log-likelihood, and the mean leaves no number per example. :func:`effective_beta`
    computes the beta of a loss that is built on it. Equivalent PyTorch::

        F.mse_loss(input, target, size_average, reduce, reduction, weight)

    Args:
        input, target: tensors of one shape; others broadcast with torch's warning.
        size_average, reduce, reduction, weight: as torch has them.
        impl: ``"auto"`` (a kernel where there is one for the arguments, else torch),
            ``"triton"`` (for CUDA), ``"numba"`` (for CPUs) or ``"reference"`` (torch).

    Returns:
        A scalar, or with ``reduction="none"`` the elements, in the dtype that torch returns.

    Raises:
        ValueError, RuntimeError: what ``F.mse_loss`` raises; RuntimeError also for
            ``impl="triton"`` or ``"numba"`` where no kernel supports the arguments.

    >>> mse_loss(torch.zeros(2, 3), torch.ones(2, 3))
    tensor(1.)
    """
    legacy = size_average is not None or reduce is not None
    fits = not legacy and weight is None and fits_kernel(reduction, input, target)
    fits = fits and not choice.left_to_torch(impl, input, "gaussian")
    if not choice.use_kernels(impl, input, target, fits=fits):
        arguments = (input, target, size_average, reduce, reduction, weight)
        return F.mse_loss(*arguments)  # type: ignore[arg-type,call-arg]  # their stub has no weight
    total = _likelihood_sum(input, target, UNIT_NORMALISER, likelihood="gaussian", impl=impl)
    return _reduced(total / math.pi, input, reduction)


def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
    *,
    impl: Implementation = "auto",
) -> Tensor:
    r"""``F.binary_cross_entropy_with_logits``: by default averaged over all elements.

    .. math:: \frac1N \sum_i \big[\log(1 + e^{a_i}) - x_i a_i\big]

    Equivalent PyTorch::

        F.binary_cross_entropy_with_logits(
            input, target, weight, size_average, reduce, reduction, pos_weight
        )

    Args:
        input: logits a.
        target: x, of the same shape, in [0, 1]; as in torch, other values are allowed.
        weight, size_average, reduce, reduction, pos_weight: as torch has them.
        impl: as in :func:`mse_loss`.

    Returns:
        A scalar in nats, or with ``reduction="none"`` the elements, in torch's dtype.

    Raises:
        ValueError, RuntimeError: what torch raises; RuntimeError also for ``impl="triton"``
            or ``"numba"`` where no kernel supports the arguments.

    >>> binary_cross_entropy_with_logits(torch.zeros(2, 3), torch.ones(2, 3))
    tensor(0.6931)
    """
    plain = all(argument is None for argument in (weight, size_average, reduce, pos_weight))
    fits = plain and fits_kernel(reduction, input, target)
    fits = fits and not choice.left_to_torch(impl, input, "bernoulli")
    if not choice.use_kernels(impl, input, target, fits=fits):
        return F.binary_cross_entropy_with_logits(
            input, target, weight, size_average, reduce, reduction, pos_weight
        )
    total = _likelihood_sum(input, target, likelihood="bernoulli", impl=impl)
    return _reduced(total, input, reduction)


def binary_cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    *,
    impl: Implementation = "auto",
) -> Tensor:
    r"""``F.binary_cross_entropy``, of probabilities: by default averaged over all elements.

    .. math:: -\frac1N \sum_i \big[x_i \max(\log p_i, -100)
              + (1 - x_i) \max(\log(1 - p_i), -100)\big]

    with torch's gradient, (p - x) / max(p (1 - p), 1e-12), also where a logarithm is clamped.
    Equivalent PyTorch::

        F.binary_cross_entropy(input, target, weight, size_average, reduce, reduction)

    To be exact where p rounds to 0 or 1, leave out the decoder's last sigmoid and take the
    likelihood of logits: :func:`binary_cross_entropy_with_logits` or ``fused_elbo.bernoulli_nll``.

    Args:
        input: probabilities p, in [0, 1].
        target: x, of the same shape, in [0, 1].
        weight, size_average, reduce, reduction: as torch has them.
        impl: as in :func:`mse_loss`. float16, autocast and ``torch.compile`` use torch's own loss.

    Returns:
        A scalar in nats, or with ``reduction="none"`` the elements, in torch's dtype.

    Raises:
        RuntimeError: on CPU tensors, input or target outside [0, 1] or NaN, which is torch's own
            error. On CUDA the kernel makes loss and gradient NaN, where torch's device assertion
            would end the process. Also ``impl="triton"`` or ``"numba"`` where no kernel supports
            the arguments.
        ValueError: what torch raises.

    >>> binary_cross_entropy(torch.full((2, 3), 0.5), torch.ones(2, 3))
    tensor(0.6931)
    """
    plain = all(argument is None for argument in (weight, size_average, reduce))
    fits = plain and fits_kernel(reduction, input, target, probabilities=True)
    if not choice.use_kernels(impl, input, target, fits=fits):
        return F.binary_cross_entropy(input, target, weight, size_average, reduce, reduction)
    total = _likelihood_sum(input, target, likelihood="probabilities", impl=impl)
    if choice.looks_are_free(total) and total.isnan():  # torch says what is wrong with them
        return F.binary_cross_entropy(input, target, reduction=reduction)
    return _reduced(total, input, reduction)


def gaussian_nll_loss(
    input: Tensor,
    target: Tensor,
    var: Tensor | float,
    full: bool = False,
    eps: float = 1e-6,
    reduction: str = "mean",
    *,
    impl: Implementation = "auto",
) -> Tensor:
    r"""``F.gaussian_nll_loss`` without its host synchronisation on CUDA.

    .. math:: \frac1N \sum_i \tfrac12 \big[\log v_i + (r_i - x_i)^2 / v_i\big],
              \qquad v = \max(\mathrm{var}, \mathrm{eps})

    and ``full`` adds :math:`\tfrac12 \log 2\pi` per element. ``var`` gets the gradient at v, as if
    it were not clamped. Equivalent PyTorch::

        F.gaussian_nll_loss(input, target, var, full, eps, reduction)

    torch checks every variance first, and on a GPU waits for the answer. Here a negative variance
    raises torch's error on CPU tensors. On CUDA and under ``torch.compile`` it is not checked, to
    avoid the wait, and makes the loss NaN.

    Args:
        input: the means r; target: the data x.
        var: variances in the shape of ``input``, in that shape without the last dimension or with
            one dimension of 1, or a float.
        full, eps, reduction: as torch has them.
        impl: as in :func:`mse_loss`, but ``"reference"`` is the formula, not torch's function.
            float16 and bfloat16 use the kernels under autocast only, because their log variance
            must be float32.

    Returns:
        A scalar in nats, or with ``reduction="none"`` the elements, in torch's dtype.

    Raises:
        ValueError: a negative variance (see above); a ``var`` of another shape; an unknown
            ``reduction``.
        TypeError: a ``var`` that is neither a tensor nor a float, such as an int, as in torch.
        RuntimeError: ``impl="triton"`` or ``"numba"`` where no kernel supports the arguments.

    Nix & Weigend, "Estimating the mean and variance of the target probability distribution",
    1994.

    >>> gaussian_nll_loss(torch.zeros(2, 3), torch.ones(2, 3), torch.ones(2, 3))
    tensor(0.5000)
    """
    validate.choice("reduction", reduction, ("none", "mean", "sum"))
    v = _clamped(_variance(var, input), eps)
    (wide,) = accumulate(v)  # a logarithm in half precision is off by more than its variance
    fits = _alike(input, wide) and fits_kernel(reduction, input, target)
    if choice.use_kernels(impl, input, target, fits=fits):
        total = _likelihood_sum(input, target, wide.log(), likelihood="gaussian", impl=impl)
        if not full:
            total = total - input.numel() * (0.5 * LOG_2PI)
        return _reduced(total, input, reduction)
    loss = 0.5 * (v.log() + (input - target) ** 2 / v)
    if full:
        loss = loss + 0.5 * LOG_2PI
    return loss if reduction == "none" else getattr(loss, reduction)()


def _variance(var, input):
    """var as a tensor that broadcasts to input, after torch's checks."""
    if isinstance(var, float):
        if var < 0:
            raise ValueError(f"var has negative entries: {var}")
        dtype = input.dtype if input.is_floating_point() else torch.get_default_dtype()
        return input.new_full((), var, dtype=dtype)
    if not isinstance(var, torch.Tensor):
        raise TypeError(f"var must be a torch.Tensor or a float, got {type(var).__name__}")
    if var.device.type == "cpu" and not torch.compiler.is_compiling() and (var < 0).any():
        raise ValueError("var has negative entries")
    if var.shape == input.shape:
        return var
    if var.shape == input.shape[:-1]:
        return var.unsqueeze(-1)
    same_rank = var.dim() == input.dim()
    others = [v for v, n in zip(var.shape, input.shape, strict=same_rank) if v != n]
    if same_rank and others == [1]:
        return var
    raise ValueError(
        "var is of incorrect size: expected the shape of input, that without its last dimension, "
        f"or that with one dimension of 1, got {validate.describe({'input': input, 'var': var})}"
    )


def _clamped(var, eps):
    """max(var, eps) with the gradient of var, and NaN where var is negative."""
    clamped = var.clone()
    with torch.no_grad():
        clamped.clamp_(min=eps)
        clamped.masked_fill_(var < 0, torch.nan)
    return clamped


def binary_cross_entropy_rows(input, target, *, impl):
    """``F.binary_cross_entropy`` summed over the last dimension."""
    fits = input.dim() > 1 and fits_kernel("sum", input, target, probabilities=True)
    if not choice.use_kernels(impl, input, target, fits=fits):
        return F.binary_cross_entropy(input, target, reduction="none").sum(-1)
    shape, flat = input.shape[:-1], (math.prod(input.shape[:-1]), input.shape[-1])
    input_rows, target = input.reshape(flat), target.reshape(flat)
    nll = likelihood_calls.negative_log_likelihood(
        flat[:1], input_rows, target, likelihood="probabilities", impl=impl
    )
    if choice.looks_are_free(nll) and nll.isnan().any():  # torch says what is wrong with them
        return F.binary_cross_entropy(input, target.view(input.shape), reduction="none").sum(-1)
    return in_torch_dtype(nll.reshape(shape), input)


def fits_kernel(reduction, input, target, *, probabilities=False):
    """Whether the likelihood kernels support these arguments.

    For probabilities they do not in three cases: in float16, whose range 1 / (p (1 - p)) exceeds;
    under autocast, which torch's own loss refuses on CUDA; and under a compiler, which fuses the
    loss itself.
    """
    if probabilities and (
        input.dtype == torch.float16 or validate.autocasts(input) or torch.compiler.is_compiling()
    ):
        return False
    return (
        reduction in ("mean", "sum")
        and input.shape == target.shape
        and _alike(input, target)
        and input.dim() > 0
        and input.numel() > 0
    )


def _alike(a, b):
    """Whether two tensors share a device and a floating dtype, or autocast may mix theirs."""
    if a.device != b.device or a.dtype not in validate.DTYPES or b.dtype not in validate.DTYPES:
        return False
    return a.dtype == b.dtype or validate.autocast_mixes(a, b)


def _likelihood_sum(recon, x, *parameters, likelihood, impl):
    """The negative log-likelihood summed over everything, with its gradient from the forward pass.

    A vector counts as one example.
    """
    if recon.dim() == 1:
        recon, x = recon.unsqueeze(0), x.unsqueeze(0)
    options = {"likelihood": likelihood, "beta": 1.0, "reduction": "sum", "impl": impl}
    return loss_calls.elbo_loss(recon.shape[:1], recon, x, parameters, None, **options)[0]


def _reduced(total, input, reduction):
    return in_torch_dtype(total / input.numel() if reduction == "mean" else total, input)


def in_torch_dtype(value, like):
    """The value in the dtype of ``like``, or unchanged under autocast: losses are float32 there."""
    if value.dtype == like.dtype or validate.autocasts(like):
        return value
    return value.to(like.dtype)
