"""The measurements of a model: a step, a whole ``model.train()``, and its loss curve."""

import contextlib
import time
import warnings
from statistics import median, quantiles

import torch

from ..harness import memory
from . import models

CURVE = "elbo_train"  # of scvi-tools' history, in nats per cell
SIDES = {"before": False, "after": True}
QUIET = {"enable_progress_bar": False, "enable_model_summary": False}
# SCANVI splits labelled and unlabelled cells each for itself, and may end on a batch of one cell,
# which batch normalisation refuses.
WHOLE_BATCHES = {"drop_last": True}


def alternating(before, after, rounds, in_a_row=1):
    """Seconds of both, which take turns, and the speed-ups of the rounds.

    A turn is some calls in a row: a training finds its own weights in the caches.
    """
    pairs = []
    for turn in range(rounds):
        seconds = {}
        for function in (before, after) if turn % 2 else (after, before):
            start = time.perf_counter()
            for _ in range(in_a_row):
                function()
            seconds[function] = (time.perf_counter() - start) / in_a_row
        pairs.append((seconds[before], seconds[after]))
    ratios = [b / a for b, a in pairs]
    low, middle, high = quantiles(ratios, n=4, method="inclusive")
    return {
        "before_s": median(b for b, _ in pairs),
        "after_s": median(a for _, a in pairs),
        "speed_up": middle,
        "quartiles": [low, high],
    }


def steps(programs, name, options):
    """A step before and after, of two copies of the model: times and peak memory."""
    calls, peaks = [], []
    for after in (False, True):
        model = programs.make(name, options.seed)
        given = model, models.optimizer_of(model), programs.minibatch(model, options.batch)

        def call(after=after, given=given):
            programs.switch(given[0], after)
            return models.step(*given)

        for _ in range(3):
            call()
        peaks.append(memory.peak_bytes(lambda _, call=call: call(), None, "cpu"))
        calls.append(call)
    found = alternating(*calls, options.rounds, options.in_a_row)
    return {**found, "before_bytes": peaks[0], "after_bytes": peaks[1]}


def train(programs, name, options, after, **trainer):
    """The curve of a ``model.train()`` from the seed, and its seconds."""
    model = programs.make(name, options.seed)
    programs.switch(model, after)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's, on workers and on few batches
        start = time.perf_counter()
        model.train(
            max_epochs=options.epochs, batch_size=options.batch,
            early_stopping=False, accelerator="cpu", devices=1,
            datasplitter_kwargs=WHOLE_BATCHES, **QUIET, **trainer,
        )  # fmt: skip
        seconds = time.perf_counter() - start
    return model.history[CURVE].iloc[:, 0].astype(float).tolist(), seconds


def trainings(programs, name, options):
    def before():
        train(programs, name, options, after=False)

    def after():
        train(programs, name, options, after=True)

    return alternating(before, after, options.trainings)


@contextlib.contextmanager
def replaced(owner, name, function):
    own, original = name in vars(owner), getattr(owner, name)
    setattr(owner, name, function)
    try:
        yield
    finally:
        if own:
            setattr(owner, name, original)
        else:
            delattr(owner, name)  # it was inherited


def curves(programs, name, options):
    """Loss curves in float32 before and after, and in float64; how far from that both are.

    All see the noise of float32. TOTALVI calls ``float()`` on its way, whatever the precision.
    """
    draw = torch.distributions.normal._standard_normal

    def noise(shape, dtype, device):
        return draw(shape, torch.float32, device).to(dtype)

    with replaced(torch.distributions.normal, "_standard_normal", noise):
        found = {key: train(programs, name, options, after)[0] for key, after in SIDES.items()}
        with replaced(torch.Tensor, "float", torch.Tensor.double):
            exact, _ = train(programs, name, options, after=False, precision="64-true")
    off = {
        key: max(abs(c - e) / abs(e) for c, e in zip(curve, exact, strict=True))
        for key, curve in found.items()
    }
    return {**found, "float64": exact, "off": off}


def measured(programs, name, options):
    """All of a model, by the number of threads."""
    threads = torch.get_num_threads()
    found = {"threads": {}, "curves": curves(programs, name, options)}
    try:
        for count in options.threads:
            torch.set_num_threads(count)
            found["threads"][str(count)] = {
                "step": steps(programs, name, options),
                "train": trainings(programs, name, options),
            }
    finally:
        torch.set_num_threads(threads)
    return found
