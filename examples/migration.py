"""Two well-known training programs, before and after one changed line.

The programs are the VAE of PyTorch's examples (github.com/pytorch/examples, vae/main.py,
BSD 3-Clause) and the VAE of pythae (github.com/clementchadebec/benchmark_VAE, Apache 2.0) with
its default networks and training settings. Both are written anew here, small, for the 1,797
digits of 8 x 8 grey pixels that scikit-learn carries along; the loss "before" is the original's
formula. "After" is the same program with the loss imported from fused_elbo.compat:

    python examples/migration.py
    python examples/migration.py --epochs 3 --seeds 2

It shows whether the loss curves coincide, what the change saves in time and in peak memory, and
how much of a training step the loss is at all. On a CPU expect time from losses that torch computes
slowly, as the cross-entropy of probabilities.
"""

import argparse
import json
import math
import platform
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median, quantiles, stdev
from typing import NamedTuple

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fused_elbo import compat

DIGITS, MNIST = 64, 784  # pixels: of the data here, and of the usual data
MEASURED = ("step", "loss")


class PytorchVAE(nn.Module):
    """The network of PyTorch's example; ``forward`` returns the arguments of its loss."""

    def __init__(self, pixels):
        super().__init__()
        self.fc1 = nn.Linear(pixels, 400)
        self.fc21 = nn.Linear(400, 20)
        self.fc22 = nn.Linear(400, 20)
        self.fc3 = nn.Linear(20, 400)
        self.fc4 = nn.Linear(400, pixels)

    def forward(self, x):
        hidden = F.relu(self.fc1(x))
        mu, logvar = self.fc21(hidden), self.fc22(hidden)
        std = torch.exp(0.5 * logvar)
        z = mu + torch.randn_like(std) * std
        recon_x = torch.sigmoid(self.fc4(F.relu(self.fc3(z))))
        return recon_x, x, mu, logvar


def pytorch_loss(recon_x, x, mu, logvar):
    """As PyTorch's example has it: sums over everything."""
    cross_entropy = F.binary_cross_entropy(recon_x, x, reduction="sum")
    return cross_entropy - 0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())


class PythaeVAE(nn.Module):
    """pythae's VAE on its default MLPs; ``forward`` returns the arguments of its loss."""

    def __init__(self, pixels):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(pixels, 512), nn.ReLU())
        self.embedding = nn.Linear(512, 10)
        self.log_var = nn.Linear(512, 10)
        self.decoder = nn.Sequential(
            nn.Linear(10, 512), nn.ReLU(), nn.Linear(512, pixels), nn.Sigmoid()
        )

    def forward(self, x):
        hidden = self.encoder(x)
        mu, log_var = self.embedding(hidden), self.log_var(hidden)
        std = torch.exp(0.5 * log_var)
        z = mu + torch.randn_like(std) * std
        return self.decoder(z), x, mu, log_var, z


def pythae_loss(recon_x, x, mu, log_var, z):
    """As pythae has it, with its default "mse": means over the batch."""
    recon = 0.5 * F.mse_loss(recon_x, x, reduction="none").sum(dim=-1)
    kld = -0.5 * torch.sum(1 + log_var - mu.pow(2) - log_var.exp(), dim=-1)
    return (recon + kld).mean(dim=0), recon.mean(dim=0), kld.mean(dim=0)


class Program(NamedTuple):
    """A model with the settings that its original trains it with."""

    name: str
    model: Callable
    before: Callable
    after: Callable
    batch: int
    lr: float
    epochs: int
    sums: bool  # whether the loss is a sum over the batch, and not a mean


PROGRAMS = (
    # The changed line: from fused_elbo.compat import pytorch_examples_vae_loss as loss_function
    Program(
        "PyTorch example", PytorchVAE, pytorch_loss, compat.pytorch_examples_vae_loss,
        batch=128, lr=1e-3, epochs=10, sums=True,
    ),
    # The changed line: model.loss_function = fused_elbo.compat.pythae_vae_loss
    Program(
        "pythae VAE", PythaeVAE, pythae_loss, compat.pythae_vae_loss,
        batch=64, lr=1e-4, epochs=100, sums=False,
    ),
)  # fmt: skip


def scalar(loss):
    """The tensor to differentiate. pythae's loss returns its two terms as well."""
    return loss[0] if isinstance(loss, tuple) else loss


def train_step(model, optimizer, loss_function, x):
    """One step of either program's loop; returns the loss as the program reads it."""
    optimizer.zero_grad()
    loss = scalar(loss_function(*model(x)))
    loss.backward()
    value = loss.item()
    optimizer.step()
    return value


