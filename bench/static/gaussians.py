"""The kernels of densities and KLs of given Gaussians."""

from fused_elbo.kernels.triton.gaussian_kl import launch_gaussian_kl as kl
from fused_elbo.kernels.triton.gaussian_nll import launch_gaussian_nll as nll

from .operands import OF_ALL, OF_Q, StaticCase


def cases(t):
    grad = t.rows
    return [
        StaticCase(
            "gaussian_log_prob forward",
            3,
            lambda: nll(t.a, t.b, t.c, 0.0, -1, values="rows"),
        ),
        StaticCase(
            "gaussian_log_prob backward",
            6,
            lambda: nll(t.a, t.b, t.c, 0.0, -1, dnll=grad, needs=(True,) * 3),
        ),
        StaticCase("gaussian_kl forward", 2, lambda: kl(t.q)),
        StaticCase("gaussian_kl backward", 4, lambda: kl(t.q, dkl=grad, needs=OF_Q)),
        StaticCase("gaussian_kl prior forward", 4, lambda: kl(t.q_and_prior)),
        StaticCase(
            "gaussian_kl prior backward", 8, lambda: kl(t.q_and_prior, dkl=grad, needs=OF_ALL)
        ),
    ]
