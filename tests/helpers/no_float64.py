"""A pretended accelerator without float64, as MPS is, and every docstring's example run on it.

    python tests/helpers/no_float64.py NAME [NAME ...]    # modules

Its tensors hold one of the CPU, on which everything is computed; torch knows the device as another
one. It is a process of its own, for torch keeps such a device for good.
"""

import doctest
import importlib
import sys

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_map_only
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

_setup_privateuseone_for_python_backend("pretended")
DEVICE = torch.device("pretended:0")


class OnDevice(torch.Tensor):
    @staticmethod
    def __new__(cls, held):
        if held.dtype == torch.float64:
            raise TypeError("the pretended device has no float64")
        found = torch.Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(),
            dtype=held.dtype, device=DEVICE, requires_grad=held.requires_grad,
        )  # fmt: skip
        found.held = held
        return found

    def __repr__(self):
        return f"OnDevice({self.held})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return on_cpu(func, args, kwargs or {})


class Pretended(TorchDispatchMode):
    """Sees what has no tensor of the device among its arguments: what makes one there."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return on_cpu(func, args, kwargs or {})


def on_cpu(func, args, kwargs):
    """The result of ``func`` by the CPU: on the device if an argument is, or if it is asked for."""
    given = []
    held_args, held_kwargs = tree_map_only(
        OnDevice, lambda t: given.append(t) or t.held, (args, kwargs)
    )
    asked = kwargs.get("device")
    there = bool(given) if asked is None else torch.device(asked).type == DEVICE.type
    if there:
        others = [t for t in args if isinstance(t, torch.Tensor) and not isinstance(t, OnDevice)]
        if any(t.dim() > 0 for t in others) and "copy" not in func.__name__:
            raise RuntimeError(f"{func}: tensors on the CPU and on the pretended device")
        if asked is not None:
            held_kwargs["device"] = torch.device("cpu")
    out = func(*held_args, **held_kwargs)
    if not there:
        return out
    out = tree_map_only(torch.Tensor, OnDevice, out)
    return return_and_correct_aliasing(func, args, kwargs, out)


class Tensors(TorchFunctionMode):
    """torch.tensor, which torch itself cannot do for a device of Python's."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        makes = func is torch.tensor or (
            func is torch.as_tensor and not isinstance(args[0], torch.Tensor)
        )
        if makes and torch.device(kwargs.get("device") or DEVICE) == DEVICE:
            return func(*args, **kwargs | {"device": "cpu"}).to(DEVICE)
        return func(*args, **kwargs)


class Anything(doctest.OutputChecker):
    def check_output(self, *_):
        return True


OTHERS = """
>>> from fused_elbo.estimators import bounds, diagnostics, evaluation, sampling
>>> mu, logvar = torch.zeros(3, 2, requires_grad=True), torch.zeros(3, 2)
>>> target = lambda z: -0.5 * (z - 1).square().sum(-1)
>>> for name in bounds.ESTIMATORS:
...     found = bounds.estimate(name, mu, logvar, 4, log_likelihood=target)
...     (-found.surrogate.mean()).backward()
>>> bounds.estimate("iwae", mu, logvar, 4, log_likelihood=target, sampling="sobol")
>>> sampling.draw(4, mu, sampling="antithetic"), sampling.draw(4, mu, sampling="sobol")
>>> evaluation.log_likelihood_bound(mu, logvar, 40, log_likelihood=target, chunk_size=9)
>>> if diagnostics.HAS_ARVIZ: diagnostics.pareto_k(mu.expand(30, 3, 2) + torch.randn(30, 3, 2))
"""


def main(names):
    """How many examples fail in the docstrings of these modules, and here."""
    finder, found = doctest.DocTestFinder(), []
    for name in names:
        found += finder.find(importlib.import_module(name))
    found.append(doctest.DocTestParser().get_doctest(OTHERS, {}, "others", __file__, 0))
    failed = 0
    for test in found:
        if "dtype=torch.float64" in test.docstring:
            continue  # which asks for it
        test.globs["torch"] = torch
        with Pretended(), DEVICE, Tensors():
            failed += doctest.DocTestRunner(Anything(), verbose=False).run(test).failed
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]) > 0)
