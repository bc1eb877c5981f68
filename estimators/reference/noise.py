"""The kernels' noise stream in PyTorch, written from its description, not from its code.

Philox4x32-10 (Salmon et al., SC 2011) with the seed's two halves as key and the counter
(column // 4, row low, row high, sample); the words (a, b), (c, d) of a call give columns
4g, 4g + 1 and 4g + 2, 4g + 3 by Box-Muller: radius sqrt(-2 log((a + 1) / 2**32)), angle
pi * b / 2**31 with b read as signed.
"""

import math

import torch

WORD = 0xFFFFFFFF


def philox(counter, key):
    """Four uint32 words for each counter of four, in int64 tensors; ``key`` two integers."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        product0, product1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1 = (product1 >> 32 & WORD) ^ c1 ^ k0, product1 & WORD
        c2, c3 = (product0 >> 32 & WORD) ^ c3 ^ k1, product0 & WORD
        k0, k1 = k0 + 0x9E3779B9 & WORD, k1 + 0xBB67AE85 & WORD
    return c0, c1, c2, c3


def box_muller(a, b):
    """Two float32 normals from two uint32 words."""
    u = (a.float() + 1) * 2.0**-32
    angle = (b - (b >> 31 << 32)).float() * (math.pi * 2.0**-31)
    radius = torch.sqrt(-2 * torch.log(u))
    return radius * torch.cos(angle), radius * torch.sin(angle)


def draw_seed(device, generator=None):
    """An int64 scalar from torch's generator."""
    return torch.randint(2**63 - 1, (), dtype=torch.int64, device=device, generator=generator)


def stream(seed, draws, rows, cols, *, first_draw=0):
    """The float32 normals [draws, rows, cols] that the kernels draw from an integer seed.

    ``first_draw`` is the number of the first. On the device of the seed, if it is a tensor.

    >>> stream(0, 1, 2, 3).shape
    torch.Size([1, 2, 3])
    """
    device = seed.device if isinstance(seed, torch.Tensor) else None
    sample = torch.arange(first_draw, first_draw + draws, device=device).view(-1, 1, 1)
    row = torch.arange(rows, device=device).view(1, -1, 1)
    group = torch.arange(-(-cols // 4), device=device).view(1, 1, -1)
    counter = torch.broadcast_tensors(group, row & WORD, row >> 32, sample)
    a, b, c, d = philox(counter, (seed & WORD, seed >> 32 & WORD))
    normals = torch.stack((*box_muller(a, b), *box_muller(c, d)), -1)
    return normals.flatten(-2)[..., :cols]