def start(program, seed, pixels=DIGITS, device="cpu", dtype=torch.float32):
    """Seed everything; the model and its optimiser."""
    torch.manual_seed(seed)
    model = program.model(pixels).to(device, dtype)
    return model, torch.optim.Adam(model.parameters(), lr=program.lr)


def train(program, loss_function, images, seed, epochs, device="cpu", dtype=torch.float32):
    """The loss per image before every step: one list for each epoch.

    The seed fixes weights, batches and noise. The noise is the model's own torch.randn_like,
    which the changed line does not touch: before and after share it on every device.
    """
    model, optimizer = start(program, seed, images.shape[1], device, dtype)
    loader = DataLoader(TensorDataset(images.to(dtype)), batch_size=program.batch, shuffle=True)
    curve = []
    for _ in range(epochs):
        losses = []
        for (x,) in loader:
            loss = train_step(model, optimizer, loss_function, x.to(device))
            losses.append(loss / len(x) if program.sums else loss)
        curve.append(losses)
    return curve


def compare(before, after):
    """Two curves: the mean loss of every epoch, and the largest relative difference of a step."""
    steps = [zip(*epoch, strict=True) for epoch in zip(before, after, strict=True)]
    return {
        "before": [sum(losses) / len(losses) for losses in before],
        "after": [sum(losses) / len(losses) for losses in after],
        "difference": [max(abs(b - a) / abs(b) for b, a in epoch) for epoch in steps],
    }


def curves(program, after, images, seeds, epochs, device, console):
    """Both curves from every seed in float32, and from the first seed in float64.

    In float64 the same difference shrinks with the rounding, unless the losses differ.
    """
    runs = [(seed, torch.float32) for seed in seeds] + [(seeds[0], torch.float64)]
    out = []
    for seed, dtype in runs:
        options = images, seed, epochs, device, dtype
        pair = compare(train(program, program.before, *options), train(program, after, *options))
        name = str(dtype).removeprefix("torch.")
        console.print(
            f"{program.name}, seed {seed}, {name}: last epoch's loss {pair['before'][-1]:.5f} "
            f"before, {pair['after'][-1]:.5f} after, "
            f"at most {max(pair['difference']):.1e} apart in a step (relative)",
            soft_wrap=True,
        )
        out.append({"seed": seed, "dtype": name, **pair})
    return out


def loss_alone(model, x):
    """The loss's arguments on a batch, for a function that does its forward and backward.

    Gradients go to what the networks made: the reconstruction, mu and the log variance.
    """
    with torch.no_grad():
        recon, x, mu, logvar, *rest = model(x)
    inputs = [tensor.requires_grad_() for tensor in (recon, mu, logvar)]

    def call(loss_function):
        loss = scalar(loss_function(recon, x, mu, logvar, *rest))
        return torch.autograd.grad(loss, inputs)

    return call


def prepare(program, after, x):
    """For "step" and "loss" two functions of nothing, before and after, both warmed up."""
    calls = {what: [] for what in MEASURED}
    for loss_function in (program.before, after):
        model, optimizer = start(program, 0, x.shape[1], x.device)
        step = partial(train_step, model, optimizer, loss_function, x)
        loss = partial(loss_alone(model, x), loss_function)
        for what, call in zip(MEASURED, (step, loss), strict=True):
            for _ in range(10):
                call()
            calls[what].append(call)
        optimizer.zero_grad()  # so that a step's peak has the gradients in it
    return calls


def seconds(call, device):
    """The time of one call, to the end of what it started on a GPU."""
    synchronize(device)
    start = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def interleaved(before, after, rounds, device):
    """Medians and quartiles over rounds of one call each, in turn.

    ``speed_up`` is the ratio of the medians, above 1 where the change is faster; ``quartiles``
    are those of the rounds' own ratios.
    """
    pairs = [(seconds(before, device), seconds(after, device)) for _ in range(rounds)]
    old, new = (median(times) for times in zip(*pairs, strict=True))
    low, _, high = quantiles([b / a for b, a in pairs], n=4)
    return {"before_s": old, "after_s": new, "speed_up": old / new, "quartiles": [low, high]}


def peak_bytes(call, device):
    """The most that a call holds at once, on top of what was there before it."""
    return gpu_peak(call, device) if device.type == "cuda" else cpu_peak(call)


