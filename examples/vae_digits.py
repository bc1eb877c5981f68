"""A variational autoencoder on handwritten digits, trained with fused_elbo.

The data are the 1,797 images of 8 x 8 pixels that scikit-learn carries along. Twelve seconds
on one core of a CPU; on a GPU the same code runs the fused kernels. The second command
trains on another bound of the evidence, or by another gradient:

    python examples/vae_digits.py
    python examples/vae_digits.py --estimator iwae --samples 8

The third trains on several processes, and goes on where it stopped if it is run again:

    torchrun --nproc-per-node 2 examples/vae_digits.py --ddp --checkpoint vae_digits.pt
"""

import argparse
import os
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fused_elbo import bernoulli_nll, elbo_loss, rsample_kl
from fused_elbo.estimators.bounds import ESTIMATORS, estimate
from fused_elbo.estimators.evaluation import log_likelihood_bound

PIXELS = 64
TEST_IMAGES = 360
CHUNK = 20  # samples at a time in test_bound: 7 MB of activations, and faster on a CPU than 100
# All but an upper bound, to be minimised, and a formula to evaluate with.
TRAINING = [name for name in ESTIMATORS if name not in ("cubo", "jackknife")]


def load_digits_binary(seed=0):
    """Binary images for training [1437, 64] and for testing [360, 64].

    A pixel counts the ink, 0 to 16, in a 4 x 4 block of the scanned digit. Drawing it with
    probability count / 16 picks one point of the block at random. The seed fixes the
    draw and the split, so ELBOs of different runs are about the same images.
    """
    generator = torch.Generator().manual_seed(seed)
    probabilities = torch.from_numpy(load_digits().data).float() / 16
    images = torch.bernoulli(probabilities, generator=generator)
    images = images[torch.randperm(len(images), generator=generator)]
    return images[:-TEST_IMAGES], images[-TEST_IMAGES:]


class VAE(nn.Module):
    """q(z | x) is a diagonal Gaussian, p(x | z) a Bernoulli for each pixel."""

    def __init__(self, latents=8, hidden=256):
        super().__init__()
        self.latents = latents
        self.encoder = nn.Sequential(
            nn.Linear(PIXELS, hidden), nn.ReLU(), nn.Linear(hidden, 2 * latents)
        )
        self.decoder = nn.Sequential(
            nn.Linear(latents, hidden), nn.ReLU(), nn.Linear(hidden, PIXELS)
        )

    def encode(self, x):
        """Mean and log variance of q(z | x), each [B, latents]."""
        return self.encoder(x).chunk(2, dim=-1)

    def decode(self, z):
        """Logits of p(x | z), [B, 64]."""
        return self.decoder(z)


def negative_elbo(model, x, generator=None, impl="auto"):
    """-ELBO in nats, the mean over the images, from one sample of z for each."""
    mu, logvar = model.encode(x)
    z, kl = rsample_kl(mu, logvar, generator=generator, impl=impl)
    return elbo_loss(model.decode(z), x, kl=kl, impl=impl)


def train_step(model, optimizer, x, impl="auto", loss=negative_elbo):
    """One step on a batch; returns the loss before it."""
    loss = loss(model, x, impl=impl)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


def log_likelihood(model, x, impl="auto"):
    """The function z [K, B, latents] -> log p(x | z) [K, B] that the estimators ask for."""

    def at(z):
        logits = model.decode(z).flatten(0, 1)  # [K B, 64]: one row for each sample and image
        return -bernoulli_nll(logits, x.repeat(len(z), 1), impl=impl).view(z.shape[:-1])

    return at


def negative_bound(model, x, impl="auto", *, estimator, samples):
    """As negative_elbo, for any estimator by its name. Its gradient counts, not its value."""
    mu, logvar = model.encode(x)
    target = log_likelihood(model, x, impl)
    result = estimate(estimator, mu, logvar, samples, log_likelihood=target, impl=impl)
    return -result.surrogate.mean()


@torch.no_grad()
def test_elbo(model, x, samples, impl):
    """The ELBO in nats per image, from several samples of z for each.

    The noise has a seed of its own: it is the same at every epoch, and measuring leaves the
    noise of training as it was.
    """
    generator = torch.Generator(x.device).manual_seed(0)
    return -negative_elbo(model, x.repeat(samples, 1), generator, impl).item()


