"""The steps of bench.gpu_session that time nothing: ``python -m bench.gpu_steps STEP OUT``.

  device   hardware, versions and clocks, then one launch of every operation
  check    every operation against the float64 oracle, on the device
  copy     the speed of a large copy: the roof
  kernels  GPU kernels per call, by the profiler

OUT/STEP.json is written anew after each case. Where the device no longer answers, the step ends and
names the case.
"""

import argparse
import json
import sys
from pathlib import Path

from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils import collect_env

from .counts.cases import case_of as count_case
from .counts.entries import ENTRIES as COUNTED
from .drop_ins.cases import case_of as drop_in_case
from .drop_ins.entries import ENTRIES as DROP_INS
from .harness import clock, functions, machine, measure, oracle, runs
from .harness.cases import BOTH, case_id
from .harness.machine import DEVICE
from .harness.operation import make_inputs, make_upstream
from .harness.providers import OURS, PROVIDERS
from .mixtures.cases import case_of as mixture_case
from .mixtures.entries import ENTRIES as MIXTURES
from .operations.cases import sweep
from .operations.entries import ENTRIES as OPERATIONS
from .samples.cases import case_of as sample_case
from .samples.entries import ENTRIES as SAMPLED

ENTRIES = OPERATIONS | SAMPLED | MIXTURES | DROP_INS | COUNTED
# A small one, an odd one, one with rows longer than a tile, and one of four million elements.
SHAPES = ((64, 8), (257, 100), (33, 4097), (4096, 1024))


class DeadDeviceError(Exception):
    """Whatever comes after it fails too: the message names the case."""


class Report:
    """A step's JSON, on disk after every case."""

    def __init__(self, out, step):
        self.path, self.step = out / f"{step}.json", step
        self.found = {"machine_info": machine.describe(DEVICE), step: {}}

    def add(self, name, value):
        self.found[self.step][name] = value
        self.path.write_text(json.dumps(self.found, indent=1) + "\n", encoding="utf-8")

    def of_case(self, case, function):
        """Add what ``function(case)`` returns, or its error. DeadDeviceError ends the step."""
        try:
            value = function(case)
        except Exception as error:  # one case that fails must not end the step
            value = {"failed": runs.reason(error)[:500]}
        self.add(case_id(case), value)
        if DEVICE == "cuda" and not clock.device_lives():
            raise DeadDeviceError(f"the CUDA context died in {case_id(case)}")
        return "failed" not in value


def cases(shapes, dtypes, providers):
    """Forward + backward of every operation at some (batch, latent), the one-sample ones first.

    Those on K samples, of all pairs and the drop-ins come once, at shapes of their own. Counts come
    last: Pyro, which is among their providers, changes what others run under.
    """
    found = [case for case in sweep(OPERATIONS, DEVICE, list(shapes), dtypes) if case.backward]
    for provider in providers:
        found += [sample_case(op, provider, 16, 64, 64, "float32") for op in SAMPLED]
        found += [mixture_case(op, provider, 64, 64, 64) for op in MIXTURES]
        found += [drop_in_case(op, provider, 64, "float32") for op in DROP_INS]
        found += [count_case(op, provider, *shape) for op in COUNTED for shape in shapes]
    return [
        case
        for case in found
        if case.provider in providers and case.provider in ENTRIES[case.op].provider_names(DEVICE)
    ]


def ours():
    """Our providers that run outside of graphs."""
    return [name for name in OURS if PROVIDERS[name].compile is None]


def inputs_of(case):
    of = ENTRIES[case.op], case, DEVICE, 0
    return make_inputs(*of), make_upstream(*of)


def function_of(case):
    operation = ENTRIES[case.op]
    function = functions.get(case.provider, operation, DEVICE, case.samples)
    return functions.get_checked(case.provider, operation, function, case.samples)


def launched(case):
    """One call, awaited."""
    inputs, upstream = inputs_of(case)
    outputs = oracle.as_tuple(function_of(case)(*inputs))
    oracle.backward(outputs, inputs, oracle.cast_upstream(upstream, outputs))
    clock.synchronize(DEVICE)
    return {}


def checked(case):
    """The largest relative error, where it is within the tolerance."""
    return {"error": oracle.check(ENTRIES[case.op], case, function_of(case), *inputs_of(case))}


def counted(case):
    """Names of the kernels of one call, and of copies and fills beside them."""
    prepared = measure.Prepared(ENTRIES[case.op], case, DEVICE)
    activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA]
    clock.synchronize(DEVICE)
    with profile(activities=activities) as profiler:
        prepared.call(prepared.sets[0])
        clock.synchronize(DEVICE)
    return kernels_of(profiler.events())


def kernels_of(events):
    """Annotations of ours and of the compiler's have rows on the device too, and are none."""
    names = [
        event.name
        for event in events
        if event.device_type == DeviceType.CUDA and not event.is_user_annotation
    ]
    copies = [name for name in names if name.startswith(("Memcpy", "Memset"))]
    kernels = [name for name in names if name not in copies]
    return {"count": len(kernels), "names": kernels, "copies": copies}


def each(report, chosen, function):
    """Whether all cases went well; one that did not keeps none from its turn."""
    return sum(not report.of_case(case, function) for case in chosen) == 0


def device(report):
    report.add("environment", collect_env.get_pretty_env_info())
    report.add("nvidia-smi", machine.run("nvidia-smi", "-q", "-d", "CLOCK,PERFORMANCE,POWER,ECC"))
    return each(report, cases(SHAPES[:1], ["float32"], ours()), launched)


def check(report):
    return each(report, cases(SHAPES, BOTH, ours()), checked)


def copy(report):
    report.add("copy_bytes_per_s", clock.copy_ceiling(DEVICE))
    return True


def kernels(report):
    return each(report, cases([(4096, 256)], ["float32"], ["fused_elbo", "eager"]), counted)


STEPS = {"device": device, "check": check, "copy": copy, "kernels": kernels}


def main(arguments=None):
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu_steps",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("step", choices=STEPS)
    parser.add_argument("out", type=Path)
    options = parser.parse_args(arguments)
    well = STEPS[options.step](Report(options.out, options.step))
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
