"""Densities that compare every sample with every component, without a tensor of all pairs."""

from typing import Literal, NamedTuple, TypeAlias, overload

import torch
from torch import Tensor

from .dispatch import mixture_calls, validate
from .dispatch.likelihoods import LikelihoodName
from .dispatch.types import Implementation, Reduction
from .loss import elbo_loss

Aggregate: TypeAlias = Literal["stratified", "weighted", "aggregate"]

AGGREGATES = ("stratified", "weighted", "aggregate")


class Mixture(NamedTuple):
    """A prior of K diagonal Gaussians, as :func:`mixture_log_prob` takes them."""

    mu: Tensor  # [K, D]
    logvar: Tensor  # [K, D]; the two are broadcast together
    log_weights: Tensor | None = None  # [K], normalised where they are used; None is equal weights


def mixture_log_prob(
    z: Tensor,
    mu: Tensor,
    logvar: Tensor,
    log_weights: Tensor | None = None,
    *,
    impl: Implementation = "auto",
) -> Tensor:
    r"""Log-density of a mixture of K diagonal Gaussians, in nats.

    .. math:: \log \sum_k w_k \, N(z; \mu_k, \operatorname{diag} e^{\ell_k}), \qquad
              w = \operatorname{softmax}(\texttt{log\_weights})

    The prior of a VampPrior, whose components are q of pseudo-inputs, and the aggregate posterior
    of a data set. The kernels hold nothing of the size of all pairs: memory is that of arguments
    and results, where eager PyTorch takes [..., K, D] several times over. Results do not change
    from run to run. Differences z - mu are taken before they are squared, so that means far from
    the origin cost no digits.

    Equivalent PyTorch::

        components = Independent(Normal(mu, (0.5 * logvar).exp()), 1)
        MixtureSameFamily(Categorical(logits=log_weights), components).log_prob(z)

    except where z is impossible of all components: there the value is -inf, and the gradients are
    0 instead of NaN.

    Args:
        z: ``[..., D]``; float16, bfloat16, float32 or float64, the others too.
        mu, logvar: of the components, ``[K, D]``, broadcast together; ``logvar`` is the log
            variance.
        log_weights: ``[K]``, any numbers: they are normalised here, so that the result is a
            density. -inf is a component of weight 0. None is for equal weights.
        impl: as in :func:`gaussian_log_prob`.

    Returns:
        ``[...]`` in float32, or float64 for float64 inputs; differentiable in every argument
        (by the kernels on CUDA once, else any number of times).

    Raises:
        ValueError: components that are not ``[K, D]`` with K >= 1, a ``z`` of other latents,
            ``log_weights`` that are not ``[K]``; devices differ.
        TypeError, RuntimeError: as :func:`gaussian_log_prob`.

    Tomczak & Welling, "VAE with a VampPrior", AISTATS 2018, eq. 9.

    >>> mixture_log_prob(torch.zeros(1, 2), torch.zeros(3, 2), torch.zeros(3, 2))
    tensor([-1.8379])
    """
    validate.tensors(z=z, mu=mu, logvar=logvar, log_weights=log_weights)
    shape = check_components(z, mu, logvar, log_weights)
    return mixture_calls.mixture_log_prob(shape, z, mu, logvar, log_weights, impl=impl)


def check_components(z, mu, logvar, log_weights, *, name="z", prefix=""):
    """The shape [K, D] of components for ``z`` [..., D], the argument ``name``."""
    shape = validate.broadcast(**{prefix + "mu": mu, prefix + "logvar": logvar})
    named = {prefix + "mu": mu, prefix + "logvar": logvar}
    if len(shape) != 2 or shape[0] == 0:
        raise ValueError(f"expected components [K, D] with K >= 1, got {validate.describe(named)}")
    if z.dim() == 0 or z.shape[-1] != shape[1]:
        raise ValueError(
            f"expected {name} [..., D] and components [K, D] of one D, "
            f"got {validate.describe({name: z, **named})}"
        )
    if log_weights is not None and log_weights.shape != shape[:1]:
        weights = {prefix + "log_weights": log_weights}
        raise ValueError(
            f"expected {prefix}log_weights [K], a number a component, "
            f"got {validate.describe(weights | named)}"
        )
    return shape


