"""Training as people do it: autocast, checkpointing, compilation, export."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

from fused_elbo import elbo_loss, rsample_kl
from helpers.cuda_graphs import captured
from helpers.machine import KERNELS

F16, BF16 = torch.float16, torch.bfloat16
IMPLS = pytest.mark.parametrize("impl", [KERNELS, "reference"])
PIXELS, LATENTS = 12, 4

pytestmark = pytest.mark.usefixtures("one_thread")


class VAE(nn.Module):
    """Returns the loss, as modules do that are wrapped, compiled or mapped over."""

    def __init__(self, impl="auto"):
        super().__init__()
        self.encoder = nn.Linear(PIXELS, 2 * LATENTS)
        self.decoder = nn.Sequential(nn.Linear(LATENTS, 8), nn.Tanh(), nn.Linear(8, PIXELS))
        self.impl = impl

    def sample(self, x):
        mu, logvar = self.encoder(x).chunk(2, dim=-1)
        return rsample_kl(mu, logvar, impl=self.impl)

    def forward(self, x):
        z, kl = self.sample(x)
        return elbo_loss(self.decoder(z), x, kl=kl, impl=self.impl)


def images(batch, device="cpu"):
    return torch.rand(batch, PIXELS, generator=torch.Generator().manual_seed(1)).to(device)


def gradients(model):
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def step_gradients(model, x, seed=3):
    """The gradients of one plain step at the noise of ``seed``."""
    model.zero_grad()
    torch.manual_seed(seed)
    model(x).backward()
    return gradients(model)


class TestAutocast:
    @IMPLS
    @pytest.mark.parametrize("half", [BF16, F16], ids=str)
    def test_gradients_with_a_scaler_are_those_of_float32(self, half, impl, device):
        """At the same noise: both draw it alike whatever the dtype of mu."""
        model, x = VAE(impl).to(device), images(16, device)
        expected = step_gradients(model, x)
        model.zero_grad()
        torch.manual_seed(3)
        scaler = torch.amp.GradScaler(device, init_scale=1024.0)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with torch.autocast(device, dtype=half):
            loss = model(x)
        assert loss.dtype == torch.float32
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        actual = gradients(model)
        before = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
        scaler.step(optimizer)
        scaler.update()
        after = nn.utils.parameters_to_vector(model.parameters()).detach()
        unit = torch.finfo(half).eps
        assert (actual - expected).norm() < 2 * unit * expected.norm()
        torch.testing.assert_close(after, before - 0.1 * actual)

    @IMPLS
    def test_the_scale_saves_gradients_that_float16_would_lose(self, impl, device):
        """Gradients are 1e-9 per pixel; float16 ends at 6e-8; a scale of 2**16 keeps ten bits."""
        batch = 128
        x = torch.zeros(batch, PIXELS, device=device)
        recon = (images(batch, device) - 16).to(F16).requires_grad_()
        kl = torch.zeros(batch, device=device)
        with torch.autocast(device, dtype=F16):
            loss = elbo_loss(recon, x, kl=kl, impl=impl)
        scale = 2.0**16
        (scaled,) = torch.autograd.grad(loss * scale, recon)
        exact = scale * (torch.sigmoid(recon.detach().double()) - x) / batch
        torch.testing.assert_close(scaled.double(), exact, rtol=0.002, atol=6e-8)

    @IMPLS
    def test_an_overflow_skips_the_step_and_lowers_the_scale(self, impl, device):
        model, x = VAE(impl).to(device), images(4, device)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler(device, init_scale=2.0**40)
        before = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
        with torch.autocast(device, dtype=F16):
            loss = model(x)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(nn.utils.parameters_to_vector(model.parameters()), before)
        assert scaler.get_scale() == 2.0**39


class TestCheckpoint:
    @IMPLS
    @pytest.mark.parametrize("reentrant", [False, True], ids=["not-reentrant", "reentrant"])
    def test_recomputed_noise_is_the_same_noise(self, reentrant, impl, device):
        """Other draws between forward and backward do not change it, nor are they changed."""
        model, x = VAE(impl).to(device), images(6, device).requires_grad_()
        samples = []

        def loss(x):
            z, kl = model.sample(x)
            samples.append(z.detach().clone())
            return elbo_loss(model.decoder(z), x, kl=kl, impl=impl)

        expected = step_gradients(model, x)
        model.zero_grad()
        torch.manual_seed(3)
        value = checkpoint(loss, x, use_reentrant=reentrant)
        torch.rand(5, device=device)
        state = torch.get_rng_state()
        value.backward()
        assert torch.equal(torch.get_rng_state(), state)
        assert len(samples) == 2  # it was recomputed
        assert torch.equal(*samples)
        torch.testing.assert_close(gradients(model), expected)


@IMPLS
def test_accumulated_gradients_are_those_of_the_joined_batch(impl, device):
    """Each part draws noise of its own; textbook PyTorch on the whole batch takes all of it."""
    model, x = VAE(impl).to(device), images(8, device)
    mu, logvar = model.encoder(x).chunk(2, dim=-1)
    noise = []
    for i, part in enumerate(x.split(2)):
        z, kl = model.sample(part)
        rows = slice(2 * i, 2 * i + 2)
        noise.append(((z - mu[rows]) * (-0.5 * logvar[rows]).exp()).detach())
        (elbo_loss(model.decoder(z), part, kl=kl, impl=impl) / 4).backward()
    accumulated = gradients(model)
    # Equal noise would differ in the last bits: it was worked out from z.
    assert not torch.allclose(noise[0], noise[1], atol=1e-3)

    model.zero_grad()
    recon = model.decoder(mu + (0.5 * logvar).exp() * torch.cat(noise))
    nll = F.binary_cross_entropy_with_logits(recon, x, reduction="sum")
    kl = 0.5 * (mu.square() + logvar.exp() - 1 - logvar).sum()
    ((nll + kl) / 8).backward()
    torch.testing.assert_close(accumulated, gradients(model), rtol=1e-4, atol=1e-5)


class TestCompile:
    """A batch of another size may cost one compilation, the first time; no size costs another."""

    @IMPLS
    @pytest.mark.parametrize("dynamic", [None, True], ids=["default", "dynamic"])
    def test_a_last_batch_of_any_size(self, dynamic, impl, device):
        torch._dynamo.reset()
        model = VAE(impl).to(device)
        counter = CompileCounterWithBackend("aot_eager")
        compiled = torch.compile(model, backend=counter, fullgraph=True, dynamic=dynamic)
        counts = []
        for batch in (10, 5, 10, 7, 2, 16, 33):
            x = images(batch, device)
            actual = step_gradients(compiled, x)
            torch.testing.assert_close(actual, step_gradients(model, x))
            counts.append(counter.frame_count)
        assert counts[1:] == [2] * 6
        if dynamic:  # a second size costs nothing either; the first is compiled in two attempts
            assert counts[0] == 2

    @IMPLS
    def test_the_backward_pass_and_the_update_in_one_graph(self, impl, device):
        """A whole step: torch.func's gradient and an SGD update, nothing left to eager."""
        torch._dynamo.reset()
        model = VAE(impl).to(device)
        counter = CompileCounterWithBackend("aot_eager")

        def step(parameters, x):
            def loss(parameters):
                return torch.func.functional_call(model, parameters, (x,))

            gradients, value = torch.func.grad_and_value(loss)(parameters)
            return {k: p - 0.1 * gradients[k] for k, p in parameters.items()}, value

        compiled = torch.compile(step, backend=counter, fullgraph=True)
        parameters = {k: p.detach() for k, p in model.named_parameters()}
        for batch in (8, 5, 7, 2):
            x = images(batch, device)
            torch.manual_seed(3)
            actual, value = compiled(parameters, x)
            torch.manual_seed(3)
            expected, expected_value = step(parameters, x)
            torch.testing.assert_close(value, expected_value)
            torch.testing.assert_close(actual, expected)
        assert counter.frame_count == 2


