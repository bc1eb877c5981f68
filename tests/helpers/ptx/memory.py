"""The memory of a launch: an address space per tensor, and shared memory per block."""

import ctypes
import os

import numpy as np

from .arithmetic import FLOATS, SIGNED, UNSIGNED
from .faults import Fault
from .races import Races

CHECKS = os.environ.get("PTX_CHECKS", "1") == "1"  # of races
SHARED_BASE = 1024  # where shared memory starts in its own address space
MOST_TRACKED = 1 << 20  # bytes of a tensor whose races are looked for
SPACE = 40  # bits of the addresses of one tensor: none reaches another's


class Memory:
    """The memory of one launch: an address space per tensor, and shared memory per block."""

    def __init__(self, program, tensors, values, threads, shared):
        self.program, self.threads, self.shared_size = program, threads, shared
        self.spaces, self.pointers, by_storage = [], {}, {}
        for name, tensor in tensors:
            storage = tensor.untyped_storage()
            start, size = storage.data_ptr(), storage.nbytes()
            index = by_storage.get(start)
            if index is None:
                index = by_storage[start] = len(self.spaces)
                base, low = ((index + 1) << SPACE) | (start & 0xFFF), start & ~15
                whole = max(16, (size + start - low + 15) & ~15)
                buffer = (ctypes.c_uint8 * whole).from_address(low)
                self.spaces.append(
                    {
                        "base": base,
                        "low": base - (start - low),
                        "bytes": np.frombuffer(buffer, np.uint8),
                        "own": slice(start - low, start - low + size),  # the rest is others'
                        "size": size,
                        "extents": [],
                        "names": [],
                        "races": None,
                    }
                )
            space = self.spaces[index]
            pointer = tensor.data_ptr() - start + space["base"]
            length = 0
            if tensor.numel():
                steps = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
                length = (steps + 1) * tensor.element_size()
            space["extents"].append((pointer, pointer + length))
            space["names"].append(name)
            self.pointers[id(tensor)] = pointer
        self.params = []
        for type_, value in values:
            if type_.startswith("*"):
                raw = 0 if value is None else self.pointers[id(value)]
                self.params.append(np.array([raw], np.uint64).tobytes())
            elif type_ in ("fp32", "f32"):
                self.params.append(np.array([value], np.float32).tobytes())
            elif type_ == "fp64":
                self.params.append(np.array([value], np.float64).tobytes())
            elif type_ in ("fp16", "bf16"):
                raise Fault(f"an argument of type {type_}")
            else:
                kind, bits = type_[0], max(8, int(type_[1:]))
                type_ = (SIGNED if kind == "i" else UNSIGNED)[bits]
                self.params.append(np.array([int(value)], type_).tobytes())
        self.divergent_loads = 0

    def begin(self, first, count):
        """Blocks first..first + count run now."""
        self.first, self.blocks = first, count
        self.lanes = count * self.threads
        self.stride = -(-max(self.shared_size, 16) // 16) * 16
        self.shared = np.full(count * self.stride, 0xFF, np.uint8)
        self.known = np.zeros(count * self.stride, bool)
        self.block = np.arange(self.lanes) // self.threads
        self.thread = np.arange(self.lanes) + first * self.threads
        self.epoch = np.zeros(count, np.int64)
        self.races = Races(count * self.stride) if CHECKS and self.shared_size else None

    def snapshot(self):
        """Copies of all tensors' bytes, or None if some are so large that no race is looked for."""
        if any(space["size"] > MOST_TRACKED for space in self.spaces):
            return None
        return [space["bytes"][space["own"]].copy() for space in self.spaces]

    def restore(self, copies):
        for space, copy in zip(self.spaces, copies, strict=True):
            space["bytes"][space["own"]] = copy
            space["races"] = None

    def fault(self, text):
        raise Fault(f"{self.program.name}: {text}")

    def param(self, index, type_):
        raw = self.params[index]
        bits = np.dtype(type_).itemsize
        if len(raw) != bits:
            self.fault(f"parameter {index} of {len(raw)} bytes is read as {bits}")
        return np.frombuffer(raw, type_)

    def select(self, mask, address, offset):
        """(lanes that are active, their addresses)."""
        address = np.broadcast_to(address, self.lanes)
        if mask is None:
            return slice(None), address.astype(np.int64) + offset
        lanes = np.flatnonzero(np.broadcast_to(mask, self.lanes))
        return lanes, address[lanes].astype(np.int64) + offset

    def place(self, address, width, count, store):
        """The space of these addresses, and where in it they are."""
        number = (address >> SPACE) - 1
        index = int(number[0])
        if not 0 <= index < len(self.spaces) or not (number == index).all():
            if (number >= 0).all() and (number < len(self.spaces)).all():
                self.fault("one instruction has addresses in several tensors")
            self.fault(f"address {int(address[0]):#x} is outside all tensors")
        if (address % (width * count)).any():
            self.fault(
                f"misaligned access of {count} x {width} bytes ({self.spaces[index]['names']})"
            )
        space = self.spaces[index]
        inside = np.zeros(len(address), bool)
        for low, high in space["extents"]:
            inside |= (address >= low) & (address + width * count <= high)
        if not inside.all():
            bad = address[~inside]
            extents = [
                (low - space["base"], high - space["base"]) for low, high in space["extents"]
            ]
            self.fault(
                f"{'store' if store else 'load'} of {width * count} bytes out of bounds, "
                f"{len(bad)} threads: first at byte {int(bad[0]) - space['base']}, but "
                f"{space['names']} have {extents}"
            )
        return space, address - space["low"]

    def tracked(self, space):
        if not CHECKS or space["size"] > MOST_TRACKED:
            return None
        if space["races"] is None:
            space["races"] = Races(len(space["bytes"]))
        return space["races"]

    def spread(self, where, lanes, width):
        """(bytes, threads, epochs), for each byte that is touched."""
        thread = self.thread[lanes]
        epoch = self.epoch[self.block[lanes]]
        return (
            (where[:, None] + np.arange(width)).ravel(),
            thread.repeat(width),
            epoch.repeat(width),
        )

    def load_global(self, mask, address, offset, type_, olds):
        lanes, address = self.select(mask, address, offset)
        if not len(address):
            return self.olds(olds, type_)
        width = np.dtype(type_).itemsize
        space, where = self.place(address, width, len(olds), False)
        races = self.tracked(space)
        if races is not None:
            touched = self.spread(where, lanes, width * len(olds))
            if races.load(*touched, self.threads).any():
                self.program.notes[
                    f"race: {space['names']} are read where another thread wrote"
                ] += 1
        view = space["bytes"].view(type_)
        return self.gathered(view, where // width, lanes, olds, type_)

    def olds(self, olds, type_):
        return [np.zeros(1, type_) if o is None else o.astype(type_, copy=False) for o in olds]

    def gathered(self, view, index, lanes, olds, type_):
        found = []
        for i, old in enumerate(olds):
            value = view[index + i]
            if not isinstance(lanes, slice):
                full = np.zeros(self.lanes, type_)
                if old is not None:
                    full[:] = old.astype(type_)
                full[lanes] = value
                value = full
            found.append(value)
        return found

    def store_global(self, mask, address, offset, type_, values):
        lanes, address = self.select(mask, address, offset)
        if not len(address):
            return
        width = np.dtype(type_).itemsize
        space, where = self.place(address, width, len(values), True)
        view = space["bytes"].view(type_)
        self.scatter(view, where, lanes, width, values, self.tracked(space), str(space["names"]))

    def scatter(self, view, where, lanes, width, values, races, what):
        bytes_ = view.view(np.uint8)
        given = np.stack([np.broadcast_to(v, self.lanes)[lanes] for v in values], 1)
        if races is not None:
            touched, *by = self.spread(where, lanes, width * len(values))
            same = bytes_[touched] == np.ascontiguousarray(given).view(np.uint8).ravel()
            if races.store(touched, *by, self.threads, same).any():
                text = f"race: {what} are written where another thread wrote or read"
                if what == "shared memory":
                    self.fault(text)
                self.program.notes[text] += 1
        index = where // width
        for i in range(len(values)):
            view[index + i] = given[:, i]
        for i in range(len(values)):
            other = view[index + i] != given[:, i]
            if other.any():
                self.differing(view[index + i], given[:, i], other, index, lanes, what)

    def differing(self, kept, given, other, index, lanes, what):
        """Threads wrote different values to one place: a fault, but of the same sum, rounded apart.

        Sums over a warp may be: one of the two products at a shuffle is fused with the addition.
        """
        bits = kept.dtype.itemsize * 8
        a, b = (v.view(FLOATS[bits]) if bits > 16 else v for v in (kept, given))
        if bits > 16:
            size = np.abs(b[np.isfinite(b)]).max(initial=0.0)
            near = np.abs(a - b) <= 100 * np.finfo(a.dtype).eps * size
            near |= (a == b) | (np.isnan(a) & np.isnan(b))
        if bits <= 16 or not near.all():
            pairs = [(float(x), float(y)) for x, y in zip(a[other][:3], b[other][:3], strict=True)]
            self.fault(f"threads write different values to one place of {what}: {pairs}")
        warp = np.arange(self.lanes)[lanes] // 32
        places, back = np.unique(index, return_inverse=True)
        last = np.zeros(len(places), np.int64)
        last[back] = warp
        apart = (last[back] != warp)[other].any()
        text = "several warps" if apart else "one warp"
        self.program.notes[f"threads of {text} write a sum that they rounded differently"] += 1

    def shared_place(self, address, lanes, width, count):
        offset = address - SHARED_BASE
        if (offset % (width * count)).any():
            self.fault(f"misaligned access to shared memory of {count} x {width} bytes")
        if ((offset < 0) | (offset + width * count > self.shared_size)).any():
            self.fault(f"shared memory of {self.shared_size} bytes is exceeded: {offset.max()}")
        return offset + self.block[lanes] * self.stride

    def load_shared(self, mask, address, offset, type_, olds):
        lanes, address = self.select(mask, address, offset)
        if not len(address):
            return self.olds(olds, type_)
        width = np.dtype(type_).itemsize
        where = self.shared_place(address, lanes, width, len(olds))
        touched = self.spread(where, lanes, width * len(olds))
        if not self.known[touched[0]].all():
            self.program.notes["shared memory read before it is written"] += 1
        if self.races is not None and self.races.load(*touched, self.threads).any():
            self.fault("race: shared memory is read where another thread wrote")
        return self.gathered(self.shared.view(type_), where // width, lanes, olds, type_)

    def store_shared(self, mask, address, offset, type_, values):
        lanes, address = self.select(mask, address, offset)
        if not len(address):
            return
        width = np.dtype(type_).itemsize
        where = self.shared_place(address, lanes, width, len(values))
        self.known[self.spread(where, lanes, width * len(values))[0]] = True
        view = self.shared.view(type_)
        self.scatter(view, where, lanes, width, values, self.races, "shared memory")

    def rows_of_matrices(self, mask, address, count, trans):
        """(matrix, half of a thread's register, addresses), one after another."""
        if mask is not None:
            active = np.broadcast_to(mask, self.lanes).reshape(-1, 32)
            if (active.any(1) & ~active.all(1)).any():
                self.fault("a matrix access that some threads of a warp do not reach")
        rows = np.broadcast_to(address, self.lanes).reshape(-1, 32)
        lane = np.arange(32)
        for i in range(count):
            if trans:
                for j in range(2):
                    row = rows[:, 8 * i + 2 * (lane % 4) + j]
                    yield i, j, (row + (2 * (lane // 4)).astype(np.uint32)).ravel()
            else:
                row = rows[:, 8 * i + lane // 4]
                yield i, 0, (row + (4 * (lane % 4)).astype(np.uint32)).ravel()

    def load_matrix(self, mask, address, offset, count, trans):
        found = [np.zeros(self.lanes, np.uint32) for _ in range(count)]
        type_ = np.uint16 if trans else np.uint32
        for i, j, where in self.rows_of_matrices(mask, address, count, trans):
            value = self.load_shared(mask, where, offset, type_, [None])[0]
            found[i] |= value.astype(np.uint32) << np.uint32(16 * j)
        return found

    def store_matrix(self, mask, address, offset, count, trans, values):
        type_ = np.uint16 if trans else np.uint32
        for i, j, where in self.rows_of_matrices(mask, address, count, trans):
            value = (values[i] >> np.uint32(16 * j)).astype(type_)
            self.store_shared(mask, where, offset, type_, [value])

    def barrier(self, mask):
        """bar.sync 0: of a block all threads are here, or none."""
        if mask is None:
            self.epoch += 1
            return
        here = mask.reshape(self.blocks, self.threads)
        if (here.any(1) & ~here.all(1)).any():
            self.fault("a barrier that some threads of a block do not reach")
        self.epoch += here.any(1)

    def shuffle(self, mask, how, a, b, c, members):
        a, b, c, members = (
            np.broadcast_to(v, self.lanes).reshape(-1, 32) for v in (a, b, c, members)
        )
        if mask is not None:
            active = np.broadcast_to(mask, self.lanes).reshape(-1, 32)
            wanted = (members >> np.arange(32, dtype=np.uint32)) & np.uint32(1) == 1
            if (active.any(1) & (active != wanted).any(1)).any():
                self.fault("a shuffle that some threads of its mask do not reach")
        elif (members != 0xFFFFFFFF).any():
            self.fault("a shuffle of some threads that all reach")
        lane = np.arange(32)
        b, c = (b & 31).astype(np.int64), c.astype(np.int64)
        segment, clamp = (c >> 8) & 31, c & 31
        most, least = (lane & segment) | (clamp & ~segment), lane & segment
        source = {"up": lane - b, "down": lane + b, "bfly": lane ^ b,
                  "idx": least | (b & ~segment)}[how]  # fmt: skip
        valid = source >= most if how == "up" else source <= most
        source = np.where(valid, source, lane)
        return np.take_along_axis(a, source, 1).reshape(-1)