def test_bound(model, x, samples, impl, progress):
    """A bound of log p(x) in nats per image, tighter with more samples: K = 1 is an ELBO.

    With 5,000 samples it is the usual stand-in for the log-likelihood itself, and compares
    models that were trained on different bounds. ``progress`` wraps the list of chunks.
    """
    return test_log_likelihood(model, x, samples, impl, progress).bound.mean().item()


@torch.no_grad()
def test_log_likelihood(model, x, samples, impl, progress):
    """The bound of each image, and how far it is to be trusted."""
    mu, logvar = model.encode(x)
    target = log_likelihood(model, x, impl)
    generator = torch.Generator(x.device).manual_seed(0)
    options = {"chunk_size": CHUNK, "generator": generator, "impl": impl, "progress": progress}
    return log_likelihood_bound(mu, logvar, samples, log_likelihood=target, **options)


def pixel_baseline(train, test):
    """Mean log-likelihood in nats per test image, if pixels were independent coins.

    A coin's probability is its pixel's mean over the training images, with one image of
    each colour added: a pixel that training never saw lit keeps a finite log-likelihood.
    """
    logits = ((train.sum(0) + 1) / (len(train) + 2)).logit()
    return -bernoulli_nll(logits.expand_as(test), test, impl="reference").mean().item()


def fit(
    model,
    train,
    test,
    epochs=50,
    batch=64,
    lr=2e-3,
    impl="auto",
    loss=negative_elbo,
    optimizer=None,
):
    """Train with Adam; yields the test ELBO after every epoch. ``batch`` is that of all ranks."""
    optimizer = optimizer or torch.optim.Adam(model.parameters(), lr=lr)
    rank, world = place()
    for _ in range(epochs):
        for index in shuffled(train).split(batch):
            train_step(model, optimizer, train[index[rank::world]], impl, loss)
        yield test_elbo(model, test, samples=10, impl=impl)


