"""The loss of the VAE in PyTorch's examples."""

from torch import Tensor

from ..dispatch.types import Implementation
from ..functional import gaussian_kl
from .terms import bernoulli_cross_entropy
from .torch_nn import in_torch_dtype


def pytorch_examples_vae_loss(
    recon_x: Tensor, x: Tensor, mu: Tensor, logvar: Tensor, *, impl: Implementation = "auto"
) -> Tensor:
    r"""``loss_function`` of the VAE in PyTorch's examples: sums over everything, beta = 1.

    .. math:: -\sum_{bi} \big[x_{bi} \log p_{bi} + (1 - x_{bi}) \log(1 - p_{bi})\big]
              + \sum_b KL(q(z \mid x_b) \| N(0, I))

    with both logarithms clamped at -100, as torch does. Equivalent PyTorch::

        cross_entropy = F.binary_cross_entropy(recon_x, x.view(-1, 784), reduction="sum")
        cross_entropy - 0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())

    The one line: ``from fused_elbo.compat import pytorch_examples_vae_loss as loss_function``.
    Where p rounds to 0 or 1 the gradient is torch's, (p - x) / max(p (1 - p), 1e-12). To be exact
    there, leave out the decoder's last sigmoid and call ``fused_elbo.elbo_loss`` on the logits.

    Args:
        recon_x: probabilities ``[B, P]``; P need not be the 784 of the original.
        x: the data ``[B, ...]``, with as many elements.
        mu, logvar: of q, ``[B, D]``; ``logvar`` is the log variance.
        impl: ``"auto"``, ``"triton"``, ``"numba"`` or ``"reference"``.

    Returns:
        A scalar in nats, the sum over the batch, in the inputs' dtype.

    Raises:
        RuntimeError: probabilities or data outside [0, 1] or NaN (where a kernel runs on CUDA,
            the loss is NaN instead).
        ValueError: other numbers of rows, or ``mu`` and ``logvar`` that do not broadcast.

    github.com/pytorch/examples, vae/main.py; Kingma & Welling 2014, appendices B and C.1.

    >>> recon_x, x = torch.full((4, 6), 0.5), torch.ones(4, 1, 2, 3)
    >>> pytorch_examples_vae_loss(recon_x, x, torch.ones(4, 2), torch.zeros(4, 2))
    tensor(20.6355)
    """
    x = x.reshape(-1, recon_x.shape[-1])
    cross_entropy = bernoulli_cross_entropy(recon_x, x, "sum", impl)
    kl = gaussian_kl(mu, logvar, impl=impl).sum()
    return cross_entropy + in_torch_dtype(kl, mu)
