"""Peak memory of a call: what it allocates at once on top of its inputs, outputs included."""

import torch


def peak_bytes(call, inputs, device):
    """The largest sum of live allocations that ``call(inputs)`` made."""
    return gpu_peak(call, inputs) if device == "cuda" else cpu_peak(call, inputs)


def gpu_peak(call, inputs):
    """From the allocator's own books."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    outputs = call(inputs)
    torch.cuda.synchronize()
    del outputs
    return torch.cuda.max_memory_allocated() - before


def cpu_peak(call, inputs):
    """From the profiler, which sees every allocation and release of torch's CPU allocator.

    It does not see what a kernel keeps on its own stack: a few kilobytes per thread.
    """
    from torch._C._profiler import _EventType
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        outputs = call(inputs)
        del outputs
    changes = []
    pending = list(profiler.profiler.kineto_results.experimental_event_tree())
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