def check_prior(prior, mu, logvar, prior_mu, prior_logvar, event_dims=1):
    """A mixture that is the prior of q."""
    if not isinstance(prior, Mixture):
        raise TypeError(f"prior must be a Mixture, got {type(prior).__name__}")
    if prior_mu is not None or prior_logvar is not None:
        raise ValueError("expected a prior or prior_mu and prior_logvar, got both")
    if event_dims != 1:
        raise ValueError(
            f"event_dims must be 1 with a Mixture as prior, whose components are [K, D], got "
            f"{event_dims}: flatten mu and logvar"
        )
    named = {f"prior.{name}": tensor for name, tensor in prior._asdict().items()}
    validate.tensors(mu=mu, **named)
    check_components(torch.broadcast_tensors(mu, logvar)[0], *prior, name="mu", prefix="prior.")


class KLDecomposition(NamedTuple):
    """Three terms of each example, ``[B]``, whose sum is log q(z|x) - log p(z)."""

    mutual_information: Tensor  # of example and code: log q(z|x) - log q(z)
    total_correlation: Tensor  # log q(z) - sum_d log q(z_d)
    dimension_wise: Tensor  # sum_d log q(z_d) - log p(z_d)


def kl_decomposition(
    z: Tensor,
    mu: Tensor,
    logvar: Tensor,
    dataset_size: int | None = None,
    *,
    estimator: Aggregate = "stratified",
    dataset: tuple[Tensor, Tensor] | None = None,
    impl: Implementation = "auto",
) -> KLDecomposition:
    r"""The KL to the standard prior in three terms, at one sample of each example, in nats.

    .. math:: \underbrace{\log \frac{q(z \mid x)}{q(z)}}_{\text{mutual information}}
              + \underbrace{\log \frac{q(z)}{\prod_d q(z_d)}}_{\text{total correlation}}
              + \underbrace{\log \frac{\prod_d q(z_d)}{p(z)}}_{\text{dimension-wise KL}},
              \qquad q(z) = \tfrac1N \sum_n q(z \mid x_n)

    The mean over the examples of a data set, and over samples of each, is the index-code mutual
    information, the total correlation, and the sum of the KLs of each latent. q(z) and its
    marginals are of all N examples; of a batch of B of them they are estimated. With M = B - 1:

    ``"stratified"``
        q(z_i|x_i) counts 1/N, one other (N - M) / (N M), and the rest 1/M: for each z_i the mean
        over batches is q(z_i) exactly. The logarithm of the estimate is thus a bit too low.
    ``"weighted"``
        Each counts 1 / (N B), as in the paper: log q(z) is then far too low and the total
        correlation far too high, by some (D - 1) log N. As a loss its gradients are of use.
    ``"aggregate"``
        Exact: of a whole data set, of which ``dataset`` has mu and logvar.

    Equivalent PyTorch, for ``"aggregate"``::

        q = Normal(*dataset)  # of mu and standard deviation, [N, D]
        log_probs = q.log_prob(z.unsqueeze(1))  # [B, N, D]
        log_qz = log_probs.sum(-1).logsumexp(1) - math.log(N)
        log_marginals = (log_probs.logsumexp(1) - math.log(N)).sum(-1)

    Args:
        z: one sample of each example's q, ``[B, D]``, in the order of mu and logvar.
        mu, logvar: of q of these examples, ``[B, D]``.
        dataset_size: N >= B; not with ``"aggregate"``.
        estimator: ``"stratified"``, ``"weighted"`` or ``"aggregate"``, as above.
        dataset: with ``"aggregate"`` alone, ``(mu, logvar)`` ``[N, D]`` of all examples; None
            means that these are all.
        impl: as in :func:`gaussian_log_prob`.

    Returns:
        ``(mutual_information, total_correlation, dimension_wise)``, each ``[B]`` in float32, or
        float64 for float64 inputs; differentiable in every tensor. The kernels hold nothing of the
        size of all pairs.

    Raises:
        ValueError: shapes that are not those; a ``dataset_size`` that is missing, or smaller than
            the batch; a batch of one with ``"stratified"``; an argument that the estimator does
            not take.
        TypeError, RuntimeError: as :func:`gaussian_log_prob`.

    Chen, Li, Grosse & Duvenaud, "Isolating sources of disentanglement in variational
    autoencoders", NeurIPS 2018, eq. 2 and appendix C.

    >>> mu, logvar = torch.zeros(1, 2), torch.zeros(1, 2)
    >>> parts = kl_decomposition(torch.ones(1, 2), mu, logvar, estimator="aggregate")
    >>> [round(part.item(), 5) + 0.0 for part in parts]
    [0.0, 0.0, 0.0]
    """
    validate.choice("estimator", estimator, AGGREGATES)
    validate.tensors(z=z, mu=mu, logvar=logvar)
    if z.dim() != 2 or not z.shape == mu.shape == logvar.shape or 0 in z.shape:
        named = validate.describe({"z": z, "mu": mu, "logvar": logvar})
        raise ValueError(f"expected z, mu and logvar of one shape [B, D], not empty, got {named}")
    if estimator == "aggregate":
        all_mu, all_logvar = all_examples(z, dataset_size, dataset)
    else:
        all_mu = all_logvar = None
        size_of_data_set(len(z), dataset_size, dataset, estimator)
    stratified_of = dataset_size if estimator == "stratified" else None
    q = z, mu, logvar, all_mu, all_logvar
    terms = mixture_calls.kl_decomposition(*q, stratified_of, impl=impl)
    if estimator == "weighted" and dataset_size is not None:
        # 1 / (N B) for 1 / B, in each logarithm.
        first, second, third = terms
        excess = first.new_full((), dataset_size).log()  # on its device: nothing waits for a copy
        latents = z.shape[1]
        terms = first + excess, second + (latents - 1) * excess, third - latents * excess
    return KLDecomposition(*terms)


