"""Under torch.compile, torch.func, autocast and CUDA graphs."""

import pytest
import torch
from torch.distributions import Normal

import fused_elbo
from fused_elbo import elbo_loss
from helpers.accuracy import rounding
from helpers.cuda_graphs import captured
from helpers.machine import KERNELS
from helpers.oracle import OP, OPS, argument_shape, random_values

F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64


def vae_step(impl):
    """The sampling half and the loss: everything that a training step compiles at once."""

    def step(mu, logvar, decoder, x):
        z, kl = fused_elbo.rsample_kl(mu, logvar, impl=impl)
        return elbo_loss(z @ decoder, x, kl=kl, impl=impl)

    return step


def every_op(impl):
    """Each function once, in one graph: a compile takes seconds."""

    def run(mu, logvar, x):
        kl = fused_elbo.gaussian_kl(mu, logvar, prior_mu=x, impl=impl)
        log_prob = fused_elbo.gaussian_log_prob(x, mu, logvar, impl=impl)
        nll = fused_elbo.gaussian_nll(mu, x, logvar.mean(), impl=impl)
        bernoulli = fused_elbo.bernoulli_nll(mu, x, impl=impl)
        parts = elbo_loss(
            mu,
            x,
            mu,
            logvar,
            likelihood="gaussian",
            recon_logvar=logvar,
            beta=0.5,
            reduction="sum",
            return_parts=True,
            impl=impl,
        )
        return (kl + log_prob + nll + bernoulli).sum() + parts.loss + 2 * parts.nll - parts.kl

    return run


def inputs(batch, latent, event, device):
    generator = torch.Generator().manual_seed(batch)
    shapes = ((batch, latent), (batch, latent), (latent, event), (batch, event))
    tensors = [torch.rand(s, generator=generator).to(device) for s in shapes]
    return [t.requires_grad_() for t in tensors]


def value_and_gradients(function, arguments):
    torch.manual_seed(8)
    value = function(*arguments)
    return value.detach(), torch.autograd.grad(value, arguments)


