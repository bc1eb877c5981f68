"""Features of CUDA devices alone: several devices, streams, graphs, AMP, checkpoints, DDP."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import fused_elbo
from helpers.cuda_graphs import captured
from helpers.public_calls import public_calls

pytestmark = pytest.mark.gpu


def latents(device="cuda"):
    return [t.requires_grad_() for t in torch.randn(2, 64, 32, device=device)]


def step(mu, logvar, x):
    """A loss whose gradients have a share of the sample's."""
    z, kl = fused_elbo.rsample_kl(mu, logvar)
    return fused_elbo.elbo_loss(z, x, kl=kl)


def seeded_gradients(mu, logvar, x, function=step):
    torch.manual_seed(3)
    return torch.autograd.grad(function(mu, logvar, x), (mu, logvar))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_the_device_of_the_tensors_and_not_the_current_one():
    tensors = [*latents("cuda:1"), torch.rand(64, 32, device="cuda:1")]
    with torch.cuda.device(0):
        found = seeded_gradients(*tensors)
    with torch.cuda.device(1):
        expected = seeded_gradients(*tensors)
    for a, b in zip(found, expected, strict=True):
        assert a.device == torch.device("cuda:1")
        assert torch.equal(a, b)


def test_another_stream():
    """Kernels run on the current stream: after what it was given before, which takes long."""
    tensors = [*latents(), torch.rand(64, 32, device="cuda")]
    expected = seeded_gradients(*tensors)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        late = [(t.detach() + 0).requires_grad_() for t in tensors[:2]]
        found = seeded_gradients(*late, tensors[2])
    torch.cuda.current_stream().wait_stream(stream)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


# Weights of examples and annealing are set by the host: a graph would replay the first call's.
GRAPHS = sorted(n for n in public_calls("cpu") if not n.startswith("compat.Antix"))


@pytest.mark.parametrize("name", GRAPHS)
def test_every_public_call_can_be_captured(name):
    call = public_calls("cuda")[name]
    graph, _ = captured(call)
    graph.replay()
    torch.cuda.synchronize()


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpoint_draws_the_same_noise_again(reentrant):
    tensors = [*latents(), torch.rand(64, 32, device="cuda")]
    found = [
        seeded_gradients_by_backward(
            tensors, lambda *t: checkpoint(step, *t, use_reentrant=reentrant)
        ),
        seeded_gradients_by_backward(tensors, step),
    ]
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


def seeded_gradients_by_backward(tensors, function):
    """Gradients by ``backward``: a reentrant checkpoint does not take ``torch.autograd.grad``."""
    mu, logvar = (t.detach().clone().requires_grad_() for t in tensors[:2])
    torch.manual_seed(3)
    function(mu, logvar, tensors[2]).backward()
    return mu.grad, logvar.grad


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=str)
def test_a_step_under_autocast_and_a_gradient_scaler(half):
    model = torch.nn.Linear(32, 64, device="cuda")
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    scaler = torch.amp.GradScaler("cuda", enabled=half == torch.float16)
    x = torch.rand(128, 32, device="cuda")
    losses = []
    for _ in range(30):
        with torch.autocast("cuda", dtype=half):
            mu, logvar = model(x).chunk(2, -1)
            loss = step(mu, logvar, x)
        assert loss.dtype == torch.float32
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_ddp_of_one_process(tmp_path):
    """The gradients are those without it: its hooks run behind ours."""
    options = {"init_method": f"file://{tmp_path / 'store'}", "rank": 0, "world_size": 1}
    torch.distributed.init_process_group("nccl", **options)
    try:
        model = torch.nn.Linear(32, 64, device="cuda")
        wrapped = torch.nn.parallel.DistributedDataParallel(model, device_ids=[0])
        x, found = torch.rand(128, 32, device="cuda"), []
        for module in (wrapped, model):
            model.zero_grad()
            torch.manual_seed(3)
            step(*module(x).chunk(2, -1), x).backward()
            found.append([p.grad.clone() for p in model.parameters()])
    finally:
        torch.distributed.destroy_process_group()
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)
