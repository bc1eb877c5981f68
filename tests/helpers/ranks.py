"""Two ranks of examples/vae_digits.py under torchrun, for examples/test_ranks.py to read.

torchrun --nproc-per-node 2 -m helpers.ranks FOLDER    # from tests/
"""

import sys
from pathlib import Path

import torch

from helpers.machine import KERNELS
from helpers.scripts import load

BATCH = 12


def seeded(vae_digits):
    torch.manual_seed(0)
    return vae_digits.VAE(latents=4, hidden=16)


def options(folder, epochs, name):
    fixed = ["--ddp", "--device", "cpu", "--batch", "360", "--bounds", "1", "--latents", "4"]
    files = ["--checkpoint", str(folder / name), "--out", str(folder)]
    return [*fixed, *files, "--epochs", str(epochs)]


def gradients(model):
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def shares_of_an_epoch(rank):
    """The batches that ``fit`` gives to the steps of this rank: 101 images, 16 at a time."""
    vae_digits = load("vae_digits")
    shares = []
    vae_digits.train_step = lambda model, optimizer, x, *options: shares.append(x)
    vae_digits.test_elbo = lambda *args, **options: 0.0
    torch.manual_seed(rank)  # one order for all, although each would draw another
    list(vae_digits.fit(vae_digits.VAE(2, 4), torch.arange(101), None, epochs=1, batch=16))
    return shares


def main(folder):
    """On each rank: a step with each implementation, an epoch's shares, a run in two parts."""
    vae_digits = load("vae_digits")
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    train = vae_digits.load_digits_binary()[0]
    for impl in (KERNELS, "reference"):
        model = seeded(vae_digits)
        loss = vae_digits.distributed(model, vae_digits.negative_elbo)
        start = torch.get_rng_state()
        index = vae_digits.shuffled(train)[:BATCH][rank::2]
        state = torch.get_rng_state()
        loss(model, train[index], impl).backward()
        step = {"index": index, "state": state, "gradients": gradients(model), "start": start}
        torch.save(step, folder / f"{impl}-{rank}.pt")
    torch.save(shares_of_an_epoch(rank), folder / f"shares-{rank}.pt")
    # One process group serves both parts: joining the ranks again takes another free port.
    stop_ranks = vae_digits.stop_ranks
    vae_digits.start_ranks = lambda args: None
    vae_digits.stop_ranks = lambda: None
    for epochs in (1, 2):
        vae_digits.main(options(folder, epochs, "resumed.pt"))
    stop_ranks()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
