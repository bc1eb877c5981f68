"""torch.randn's float32 normals: the words of its CPU generator, and Box-Muller in its order.

A seed gives the normals that it gives in torch, to the rounding of log and sin. Torch makes one
word at a time; here they are made in vectors. This is faster than Philox too, but backward cannot
draw the noise again, and threads cannot share the work. See docs/kernels.md for times.

Matsumoto & Nishimura, "Mersenne Twister", ACM TOMACS 1998. The order is that of normal_fill, in
aten/src/ATen/native/cpu/DistributionTemplates.h; the state's layout that of CPUGeneratorImpl.cpp.
"""

import functools
import threading

import numpy as np
import torch
from numba import carray

from .compiler import copy_four, elementwise, helper, inline, kernel, pointer
from .device import log_of_normal
from .launch import call
from .noise import cos_sin

WORDS, LAG = 624, 397
GROUP = 16  # normals of a group, from eight words for radii and eight for angles
CHUNK = 64 * GROUP
# Bytes in a generator's state: offsets of the number of words left, of the next word's place and of
# the words; then the length of the state.
LEFT, NEXT, STATE, STATE_BYTES = 8, 16, 24, 5056


@inline
def twisted(word, following, far):
    mixed = np.uint32((word & np.uint32(0x80000000)) | (following & np.uint32(0x7FFFFFFF)))
    odd = np.uint32(np.int32(0) - np.int32(mixed & np.uint32(1)))
    return np.uint32(far ^ (mixed >> np.uint32(1)) ^ (odd & np.uint32(0x9908B0DF)))


@helper
def twist(state):
    """The next 624 words: in two loops, of which none reads what it wrote a vector ago."""
    first, second = WORDS - LAG, LAG - 1
    for i in range(first):
        state[i] = twisted(state[i], state[i + 1], state[i + LAG])
    for i in range(second):
        state[first + i] = twisted(state[first + i], state[first + i + 1], state[i])
    state[WORDS - 1] = twisted(state[WORDS - 1], state[0], state[second])


@elementwise
def temper(state, words):
    for i in range(words.size):
        word = state[i]
        word = np.uint32(word ^ (word >> np.uint32(11)))
        word = np.uint32(word ^ (np.uint32(word << np.uint32(7)) & np.uint32(0x9D2C5680)))
        word = np.uint32(word ^ (np.uint32(word << np.uint32(15)) & np.uint32(0xEFC60000)))
        words[i] = np.uint32(word ^ (word >> np.uint32(18)))


@helper
def draw_words(state, place, words):
    """The next words; ``place`` is [those that are left of this state, plus one; the next one]."""
    done = 0
    while done < words.size:
        if place[0] == 1:
            twist(state)
            place[0], place[1] = WORDS + 1, 0
        count = min(place[0] - 1, words.size - done)
        temper(state[place[1] :], words[done : done + count])
        place[0], place[1], done = place[0] - count, place[1] + count, done + count


@elementwise
def take_apart(words, radii, angles):
    for group in range(words.size // GROUP):
        for i in (0, 4):
            copy_four(words, group * GROUP + i, radii, group * 8 + i)
            copy_four(words, group * GROUP + 8 + i, angles, group * 8 + i)


@elementwise
def put_together(cosines, sines, normals):
    for group in range(normals.size // GROUP):
        for i in (0, 4):
            copy_four(cosines, group * 8 + i, normals, group * GROUP + i)
            copy_four(sines, group * 8 + i, normals, group * GROUP + 8 + i)


@elementwise
def polar(radii, angles, cosines, sines):
    """Normals by Box-Muller, from 24 bits of each word; u = 1 - word / 2**24 is not 0."""
    for i in range(radii.size):
        word = np.float32(np.int32(radii[i] & np.uint32(0xFFFFFF)))
        u = np.float32(1.0) - word * np.float32(2.0**-24)
        radius = np.sqrt(np.float32(-2.0) * log_of_normal(u))
        cosine, sine = cos_sin(np.uint32(angles[i] << np.uint32(8)))
        cosines[i] = radius * cosine
        sines[i] = radius * sine


@helper
def draw(state, place, buffers, normals):
    words, halves, results = buffers
    pairs = normals.size // 2
    draw_words(state, place, words[: normals.size])
    take_apart(words[: normals.size], halves[0], halves[1])
    polar(halves[0, :pairs], halves[1, :pairs], results[0], results[1])
    put_together(results[0], results[1], normals)


# The kernel keeps Python's lock, so that no other thread draws meanwhile.
@functools.partial(kernel, nogil=False)
def randn_kernel(queue, generator, address, size):
    """Draw size >= 16 normals. If 16 does not divide size, the last 16 are redrawn, as in torch."""
    kept = carray(pointer(generator + STATE), WORDS, np.uint64)
    left = carray(pointer(generator + LEFT), 1, np.int32)
    following = carray(pointer(generator + NEXT), 1, np.uint64)
    state, place = kept.astype(np.uint32), np.array([np.int64(left[0]), np.int64(following[0])])
    halves, results = np.empty((2, CHUNK // 2), np.uint32), np.empty((2, CHUNK // 2), np.float32)
    buffers = np.empty(CHUNK, np.uint32), halves, results
    normals = carray(pointer(address), size, np.float32)
    for start in range(0, size, CHUNK):
        draw(state, place, buffers, normals[start : start + CHUNK])
    if size % GROUP > 0:
        draw(state, place, buffers, normals[size - GROUP :])
    kept[:] = state
    left[0], following[0] = place[0], place[1]


# Held from the read of the state to its write, so that this module draws in one thread only. If
# torch itself draws in another thread at that moment, it may draw the same numbers.
LOCK = threading.Lock()


def randn(shape, generator):
    """torch.randn(shape, generator=generator), for at least GROUP numbers."""
    normals = torch.empty(shape, dtype=torch.float32, device="cpu")
    if not draws_as_torch():
        return normals.normal_(generator=generator)
    with LOCK:
        state = generator.get_state()
        draw_normals(state, normals)
        generator.set_state(state)
    return normals


@functools.cache
def draws_as_torch():
    """Whether the kernel, which is compiled on the way, draws the numbers that this torch draws.

    torch promises neither the layout of a generator's state nor the order of its words.
    """
    expected, actual = torch.Generator(), torch.Generator()
    for generator in (expected, actual):
        generator.manual_seed(1998)
    state = actual.get_state()
    if len(state) != STATE_BYTES or not placed(state):
        return False
    ours, theirs = torch.empty((2, 2 * CHUNK + 1), dtype=torch.float32, device="cpu")
    for _ in range(2):  # from a state that is all used up, and from the middle of one
        draw_normals(state, ours)
        theirs.normal_(generator=expected)
        if not torch.allclose(ours, theirs, rtol=0, atol=1e-5):
            return False
    return torch.equal(state, expected.get_state())


def placed(state):
    """Whether the two counters of the state, words left and next word, are in range."""
    left = state[LEFT : LEFT + 4].view(torch.int32).item()
    following = state[NEXT : NEXT + 8].view(torch.int64).item()
    return 1 <= left <= WORDS and 0 <= following <= WORDS


def draw_normals(state, normals):
    call(randn_kernel, 0, 1, np.zeros(1), state.data_ptr(), normals.data_ptr(), normals.numel())
