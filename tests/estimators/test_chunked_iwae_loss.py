"""chunked_iwae_loss: the same loss and gradients as in one piece, in less memory."""

import pytest
import torch

from bench.harness.memory import cpu_peak
from fused_elbo import chunked_iwae_loss, iwae_loss
from fused_elbo.estimators.dispatch import sample_calls
from fused_elbo.estimators.reference import noise
from helpers.samples import IMPLS, at_seed, normal, q_and_prior

F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64


def mlp(latents, events, device, dropout=0.0):
    return torch.nn.Sequential(
        torch.nn.Linear(latents, 8, dtype=F64),
        torch.nn.ReLU(),
        torch.nn.Dropout(dropout),
        torch.nn.Linear(8, events, dtype=F64),
    ).to(device)


class TestChunks:
    @pytest.mark.parametrize("gradient", ["total", "path", "dreg"])
    @pytest.mark.parametrize("chunk_size", [1, 5, 16, 100])
    @IMPLS
    def test_same_loss_and_gradients_as_in_one_piece(self, gradient, chunk_size, impl, device):
        """All of them: of q, a learned prior, the decoder, and a learned sigma."""
        leaves = q_and_prior(3, 4, device)
        sigma = torch.tensor(-0.4, dtype=F64, device=device, requires_grad=True)
        decoder, x = mlp(4, 6, device), normal(3, 6, seed=4, device=device)
        everything = [*leaves, sigma, *decoder.parameters()]
        loss = {"likelihood": "gaussian", "recon_logvar": sigma, "impl": impl}
        loss["alpha"] = 1.0 if gradient == "path" else 0.0
        chunked = at_seed(
            7, chunked_iwae_loss, decoder, x, *leaves[:2], 16, chunk_size=chunk_size,
            prior_mu=leaves[2], prior_logvar=leaves[3], gradient=gradient, **loss,
        )  # fmt: skip
        seed = at_seed(7, noise.draw_seed, device)
        options = {"gradient": gradient, "antithetic": False, "impl": impl}
        z, log_ratio = sample_calls.samples_of_stream(
            leaves[0].shape, *leaves, 16, seed=seed, first_sample=0, **options
        )
        whole = iwae_loss(decoder(z), x, log_ratio, **loss)
        torch.testing.assert_close(chunked, whole, rtol=1e-12, atol=1e-12)
        actual = torch.autograd.grad(chunked, everything)
        expected = torch.autograd.grad(whole, everything)
        for a, b in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)

    @pytest.mark.parametrize("alpha", [0.5, 1.0])
    def test_other_bounds_pairs_and_parts(self, alpha, device):
        mu, logvar = (normal(3, 4, seed=s, device=device).requires_grad_() for s in (0, 1))
        decoder, x = mlp(4, 6, device), torch.rand(3, 6, dtype=F64).to(device)
        found = []
        for chunk_size in (4, 12):
            parts = at_seed(
                7, chunked_iwae_loss, decoder, x, mu, logvar, 12, chunk_size=chunk_size,
                alpha=alpha, antithetic=True, reduction="none", return_parts=True,
            )  # fmt: skip
            found.append([*parts, *torch.autograd.grad(parts.loss.sum(), (mu, logvar))])
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
        assert found[0][0].shape == (3,)
        assert found[0][1].shape == found[0][2].shape == (12, 3)

    def test_dropout_is_the_same_the_second_time(self, device):
        """The gradient is that of the loss: finite differences in the decoder's weights."""
        mu, logvar = normal(2, 3, device=device), normal(2, 3, seed=1, device=device)
        decoder, x = mlp(3, 5, device, dropout=0.5), torch.rand(2, 5, dtype=F64).to(device)
        weight = decoder[3].weight

        def loss():
            return at_seed(3, chunked_iwae_loss, decoder, x, mu, logvar, 6, chunk_size=2)

        (gradient,) = torch.autograd.grad(loss(), weight)
        direction = normal(*weight.shape, device=device)
        with torch.no_grad():
            weight += 1e-6 * direction
            above = loss()
            weight -= 2e-6 * direction
            below = loss()
        slope = (above - below) / 2e-6
        torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-6, atol=1e-8)

    @pytest.mark.parametrize("dtype", [F16, BF16, F32], ids=str)
    @IMPLS
    def test_dreg_of_half_precision_and_under_autocast(self, dtype, impl, device):
        """The hook's weights are float32, and the gradients that it takes are not."""
        mu, logvar = (normal(3, 4, seed=s, device=device).to(dtype) for s in (0, 1))
        leaves = mu.requires_grad_(), logvar.requires_grad_()
        decoder, x = mlp(4, 6, device).float(), torch.rand(3, 6, device=device)
        with torch.autocast(device, dtype=BF16):
            q = (
                leaves
                if dtype != F32
                else [leaf * torch.ones(3, 4, dtype=BF16, device=device) for leaf in leaves]
            )
            loss = at_seed(
                1, chunked_iwae_loss, decoder, x, *q, 8, chunk_size=4, gradient="dreg", impl=impl
            )
        gradients = torch.autograd.grad(loss, leaves)
        exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
        expected = at_seed(
            1, chunked_iwae_loss, decoder.double(), x.double(), *exact, 8, chunk_size=8,
            gradient="dreg", impl=impl,
        )  # fmt: skip
        torch.testing.assert_close(loss.double(), expected, rtol=0.02, atol=0)
        for a, b in zip(gradients, torch.autograd.grad(expected, exact), strict=True):
            assert a.dtype == dtype
            assert (a.double() - b).norm() < 0.05 * b.norm()

    def test_second_derivatives_of_dreg_are_refused(self):
        mu, logvar = (normal(3, 4, seed=s).requires_grad_() for s in (0, 1))
        decoder, x = mlp(4, 6, "cpu"), torch.rand(3, 6, dtype=F64)
        loss = chunked_iwae_loss(decoder, x, mu, logvar, 8, chunk_size=4, gradient="dreg")
        with pytest.raises(RuntimeError, match="first derivatives only"):
            torch.autograd.grad(loss, mu, create_graph=True)

    def test_memory_does_not_grow_with_the_samples(self):
        """Peak of forward and backward on a CPU, of 16 and of 256 samples, 4 at a time."""
        decoder = torch.nn.Sequential(
            torch.nn.Linear(8, 64), torch.nn.ReLU(), torch.nn.Linear(64, 784)
        )
        mu = torch.zeros(128, 8, requires_grad=True)
        logvar, x = torch.zeros(128, 8, requires_grad=True), torch.rand(128, 784)

        def step(samples, chunk_size):
            loss = chunked_iwae_loss(
                decoder, x, mu, logvar, samples, chunk_size=chunk_size, gradient="dreg",
                impl="reference",
            )  # fmt: skip
            torch.autograd.grad(loss, (mu, logvar, *decoder.parameters()))

        few, many = (cpu_peak(lambda _: step(n, 4), None) for n in (16, 256))  # noqa: B023
        assert many < 1.1 * few
        assert cpu_peak(lambda _: step(16, 16), None) > 3 * few

    def test_without_gradients(self, device):
        decoder, x = mlp(4, 6, device), torch.rand(3, 6, dtype=F64).to(device)
        mu, logvar = normal(3, 4, device=device), normal(3, 4, seed=1, device=device)
        with torch.no_grad():
            loss = at_seed(1, chunked_iwae_loss, decoder, x, mu, logvar, 10, chunk_size=3)
        assert not loss.requires_grad
        assert torch.equal(
            loss, at_seed(1, chunked_iwae_loss, decoder, x, mu, logvar, 10, chunk_size=3).detach()
        )