def all_examples(z, dataset_size, dataset):
    """(mu, logvar) of the data set, for the exact estimator; or (None, None), of these examples."""
    if dataset_size is not None:
        raise ValueError("estimator='aggregate' takes its dataset, not a dataset_size")
    if dataset is None:
        return None, None
    all_mu, all_logvar = dataset
    named = {"dataset's mu": all_mu, "dataset's logvar": all_logvar}
    validate.tensors(z=z, **named)
    if all_mu.dim() != 2 or all_mu.shape != all_logvar.shape or all_mu.shape[1:] != z.shape[1:]:
        shapes = validate.describe({"z": z, **named})
        raise ValueError(f"expected a dataset (mu, logvar), both [N, D] with the D of z: {shapes}")
    if len(all_mu) < len(z):
        raise ValueError(f"the dataset has {len(all_mu)} examples, of which z are {len(z)}")
    return all_mu, all_logvar


def size_of_data_set(batch, dataset_size, dataset, estimator):
    """Check the arguments of the estimators that know a batch alone."""
    if dataset is not None:
        raise ValueError(f"estimator={estimator!r} takes no dataset: that is for 'aggregate'")
    if dataset_size is None:
        raise ValueError(f"estimator={estimator!r} needs the dataset_size")
    validate.count("dataset_size", dataset_size, batch)
    if estimator == "stratified" and batch < 2:
        raise ValueError("estimator='stratified' needs a batch of at least 2, got 1")


class ELBOTCParts(NamedTuple):
    """The loss and its terms under the same reduction."""

    loss: Tensor
    nll: Tensor
    mutual_information: Tensor
    total_correlation: Tensor
    dimension_wise: Tensor


@overload
def elbo_tc_loss(
    recon: Tensor,
    x: Tensor,
    z: Tensor,
    mu: Tensor,
    logvar: Tensor,
    dataset_size: int | None = None,
    *,
    mutual_information: float = 1.0,
    total_correlation: float = 1.0,
    dimension_wise: float = 1.0,
    estimator: Aggregate = "stratified",
    dataset: tuple[Tensor, Tensor] | None = None,
    likelihood: LikelihoodName = "bernoulli",
    recon_logvar: float | Tensor = 0.0,
    log_scale: float | Tensor = 0.0,
    log_theta: float | Tensor = 0.0,
    zero_logits: Tensor | None = None,
    reduction: Reduction = "mean",
    return_parts: Literal[False] = False,
    impl: Implementation = "auto",
) -> Tensor: ...


@overload
def elbo_tc_loss(
    recon: Tensor,
    x: Tensor,
    z: Tensor,
    mu: Tensor,
    logvar: Tensor,
    dataset_size: int | None = None,
    *,
    mutual_information: float = 1.0,
    total_correlation: float = 1.0,
    dimension_wise: float = 1.0,
    estimator: Aggregate = "stratified",
    dataset: tuple[Tensor, Tensor] | None = None,
    likelihood: LikelihoodName = "bernoulli",
    recon_logvar: float | Tensor = 0.0,
    log_scale: float | Tensor = 0.0,
    log_theta: float | Tensor = 0.0,
    zero_logits: Tensor | None = None,
    reduction: Reduction = "mean",
    return_parts: Literal[True],
    impl: Implementation = "auto",
) -> ELBOTCParts: ...