def gpu_peak(call, device):
    synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def cpu_peak(call):
    """From the profiler's list of allocations and releases: the CPU's allocator keeps no books."""
    from torch._C._profiler import _EventType
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    changes, pending = [], list(profiler.profiler.kineto_results.experimental_event_tree())
    while pending:
        event = pending.pop()
        pending.extend(event.children)
        if event.tag == _EventType.Allocation:
            changes.append((event.start_time_ns, event.extra_fields.alloc_size))
    live = peak = 0
    for _, size in sorted(changes, key=lambda change: change[0]):
        live += size
        peak = max(peak, live)
    return peak


def costs(program, after, images, rounds, device):
    """Time and peak memory, before and after, of a whole step and of its loss, on one batch."""
    x = images[: program.batch].to(device)
    calls = prepare(program, after, x)
    out = {"pixels": x.shape[1], "batch": len(x)}
    for what in MEASURED:
        before, after = calls[what]
        peaks = {
            f"{when}_bytes": peak_bytes(call, device)
            for when, call in (("before", before), ("after", after))
        }
        out[what] = peaks | interleaved(before, after, rounds, device)
    out["loss_share"] = out["loss"]["before_s"] / out["step"]["before_s"]
    return out


def spread(runs, epoch):
    """Standard deviation of an epoch's loss over the seeds, before, relative to their mean."""
    losses = [run["before"][epoch] for run in runs if run["dtype"] == "float32"]
    return stdev(losses) / (sum(losses) / len(losses)) if len(losses) > 1 else math.nan


def largest(runs, dtype):
    """The largest relative difference of any step of any seed."""
    return max(max(run["difference"]) for run in runs if run["dtype"] == dtype)


def curves_table(results):
    table = Table("program", "epochs", "seeds", "last loss", "seed to seed",
                  "apart, float32", "float64")  # fmt: skip
    for result in results:
        runs = [run for run in result["curves"] if run["dtype"] == "float32"]
        table.add_row(
            result["program"],
            str(len(runs[0]["before"])),
            str(len(runs)),
            f"{sum(run['before'][-1] for run in runs) / len(runs):.3f}",
            f"{spread(runs, -1):.1e}",
            f"{largest(runs, 'float32'):.1e}",
            f"{largest(result['curves'], 'float64'):.1e}",
        )
    return table


def times_table(results):
    table = Table("program", "pixels", "of", "time, ms", "speed-up", "quartiles")
    for result in results:
        for cost in result["costs"]:
            for what in MEASURED:
                row = cost[what]
                low, high = row["quartiles"]
                table.add_row(
                    result["program"],
                    str(cost["pixels"]),
                    what,
                    change(row, "s", 1e3, 2),
                    f"{row['speed_up']:.2f}",
                    f"{low:.2f} to {high:.2f}",
                )
    return table


def shares_table(results):
    table = Table("program", "pixels", "loss / step, time", "peak of step, kB", "of loss, kB")
    for result in results:
        for cost in result["costs"]:
            peaks = [change(cost[what], "bytes", 1e-3, 0) for what in MEASURED]
            share = f"{100 * cost['loss_share']:.0f} %"
            table.add_row(result["program"], str(cost["pixels"]), share, *peaks)
    return table


def change(row, unit, factor, digits):
    """Before and after, with an arrow between."""
    before, after = (factor * row[f"{when}_{unit}"] for when in ("before", "after"))
    return f"{before:.{digits}f} \N{RIGHTWARDS ARROW} {after:.{digits}f}"


def draw(results, machine, path):
    """The curves on top of each other, and below how far apart they are."""
    figure = Figure(figsize=(9, 6.4), dpi=110, layout="constrained")
    rows = figure.subplots(2, len(results), sharex="col", squeeze=False)
    for axes, result in zip(rows[0], results, strict=True):
        draw_losses(axes, result)
    for axes, result in zip(rows[1], results, strict=True):
        draw_differences(axes, result)
    rows[0, 0].set_ylabel("training loss per image")
    rows[1, 0].set_ylabel("difference, relative to the loss")
    figure.suptitle(f"One changed line: {machine}", fontsize=10)
    figure.savefig(path, metadata={"Software": None})