def place():
    """The rank of this process and the number of all: (0, 1) without --ddp."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def shuffled(train):
    """An order of the images, rank 0's on every rank.

    The few that cannot be shared out evenly wait for another epoch: the mean of the ranks'
    gradients is that of the joined batch only if all shares are of one size.
    """
    order = torch.randperm(len(train), device=train.device)
    if dist.is_initialized():
        dist.broadcast(order, 0)
    world = place()[1]
    return order[: len(order) // world * world]


class Loss(nn.Module):
    """A loss as the forward of a module: what DistributedDataParallel wraps."""

    def __init__(self, model, loss):
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, x, impl):
        return self.loss(self.model, x, impl=impl)


def distributed(model, loss):
    """``loss``, with gradients that are averaged over the ranks, and noise that is not shared."""
    wrapped = DistributedDataParallel(Loss(model, loss))
    # All ranks were seeded alike, so that their models are alike; with one state of torch's
    # generator they would draw one noise too. Each takes a seed of its own from it. (Not the
    # run's seed + rank: rank 0 would draw the weights' numbers again, rank 1 the next run's.)
    rank, world = place()
    torch.manual_seed(torch.randint(2**31, (world,))[rank].item())
    return lambda model, x, impl: wrapped(x, impl)


def random_state(device):
    """Two functions: they get and set the state of the generator of all noise on ``device``."""
    if torch.device(device).type != "cuda":
        return torch.get_rng_state, torch.set_rng_state
    # Without a device these are of the current one, which is cuda:0 for ``--device cuda:1``.
    get_state = partial(torch.cuda.get_rng_state, device=device)
    set_state = partial(torch.cuda.set_rng_state, device=device)
    return get_state, set_state


def settings(args):
    """The settings that a resumed run must share with the run that it continues.

    Implementation and kind of device are among them, because each draws noise of its own.
    """
    names = "impl", "estimator", "samples", "latents", "batch", "lr", "seed"
    run = {"device": torch.device(args.device).type, "ranks": place()[1]}
    return {name: getattr(args, name) for name in names} | run


def save(args, model, optimizer, elbos):
    """All that the next epoch depends on, each rank's state of the generator included."""
    rank, world = place()
    get_state, _ = random_state(args.device)
    states = [get_state()] * world
    if dist.is_initialized():
        dist.all_gather_object(states, states[rank])
    if rank == 0:
        run = {"settings": settings(args), "elbos": elbos, "states": states}
        run |= {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        unfinished = args.checkpoint.with_name(args.checkpoint.name + ".unfinished")
        torch.save(run, unfinished)
        unfinished.replace(args.checkpoint)  # at once: a run that is killed leaves a whole file


def resume(args, model, optimizer):
    """Restore everything that ``save`` wrote; returns the test ELBOs of the epochs so far."""
    run = torch.load(args.checkpoint, map_location="cpu")
    if run["settings"] != settings(args):
        raise SystemExit(f"{args.checkpoint} is of {run['settings']}, not of {settings(args)}")
    model.load_state_dict(run["model"])
    optimizer.load_state_dict(run["optimizer"])
    _, set_state = random_state(args.device)
    set_state(run["states"][place()[0]])
    return run["elbos"]


@torch.no_grad()
def draw(model, test, elbos, bounds, baseline, path, count=12):
    """One figure: reconstructions, samples from the prior, and the test ELBO by epoch."""
    x = test[:count]
    reconstructions = model.decode(model.encode(x)[0]).sigmoid()
    z = torch.randn(3 * count, model.latents, device=x.device)
    samples = model.decode(z).sigmoid()

    figure = Figure(figsize=(8, 6.6), dpi=100, layout="constrained")
    rows = figure.subplots(3, 1, height_ratios=(2, 3, 3.6))
    title = "test images (above) and their reconstructions, p(pixel is ink) (below)"
    show_images(rows[0], torch.cat((x, reconstructions)), count, title)
    show_images(rows[1], samples, count, "samples: z from the prior, then p(pixel is ink)")
    rows[2].plot(range(1, len(elbos) + 1), elbos, marker=".", label="VAE, test ELBO")
    samples, bound = max(bounds.items())
    rows[2].axhline(bound, color="black", label=f"test log p(x), bound of {samples:,} samples")
    rows[2].axhline(baseline, color="0.4", linestyle="--", label="independent pixels, test")
    rows[2].set(xlabel="epoch", ylabel="nats per image")
    rows[2].grid(alpha=0.3)
    rows[2].legend()
    figure.savefig(path)


def show_images(axes, images, columns, title):
    """Draw [N, 64] as a grid of 8 x 8 images, dark ink on white, thin grey lines between."""
    grid = nn.functional.pad(images.cpu().view(-1, columns, 8, 8), (1, 1, 1, 1), value=0.25)
    grid = grid.permute(0, 2, 1, 3).flatten(2).flatten(0, 1)
    axes.imshow(grid.numpy(), cmap="Greys", vmin=0, vmax=1)
    axes.set_title(title, fontsize=10)
    axes.axis("off")


def summary(elbo, bounds, baseline):
    """The table at the end."""
    table = Table("test log-likelihood", "nats per image")
    table.columns[1].justify = "right"
    table.add_row("test ELBO, 10 samples", f"{elbo:.2f}")
    for samples, bound in bounds.items():
        table.add_row(f"bound, K = {samples:,}", f"{bound:.2f}")
    table.add_row("independent pixels, exact", f"{baseline:.2f}")
    return table


def positive_int(text):
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def parse(argv=None):
    parser = argparse.ArgumentParser(description="Train a VAE on handwritten digits.")
    cuda = torch.cuda.is_available()
    parser.add_argument("--impl", choices=("auto", "triton", "numba", "reference"), default="auto")
    names = {"choices": TRAINING, "metavar": "NAME"}
    about = f"train by one of {', '.join(TRAINING)} (default: rsample_kl and elbo_loss)"
    parser.add_argument("--estimator", **names, help=about)
    about = "of z for each image, with --estimator (default: 8)"
    parser.add_argument("--samples", type=positive_int, metavar="K", help=about)
    about = "samples of the bounds at the end (default: 1 50 5000)"
    numbers = {"nargs": "+", "type": positive_int, "metavar": "K", "default": [1, 50, 5000]}
    parser.add_argument("--bounds", **numbers, help=about)
    parser.add_argument("--epochs", type=positive_int, default=50)
    parser.add_argument("--latents", type=positive_int, default=8)
    parser.add_argument("--batch", type=positive_int, default=64)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0, help="of the weights and of training")
    parser.add_argument("--device", default="cuda" if cuda else "cpu")
    about = "train on the processes that torchrun starts; they share each --batch"
    parser.add_argument("--ddp", action="store_true", help=about)
    about = "save every epoch to FILE; if it is there already, go on from it"
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help=about)
    parser.add_argument("--out", type=Path, default=Path("vae_digits"), help="folder to write to")
    args = parser.parse_args(argv)
    if args.samples is not None and args.estimator is None:
        parser.error("--samples needs --estimator: the default path takes one sample")
    world = int(os.environ.get("WORLD_SIZE", 0))
    if args.ddp and world == 0:
        parser.error("--ddp needs torchrun: torchrun --nproc-per-node 2 vae_digits.py --ddp")
    if world > 1 and not args.ddp:  # all would train one run, and write to one file
        parser.error(f"{world} processes without --ddp: they would not share the work")
    if args.ddp and args.batch % world:
        parser.error(f"--batch {args.batch} cannot be shared evenly by {world} processes")
    try:  # one image tells now, in one line, whether the options go together on --device
        if args.ddp and torch.device(args.device).type == "cuda":
            # Before anything is put on a GPU: it would be on cuda:0, for every rank.
            args.device = f"cuda:{os.environ['LOCAL_RANK']}"
            torch.cuda.set_device(args.device)
        x = torch.zeros(1, PIXELS, device=args.device)
        loss_of(args)(VAE(1, 1).to(args.device), x, impl=args.impl)
    except (RuntimeError, AssertionError, ValueError) as error:
        parser.error(str(error))
    return args