@overload
def elbo_tc_loss(
    recon: Tensor,
    x: Tensor,
    z: Tensor,
    mu: Tensor,
    logvar: Tensor,
    dataset_size: int | None = None,
    *,
    mutual_information: float = 1.0,
    total_correlation: float = 1.0,
    dimension_wise: float = 1.0,
    estimator: Aggregate = "stratified",
    dataset: tuple[Tensor, Tensor] | None = None,
    likelihood: LikelihoodName = "bernoulli",
    recon_logvar: float | Tensor = 0.0,
    log_scale: float | Tensor = 0.0,
    log_theta: float | Tensor = 0.0,
    zero_logits: Tensor | None = None,
    reduction: Reduction = "mean",
    return_parts: bool,
    impl: Implementation = "auto",
) -> Tensor | ELBOTCParts: ...


def elbo_tc_loss(
    recon: Tensor,
    x: Tensor,
    z: Tensor,
    mu: Tensor,
    logvar: Tensor,
    dataset_size: int | None = None,
    *,
    mutual_information: float = 1.0,
    total_correlation: float = 1.0,
    dimension_wise: float = 1.0,
    estimator: Aggregate = "stratified",
    dataset: tuple[Tensor, Tensor] | None = None,
    likelihood: LikelihoodName = "bernoulli",
    recon_logvar: float | Tensor = 0.0,
    log_scale: float | Tensor = 0.0,
    log_theta: float | Tensor = 0.0,
    zero_logits: Tensor | None = None,
    reduction: Reduction = "mean",
    return_parts: bool = False,
    impl: Implementation = "auto",
) -> Tensor | ELBOTCParts:
    r"""The loss of a beta-TCVAE: -log p(x|z) and a weight for each term of the KL, in nats.

    .. math:: -\log p(x \mid z) + \alpha \, \mathrm{MI} + \beta \, \mathrm{TC}
              + \gamma \, \mathrm{DKL}

    with the terms of :func:`kl_decomposition`. With all weights 1 it is minus the ELBO, at one
    sample; the paper's beta-TCVAE raises the weight of the total correlation alone.
    Equivalent PyTorch::

        mi, tc, dkl = kl_decomposition(z, mu, logvar, dataset_size)
        elbo_loss(recon, x, kl=alpha * mi + beta * tc + gamma * dkl)

    Args:
        recon, x, likelihood, recon_logvar, log_scale, log_theta, zero_logits, reduction: as in
            :func:`elbo_loss`.
        z, mu, logvar, dataset_size, estimator, dataset: as in :func:`kl_decomposition`.
        mutual_information, total_correlation, dimension_wise: the weights of the terms.
        return_parts: return ``(loss, nll, mutual_information, total_correlation,
            dimension_wise)``, a named tuple, each reduced alike; the terms without their weights.
        impl: as in :func:`gaussian_log_prob`.

    Returns:
        A scalar, or ``[B]`` with ``reduction="none"``, in float32, or float64 for float64 inputs;
        or the named tuple. Differentiable.

    Raises:
        ValueError, TypeError, RuntimeError: as :func:`elbo_loss` and :func:`kl_decomposition`.

    Chen, Li, Grosse & Duvenaud, "Isolating sources of disentanglement in variational
    autoencoders", NeurIPS 2018, eq. 4.

    >>> logits, x, z = torch.zeros(4, 3), torch.ones(4, 3), torch.zeros(4, 2)
    >>> elbo_tc_loss(logits, x, z, z, z, 100, total_correlation=6.0).shape
    torch.Size([])
    """
    weights = {
        "mutual_information": mutual_information,
        "total_correlation": total_correlation,
        "dimension_wise": dimension_wise,
    }
    for name, weight in weights.items():
        validate.number(name, weight)
    terms = kl_decomposition(
        z, mu, logvar, dataset_size, estimator=estimator, dataset=dataset, impl=impl
    )
    weighted = [weight * term for weight, term in zip(weights.values(), terms, strict=True)]
    loss, nll, _ = elbo_loss(
        recon,
        x,
        kl=torch.stack(weighted).sum(0),
        likelihood=likelihood,
        recon_logvar=recon_logvar,
        log_scale=log_scale,
        log_theta=log_theta,
        zero_logits=zero_logits,
        reduction=reduction,
        return_parts=True,
        impl=impl,
    )
    if not return_parts:
        return loss
    reduced = terms if reduction == "none" else [getattr(term, reduction)() for term in terms]
    return ELBOTCParts(loss, nll, *reduced)