def draw_losses(axes, result):
    """The band of the seeds before the change, and the first seed before and after it."""
    runs = [run for run in result["curves"] if run["dtype"] == "float32"]
    epochs = range(1, len(runs[0]["before"]) + 1)
    losses = list(zip(*(run["before"] for run in runs), strict=True))
    lowest, highest = ([pick(epoch) for epoch in losses] for pick in (min, max))
    label = f"before, range of {len(runs)} seeds"
    axes.fill_between(epochs, lowest, highest, color="0.85", label=label)
    label = f"before, seed {runs[0]['seed']}"
    axes.plot(epochs, runs[0]["before"], color="#0072B2", linewidth=4, alpha=0.5, label=label)
    label = f"after, seed {runs[0]['seed']}"
    axes.plot(epochs, runs[0]["after"], color="#D55E00", linewidth=1.2, ls="--", label=label)
    axes.set_title(result["program"], fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def draw_differences(axes, result):
    """Largest difference of a step in every epoch, beside the spread from seed to seed."""
    runs = [run for run in result["curves"] if run["dtype"] == "float32"]
    epochs = range(1, len(runs[0]["before"]) + 1)
    band = [spread(runs, epoch - 1) for epoch in epochs]
    axes.plot(epochs, band, color="0.4", label="seed to seed, standard deviation")
    for run in result["curves"]:
        single = run["dtype"] == "float32"
        label = None if single and run is not runs[0] else f"before and after, {run['dtype']}"
        heights = [difference or math.nan for difference in run["difference"]]  # log axis: no 0
        color = "#D55E00" if single else "#009E73"
        axes.plot(epochs, heights, color=color, linewidth=1, label=label)
    axes.set(yscale="log", xlabel="epoch", ylim=(1e-16, 1))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="upper right", bbox_to_anchor=(1, 0.42))  # where no curve is


def describe(device):
    """The processor or GPU, and the versions that matter: no names of hosts or paths."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    return f"{name}, torch {torch.__version__}, {torch.get_num_threads()} CPU thread"


def processor():
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or "unknown CPU"


def rounded(value):
    """Floats to nine digits, all the way down: float32 has no more."""
    if isinstance(value, float):
        return float(f"{value:.9g}")
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list) else value


def parse(argv=None):
    parser = argparse.ArgumentParser(description="Two VAE programs before and after one line.")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    about = "default: the originals', 10 and 100"
    parser.add_argument("--epochs", type=int, metavar="N", help=about)
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="default: 5")
    parser.add_argument("--rounds", type=int, default=500, help="of the timings (default: 500)")
    parser.add_argument("--device", type=torch.device, default=torch.device(device))
    parser.add_argument("--impl", choices=("auto", "triton", "numba", "reference"), default="auto")
    parser.add_argument("--out", type=Path, default=Path("migration"), help="folder to write to")
    about = "default: migration.json in that folder"
    parser.add_argument("--json", type=Path, metavar="FILE", help=about)
    args = parser.parse_args(argv)
    if min(args.seeds, args.epochs or 1, args.rounds - 1) < 1 or args.epochs == 0:
        parser.error("--seeds and --epochs must be at least 1, --rounds at least 2")
    try:  # one image tells now, in one line, whether the options go together
        model, _ = start(PROGRAMS[0], 0, pixels=1, device=args.device)
        PROGRAMS[0].after(*model(torch.zeros(1, 1, device=args.device)), impl=args.impl)
    except (RuntimeError, AssertionError) as error:
        parser.error(str(error))
    return args


def main(argv=None):
    args = parse(argv)
    torch.set_num_threads(1)  # matrices this small take longer when threads share them
    console = Console()
    machine = describe(args.device)
    console.print(machine)
    digits = torch.from_numpy(load_digits().data).float() / 16
    generator = torch.Generator().manual_seed(0)
    # The times of a step do not depend on what the pixels show.
    pictures = torch.rand(PROGRAMS[0].batch, MNIST, generator=generator)

    results = []
    for program in PROGRAMS:
        after = partial(program.after, impl=args.impl)
        epochs = args.epochs or program.epochs
        seeds = list(range(1, args.seeds + 1))
        runs = curves(program, after, digits, seeds, epochs, args.device, console)
        console.print(f"{program.name}: time and memory, {args.rounds} rounds")
        options = args.rounds, args.device
        measured = [costs(program, after, images, *options) for images in (digits, pictures)]
        results.append({"program": program.name, "curves": runs, "costs": measured})

    args.out.mkdir(parents=True, exist_ok=True)
    path = args.json or args.out / "migration.json"
    output = {"machine": machine, "impl": args.impl, "rounds": args.rounds, "programs": results}
    path.write_text(json.dumps(rounded(output)) + "\n", encoding="utf-8", newline="\n")
    draw(results, machine, args.out / "migration.png")
    console.print(curves_table(results))
    console.print(times_table(results))
    console.print(shares_table(results))
    console.print(f"curves in {args.out / 'migration.png'}, numbers in {path}", soft_wrap=True)


if __name__ == "__main__":
    main()