def loss_of(args):
    """The loss that --estimator and --samples ask for, called as negative_elbo is."""
    if args.estimator is None:
        return negative_elbo
    samples = 8 if args.samples is None else args.samples
    return partial(negative_bound, estimator=args.estimator, samples=samples)


def start_ranks(args):
    """Join the other processes of torchrun; ``parse`` gave each a GPU where there are GPUs."""
    dist.init_process_group("nccl" if torch.device(args.device).type == "cuda" else "gloo")


def stop_ranks():
    """Leave the other processes, once all are here.

    A rank that evaluates nothing must not end at once: where gloo's thread lets go of the last
    tensor while Python shuts down, the process is aborted. Waiting gives it time to.
    """
    dist.barrier()
    dist.destroy_process_group()


def evaluate(args, model, test, elbos, baseline, progress):
    """Bounds on log p(x), pictures and a summary."""
    bounds = {}
    for samples in sorted(args.bounds):
        track = partial(progress.track, description=f"bound, K = {samples:,}")
        result = test_log_likelihood(model, test, samples, args.impl, track)
        bounds[samples] = result.bound.mean().item()
    progress.stop()  # what follows is printed below the bars
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "vae_digits.png"
    draw(model, test, elbos, bounds, baseline, path)
    progress.console.print(summary(elbos[-1], bounds, baseline))
    progress.console.print(str(result), highlight=False)  # of the most samples
    progress.console.print(f"pictures in {path}", soft_wrap=True)


def main(argv=None):
    args = parse(argv)
    torch.set_num_threads(1)  # matrices this small take longer when threads share them
    if args.ddp:
        start_ranks(args)
    train, test = (images.to(args.device) for images in load_digits_binary())
    baseline = pixel_baseline(train, test)

    torch.manual_seed(args.seed)
    model = VAE(args.latents).to(args.device)
    loss = distributed(model, loss_of(args)) if args.ddp else loss_of(args)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
    saved = args.checkpoint is not None and args.checkpoint.exists()
    elbos = resume(args, model, optimizer) if saved else []
    rank = place()[0]
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    console = Console(quiet=rank > 0)  # one rank talks
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        task = progress.add_task("training", total=args.epochs, completed=len(elbos))
        options = args.epochs - len(elbos), args.batch, args.lr, args.impl, loss, optimizer
        for elbo in fit(model, train, test, *options):
            elbos.append(elbo)
            if args.checkpoint is not None:
                save(args, model, optimizer, elbos)
            progress.console.print(f"epoch {len(elbos):3d}   test ELBO {elbo:7.2f} nats per image")
            progress.advance(task)
        if rank == 0:
            evaluate(args, model, test, elbos, baseline, progress)
    if args.ddp:
        stop_ranks()


if __name__ == "__main__":
    main()