class Sampler(nn.Module):
    """An encoder that samples: what one exports."""

    def __init__(self, impl):
        super().__init__()
        self.encoder = nn.Linear(PIXELS, 2 * LATENTS)
        self.impl = impl

    def forward(self, x):
        mu, logvar = self.encoder(x).chunk(2, dim=-1)
        return rsample_kl(mu, logvar, impl=self.impl)


@IMPLS
def test_export_of_an_encoder_that_samples(impl, device, tmp_path):
    """Saved and loaded, for any batch: fresh noise a call, that of eager at the same seed."""
    model = Sampler(impl).to(device)
    shapes = {"x": {0: torch.export.Dim("batch", min=1)}}
    program = torch.export.export(model, (images(3, device),), dynamic_shapes=shapes)
    torch.export.save(program, tmp_path / "encoder.pt2")
    exported = torch.export.load(tmp_path / "encoder.pt2").module()
    for batch in (3, 1, 7):
        x = images(batch, device)
        torch.manual_seed(4)
        first, second = exported(x), exported(x)
        torch.manual_seed(4)
        torch.testing.assert_close(first, model(x))
        assert not torch.equal(first[0], second[0])


class TestFunc:
    @IMPLS
    def test_grad_of_a_functional_call(self, impl, device):
        model, x = VAE(impl).to(device), images(6, device)
        expected = step_gradients(model, x)
        parameters = {k: p.detach() for k, p in model.named_parameters()}
        torch.manual_seed(3)
        found = torch.func.grad(lambda p: torch.func.functional_call(model, p, (x,)))(parameters)
        torch.testing.assert_close(torch.cat([g.flatten() for g in found.values()]), expected)

    def ensemble(self, impl, device):
        models = [VAE(impl).to(device) for _ in range(3)]
        parameters, _ = torch.func.stack_module_state(models)

        def loss(parameters, x):
            return torch.func.functional_call(models[0], parameters, (x,))

        return models, {k: p.detach() for k, p in parameters.items()}, torch.func.grad(loss)

    def test_an_ensemble_on_the_reference(self, device):
        """At the same noise each model has the gradients that it has alone."""
        models, parameters, gradient = self.ensemble("reference", device)
        x = images(6, device)
        torch.manual_seed(3)
        found = torch.func.vmap(gradient, (0, None), randomness="same")(parameters, x)
        for i, model in enumerate(models):
            alone = step_gradients(model, x)
            torch.testing.assert_close(torch.cat([g[i].flatten() for g in found.values()]), alone)

    def test_an_ensemble_on_the_kernels_names_the_reference(self, device):
        _, parameters, gradient = self.ensemble(KERNELS, device)
        for randomness in ("same", "different"):
            with pytest.raises(RuntimeError, match="impl='reference'"):
                torch.func.vmap(gradient, (0, None), randomness=randomness)(
                    parameters, images(6, device)
                )


