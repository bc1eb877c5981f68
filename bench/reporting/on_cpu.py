"""The words on what ``fused_elbo`` was on a CPU, from a run's machine_info.

With numba CPU tensors take its kernels. Runs from before those do not name it, and a run without
it names None: there ``fused_elbo`` was its PyTorch reference.
"""


def has_kernels(info):
    return info.get("numba") is not None


def notes(info, shown):
    """Sentences; ``shown`` {name: machine_info} of the runs that are, ``info`` that of the last."""
    older = [name for name, other in shown.items() if not has_kernels(other)]
    if not has_kernels(info) or not older:
        return [note(info)]
    names = ", ".join(older)
    return [note(info), f"Cells from these runs are still of the PyTorch reference: {names}."]


def note(info):
    if has_kernels(info):
        return (
            "No GPU here, so **no Triton kernel was timed**: on a CPU `fused_elbo` runs numba's "
            "kernels. These figures say nothing about the kernels for GPUs."
        )
    where = "without numba" if "numba" in info else "on a CPU"
    return (
        f"No GPU here, so **no Triton kernel was timed**: {where} `fused_elbo` is its PyTorch "
        "reference, and Triton's interpreter is for tests only. These figures say what a CPU user "
        "gets by choosing between the providers; they say nothing about the kernels."
    )


def under_titles(info):
    if has_kernels(info):
        return "here fused_elbo runs numba's kernels"
    why = "numba is not installed" if "numba" in info else "the kernels need a GPU"
    return f"here fused_elbo is its PyTorch reference: {why}"


def of_samples(info):
    if has_kernels(info):
        return "On a CPU these are the public functions on numba's kernels."
    return (
        "On a CPU these are the public functions on their PyTorch reference: no kernel is in these "
        "figures."
    )


def in_headers(shown):
    kinds = ["numba's kernels" if has_kernels(i) else "PyTorch reference" for i in shown.values()]
    return " and ".join(dict.fromkeys(kinds))


def memory(info):
    """The memory that the peak does not see."""
    if has_kernels(info):
        return (
            "; the buffers of numba's kernels, some 170 kB a thread, are not torch's and not seen"
        )
    return ""