def assert_compiles(function, argument_sets, backend, dynamic):
    """No graph break, eager's values and gradients."""
    torch._dynamo.reset()
    compiled = torch.compile(function, backend=backend, fullgraph=True, dynamic=dynamic)
    for arguments in argument_sets:
        value, gradients = value_and_gradients(compiled, arguments)
        expected, expected_gradients = value_and_gradients(function, arguments)
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-5)
        for a, b in zip(gradients, expected_gradients, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


# Inductor is the backend that users have; aot_eager, which checks functionalisation and fake
# tensors alone, says where a failure comes from. Noise: the kernels' seeds are drawn by one
# op, which both backends leave to eager's generator; the reference's randn is inductor's own
# on a GPU, and on a CPU falls back to eager's.
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("dynamic", [None, True], ids=["default", "dynamic"])
@pytest.mark.parametrize("impl", [KERNELS, "reference"])
class TestCompile:
    def test_every_op(self, backend, dynamic, impl, device):
        sizes = [(4, 5)] if dynamic is None else [(4, 6), (7, 10)]
        sets = [[a for i, a in enumerate(inputs(b, d, d, device)) if i != 2] for b, d in sizes]
        assert_compiles(every_op(impl), sets, backend, dynamic)

    def test_training_step(self, backend, dynamic, impl, device, monkeypatch):
        if impl == KERNELS:
            # A draw under compile need not be eager's draw: the seed is pinned.
            pinned = "fused_elbo.estimators.reference.noise.draw_seed"
            monkeypatch.setattr(
                pinned, lambda device, generator=None: torch.full((), 5, device=device)
            )
        else:
            monkeypatch.setattr(
                "fused_elbo.estimators.reference.reference.standard_normal",
                lambda shape, like, generator=None: torch.ones(shape).to(like),
            )
        sizes = [(4, 5, 6)] if dynamic is None else [(4, 6, 8), (6, 9, 10)]
        sets = [inputs(*size, device) for size in sizes]
        assert_compiles(vae_step(impl), sets, backend, dynamic)


def test_compiled_samples_are_fresh_and_seeded(device):
    """The seed is drawn in the graph: not baked into it, and governed by torch's generator."""
    torch._dynamo.reset()

    @torch.compile(backend="aot_eager", fullgraph=True)
    def sample(mu):
        return fused_elbo.gaussian_rsample(mu, torch.zeros_like(mu), 2, impl=KERNELS)

    mu = torch.zeros(3, 4, device=device)
    torch.manual_seed(1)
    first, second = sample(mu), sample(mu)
    assert not torch.equal(first, second)
    torch.manual_seed(1)
    assert torch.equal(sample(mu), first)
    torch.manual_seed(1)
    eager = fused_elbo.gaussian_rsample(mu, torch.zeros_like(mu), 2, impl=KERNELS)
    assert torch.equal(eager, first)


def test_a_compiled_sample_is_differentiated_with_its_own_noise(device):
    torch._dynamo.reset()
    logvar = torch.zeros(3, 8, device=device, requires_grad=True)

    @torch.compile(backend="aot_eager", fullgraph=True)
    def sample(logvar):
        return fused_elbo.gaussian_rsample(torch.zeros_like(logvar), logvar, impl=KERNELS)

    z = sample(logvar)
    (gradient,) = torch.autograd.grad(z.sum(), logvar)
    assert torch.equal(gradient, z.detach() / 2)


def test_a_module_compiles(device):
    torch._dynamo.reset()
    module = fused_elbo.ELBOLoss(
        likelihood="gaussian", recon_logvar=torch.nn.Parameter(torch.tensor(-1.0)), impl=KERNELS
    ).to(device)
    recon, x = torch.rand(2, 3, 5, device=device)
    kl = torch.ones(3, device=device)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    loss = compiled(recon, x, kl=kl)
    expected = module(recon, x, kl=kl)
    torch.testing.assert_close(loss, expected)
    (gradient,) = torch.autograd.grad(loss, module.recon_logvar)
    (other,) = torch.autograd.grad(expected, module.recon_logvar)
    torch.testing.assert_close(gradient, other)


IMPLS = pytest.mark.parametrize("impl", [KERNELS, "reference"])


class TestFunc:
    """torch.func.grad works on both; vmap on the reference, with an error on the kernels."""

    @IMPLS
    @pytest.mark.parametrize("op", OPS, ids=repr)
    def test_grad(self, op, impl, device):
        generator = torch.Generator().manual_seed(0)
        args = [random_values(a, (3, 5), generator).to(device, F32) for a in op.arguments]

        def function(*args):
            torch.manual_seed(4)
            return sum(output.cos().sum() for output in op.call(args, impl))

        gradients = torch.func.grad(function, argnums=tuple(range(len(args))))(*args)
        leaves = [a.clone().requires_grad_() for a in args]
        for a, b in zip(gradients, torch.autograd.grad(function(*leaves), leaves), strict=True):
            if impl == KERNELS:
                assert torch.equal(a, b)
            else:  # torch.func takes torch's own losses apart
                torch.testing.assert_close(a, b)

    @pytest.mark.parametrize("op", OPS, ids=repr)
    def test_what_the_kernels_have_not_names_the_reference(self, op, device):
        """Jacobians by torch.func, and forward mode in both of its spellings."""
        args = [random_values(a, (3, 5)).to(device, F32) for a in op.arguments]

        def function(first):
            return op.call([first, *args[1:]], KERNELS)[-1]

        def dual(first):
            with torch.autograd.forward_ad.dual_level():
                return function(torch.autograd.forward_ad.make_dual(first, first))

        for attempt in (
            torch.func.jacrev(function),
            torch.func.jacfwd(function, randomness="different"),
            lambda first: torch.func.jvp(function, (first,), (first,)),
            dual,
        ):
            with pytest.raises(RuntimeError, match="impl='reference'"):
                attempt(args[0])

    @pytest.mark.parametrize("op", OPS, ids=repr)
    def test_forward_mode_of_the_reference(self, op):
        args = [random_values(a, (3, 5)) for a in op.arguments]

        def function(*args):
            torch.manual_seed(4)
            return op.call(args, "reference")[-1]

        if op.name.startswith("rsample_log_ratio"):
            with pytest.raises(RuntimeError, match="rsample_log_ratio has no forward-mode"):
                torch.func.jvp(function, tuple(args), tuple(args))
            return
        value, tangent = torch.func.jvp(function, tuple(args), tuple(args))
        leaves = [a.clone().requires_grad_() for a in args]
        gradients = torch.autograd.grad(function(*leaves).sum(), leaves)
        torch.testing.assert_close(value, function(*args))
        expected = sum((g * a).sum() for g, a in zip(gradients, args, strict=True))
        torch.testing.assert_close(tangent.sum(), expected)

    def test_jacobian_of_importance_weights(self, device):
        """Its backward is torch's own operations, which have rules."""
        log_weights = torch.rand(4, 3, dtype=F64, device=device)

        def bound(log_weights, impl=KERNELS):
            return fused_elbo.importance_weights(log_weights, impl=impl).bound

        expected = torch.func.jacrev(lambda w: bound(w, "reference"))(log_weights)
        torch.testing.assert_close(torch.func.jacrev(bound)(log_weights), expected)

    @IMPLS
    def test_chunks_do_not_run_under_it(self, impl, device):
        mu, logvar = torch.rand(2, 3, 5, device=device)
        x = torch.rand(3, 5, device=device)

        def loss(mu):
            return fused_elbo.chunked_iwae_loss(
                torch.nn.Identity(), x, mu, logvar, 4, chunk_size=2, impl=impl
            )

        for attempt in (torch.func.grad(loss), torch.func.jacrev(loss)):
            with pytest.raises(RuntimeError, match=r"chunked_iwae_loss.*torch\.func"):
                attempt(mu)

    @IMPLS
    @pytest.mark.parametrize("reduction", ["mean", "none"])
    @pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
    def test_grad_of_the_loss(self, reduction, likelihood, impl, device):
        recon, x = torch.rand(2, 3, 5, device=device)
        kl = torch.rand(3, device=device)

        def function(recon, x, kl):
            options = {"likelihood": likelihood, "reduction": reduction, "impl": impl}
            return elbo_loss(recon, x, kl=kl, **options).square().sum()

        value, gradients = None, torch.func.grad(function, argnums=(0, 1, 2))(recon, x, kl)
        gradients_too, value = torch.func.grad_and_value(function, argnums=(0, 1, 2))(recon, x, kl)
        leaves = [t.clone().requires_grad_() for t in (recon, x, kl)]
        expected = function(*leaves)
        torch.testing.assert_close(value, expected.detach())
        for a, b, c in zip(
            gradients, gradients_too, torch.autograd.grad(expected, leaves), strict=True
        ):
            torch.testing.assert_close(a, c)
            torch.testing.assert_close(b, c)

    @pytest.mark.parametrize("op", OPS, ids=repr)
    def test_vmap_of_a_kernel_names_the_reference(self, op, device):
        args = [random_values(a, (3, 5)).to(device, F32).expand(2, *s) for a, s in _shapes(op)]
        with pytest.raises(RuntimeError, match="impl='reference'"):
            torch.func.vmap(lambda *a: op.call(a, KERNELS), randomness="different")(*args)

    @pytest.mark.parametrize("reduction", ["mean", "none"])
    def test_vmap_of_the_loss_names_the_reference(self, reduction, device):
        recon, x = torch.rand(2, 4, 3, 5, device=device)
        kl = torch.rand(4, 3, device=device)

        def loss(recon, x, kl):
            return elbo_loss(recon, x, kl=kl, reduction=reduction, impl=KERNELS)

        with pytest.raises(RuntimeError, match="impl='reference'"):
            torch.func.vmap(loss)(recon, x, kl)

    @pytest.mark.parametrize("op", OPS, ids=repr)
    def test_vmap_of_the_reference(self, op):
        batches = [torch.stack([random_values(a, (3, 5)) for _ in range(4)]) for a in op.arguments]

        def function(*args):
            outputs = op.call(args, "reference")
            return outputs[1:] if op.name.startswith("rsample") else outputs

        mapped = torch.func.vmap(function, randomness="different")(*batches)
        if op.name.startswith("gaussian_rsample"):
            assert mapped[0].shape == (4, *function(*(b[0] for b in batches))[0].shape)
            return
        if op.name.startswith("rsample_log_ratio"):  # of samples that are others at each call
            z, log_ratio = torch.func.vmap(
                lambda *args: op.call(args, "reference"), randomness="different"
            )(*batches)
            mu, logvar, *prior = (b.unsqueeze(1) for b in batches)
            prior_mu, prior_logvar = prior or (torch.zeros_like(mu), torch.zeros_like(mu))
            expected = Normal(prior_mu, (0.5 * prior_logvar).exp()).log_prob(z)
            expected = expected - Normal(mu, (0.5 * logvar).exp()).log_prob(z)
            torch.testing.assert_close(log_ratio, expected.sum(-1))
            assert not torch.equal(z[0] - mu[0], z[1] - mu[1])
            return
        for i in range(4):
            for a, b in zip(mapped, function(*(t[i] for t in batches)), strict=True):
                torch.testing.assert_close(a[i], b)

    def test_per_example_gradients_of_the_reference(self):
        recon, x = torch.rand(2, 4, 5)
        kl = torch.rand(4)

        def loss(recon, x, kl):
            return elbo_loss(recon[None], x[None], kl=kl[None], impl="reference")

        gradients = torch.func.vmap(torch.func.grad(loss))(recon, x, kl)
        torch.testing.assert_close(gradients, torch.sigmoid(recon) - x)


def _shapes(op):
    return [(a, argument_shape(a, (3, 5))) for a in op.arguments]


class TestAutocast:
    """Autocast hands mixed dtypes to a loss: half from the decoder, float32 from the data."""

    @IMPLS
    @pytest.mark.parametrize("half", [BF16, F16], ids=str)
    @pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
    @pytest.mark.parametrize("reduction", ["mean", "none"])
    def test_half_recon_and_float32_data(self, half, likelihood, reduction, impl, device):
        weight = torch.randn(4, 6, device=device, requires_grad=True)
        z, x = torch.randn(5, 4, device=device), torch.rand(5, 6, device=device)
        mu, logvar = torch.randn(2, 5, 4, device=device)
        options = {"likelihood": likelihood, "reduction": reduction}
        with torch.autocast(device, dtype=half):
            recon = z @ weight
            assert recon.dtype == half
            loss = elbo_loss(recon, x, mu, logvar, **options, impl=impl)
        assert loss.dtype == F32
        (actual,) = torch.autograd.grad(loss.sum(), recon, retain_graph=True)
        (through,) = torch.autograd.grad(loss.sum(), weight)
        assert through.dtype == F32
        plain = recon.detach().float().requires_grad_()
        expected = elbo_loss(plain, x, mu, logvar, **options, impl="reference")
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
        (gradient,) = torch.autograd.grad(expected.sum(), plain)
        assert actual.dtype == half
        ulp = 2 * rounding(half)  # of the gradient, and of the factor that came after it
        torch.testing.assert_close(actual.float(), gradient, rtol=ulp, atol=1e-6)

    @IMPLS
    def test_mixed_latents(self, impl, device):
        mu = torch.randn(5, 4, device=device, dtype=BF16, requires_grad=True)
        logvar = torch.randn(5, 4, device=device, requires_grad=True)
        with torch.autocast(device, dtype=BF16):
            z, kl = fused_elbo.rsample_kl(mu, logvar, impl=impl)
            log_prob = fused_elbo.gaussian_log_prob(z, mu, logvar, impl=impl)
        assert (z.dtype, kl.dtype, log_prob.dtype) == (BF16, F32, F32)
        exact = fused_elbo.gaussian_kl(mu.float(), logvar, impl="reference")
        torch.testing.assert_close(kl, exact, rtol=1e-5, atol=1e-5)
        for leaf, gradient in zip(
            (mu, logvar), torch.autograd.grad(kl.sum() + log_prob.sum(), (mu, logvar)), strict=True
        ):
            assert gradient.dtype == leaf.dtype


@pytest.mark.gpu
class TestOnAGpu:
    """Only a device has these: capture, synchronisation, and more than 2**31 elements."""

    def test_cuda_graph_draws_fresh_noise_at_every_replay(self):
        mu = torch.zeros(64, 32, device="cuda", requires_grad=True)
        logvar = torch.zeros(64, 32, device="cuda", requires_grad=True)
        x = torch.rand(64, 32, device="cuda")

        def step():
            z, kl = fused_elbo.rsample_kl(mu, logvar)
            loss = elbo_loss(z, x, kl=kl)
            return z, loss, *torch.autograd.grad(loss, (mu, logvar))

        graph, (z, loss, dmu, dlogvar) = captured(step)
        replays = []
        for _ in range(3):
            graph.replay()
            replays.append([t.detach().clone() for t in (z, loss, dmu, dlogvar)])
        assert len({r[0].sum().item() for r in replays}) == 3
        for z, loss, dmu, dlogvar in replays:
            # Every number of a replay belongs to that replay's noise.
            kl = fused_elbo.gaussian_kl(mu, logvar).detach()
            torch.testing.assert_close(loss, elbo_loss(z, x, kl=kl))
            dz = (torch.sigmoid(z) - x) / 64
            torch.testing.assert_close(dmu, dz, rtol=1e-4, atol=1e-6)  # mu = 0: no share of the KL
            torch.testing.assert_close(dlogvar, dz * z / 2, rtol=1e-4, atol=1e-6)

    def test_a_captured_iwae_step_draws_fresh_noise(self):
        mu, logvar = (torch.zeros(64, 32, device="cuda", requires_grad=True) for _ in range(2))
        x = torch.rand(64, 32, device="cuda")

        def step():
            z, log_ratio = fused_elbo.rsample_log_ratio(mu, logvar, 8, gradient="dreg")
            loss = fused_elbo.iwae_loss(z, x, log_ratio)
            return z, log_ratio, loss, *torch.autograd.grad(loss, (mu, logvar))

        graph, outputs = captured(step)
        replays = []
        for _ in range(3):
            graph.replay()
            replays.append([t.detach().clone() for t in outputs])
        assert len({z.sum().item() for z, *_ in replays}) == 3
        for z, log_ratio, loss, dmu, dlogvar in replays:
            torch.testing.assert_close(loss, fused_elbo.iwae_loss(z, x, log_ratio))
            # mu = 0, sigma = 1: q is the prior, whose score at z the path of log q cancels.
            weights = fused_elbo.iwae_loss(z, x, log_ratio, return_parts=True).weights
            at_z = weights[..., None].square() * (torch.sigmoid(z) - x) / 64
            torch.testing.assert_close(dmu, at_z.sum(0), rtol=1e-3, atol=1e-6)
            torch.testing.assert_close(dlogvar, 0.5 * (at_z * z).sum(0), rtol=1e-3, atol=1e-6)

    def test_nothing_waits_for_the_device(self):
        """set_sync_debug_mode raises at any synchronising call, forward or backward."""
        shape = (128, 64)
        tensors = [torch.rand(shape, device="cuda").requires_grad_() for _ in range(5)]
        mu, logvar, recon, x, recon_logvar = tensors
        weight = torch.tensor(2.0, device="cuda")

        def everything():
            z, kl = fused_elbo.rsample_kl(mu, logvar, prior_mu=x)
            more = fused_elbo.gaussian_rsample(mu, logvar, 3)
            total = z.sum() + more.sum() + fused_elbo.gaussian_log_prob(z, mu, logvar).sum()
            total = total + fused_elbo.gaussian_kl(mu, logvar).sum()
            options = {"likelihood": "gaussian", "recon_logvar": recon_logvar}
            loss = elbo_loss(recon, x, kl=kl, **options) + elbo_loss(recon, x, mu, logvar)
            samples, log_ratio = fused_elbo.rsample_log_ratio(mu, logvar, 4, gradient="dreg")
            loss = loss + fused_elbo.iwae_loss(samples, x, log_ratio)
            return torch.autograd.grad((loss, total), tensors, (weight, weight))

        everything()  # compiles
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            everything()
        finally:
            torch.cuda.set_sync_debug_mode("default")

    @pytest.mark.large
    @pytest.mark.parametrize("cols", [1024, 1025])
    def test_past_two_to_the_31_elements(self, cols):
        """Rows at the end of a tensor of more than 2**31 elements, against the same rows alone."""
        rows = 2**31 // cols + 300
        needed = 5 * rows * cols * 2
        if torch.cuda.mem_get_info()[0] < needed:
            pytest.skip(f"needs {needed >> 30} GiB of free device memory")
        mu = torch.zeros(rows, cols, device="cuda", dtype=BF16)
        mu[-256:] = torch.randn(256, cols, device="cuda")
        mu.requires_grad_()
        logvar = torch.full((1, 1), 0.5, device="cuda", dtype=BF16).expand(rows, cols)
        kl = fused_elbo.gaussian_kl(mu, logvar)
        tail = mu.detach()[-256:].clone()
        torch.testing.assert_close(kl[-256:], fused_elbo.gaussian_kl(tail, logvar[-256:]))
        (gradient,) = torch.autograd.grad(kl.sum(), mu)
        torch.testing.assert_close(gradient[-256:], tail)
        del kl, gradient
        z = fused_elbo.gaussian_rsample(mu.detach(), logvar)
        eps = ((z[-256:].float() - tail.float()) / 1.284).double()
        assert abs(eps.mean()) < 5 / 512
        assert abs(eps.square().mean() - 1) < 0.02
        assert not torch.equal(z[-300], z[0])


def test_the_ops_under_test_are_all_of_them():
    assert len(OP) == len(OPS) == 22