@pytest.mark.gpu
class TestOnAGpu:
    def test_make_graphed_callables_draws_fresh_noise_at_each_call(self):
        """With gradients of the noise that the call drew: z = mu + sigma eps tells it."""
        model = Sampler(KERNELS).cuda()
        x = images(16, "cuda")
        graphed = torch.cuda.make_graphed_callables(model, (x,))
        samples = []
        for _ in range(3):
            model.zero_grad()
            z, _ = graphed(x)
            z.sum().backward()
            mu, _ = model.encoder(x).detach().chunk(2, dim=-1)
            by_hand = torch.cat((torch.ones_like(z), 0.5 * (z.detach() - mu)), -1).sum(0)
            torch.testing.assert_close(model.encoder.bias.grad, by_hand, rtol=1e-3, atol=1e-4)
            samples.append(z.detach().clone())
        assert not torch.equal(samples[0], samples[1])
        assert not torch.equal(samples[1], samples[2])

    def test_a_whole_captured_step_trains_on_fresh_noise(self):
        """The loss, backward and the update in one graph; learning rate 0 leaves noise alone."""
        model, x = VAE(KERNELS).cuda(), images(16, "cuda")
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)

        def step():
            optimizer.zero_grad(set_to_none=True)
            loss = model(x)
            loss.backward()
            optimizer.step()
            return loss

        graph, loss = captured(step)
        replays = []
        for _ in range(3):
            graph.replay()
            replays.append((loss.item(), gradients(model).clone()))
        assert len({value for value, _ in replays}) == 3
        assert not torch.equal(replays[0][1], replays[1][1])

    def test_streams_do_not_disturb_each_other(self):
        """Steps on two streams at once give what they give one after another."""
        models = [VAE(KERNELS).cuda() for _ in range(2)]
        x = images(512, "cuda")
        expected = [step_gradients(model, x) for model in models]
        torch.cuda.synchronize()
        for _ in range(5):
            actual = []
            for model in models:
                stream = torch.cuda.Stream()
                stream.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(stream):
                    actual.append(step_gradients(model, x))
            torch.cuda.synchronize()
            for a, b in zip(actual, expected, strict=True):
                torch.testing.assert_close(a, b)

    @pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device or none")
    def test_the_second_device_gives_what_the_first_does(self):
        """Not the current device: kernels start where their tensors are."""
        model, x = VAE(KERNELS).to("cuda:0"), images(16, "cuda:0")
        expected = step_gradients(model, x)
        actual = step_gradients(model.to("cuda:1"), x.to("cuda:1"))
        assert actual.device == torch.device("cuda:1")
        torch.testing.assert_close(actual.to("cuda:0"), expected)
