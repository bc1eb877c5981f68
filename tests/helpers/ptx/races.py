"""Who touched a byte since the last barrier."""

import numpy as np


class Races:
    """Who wrote and read each byte since the barrier before; threads by number, epochs by block."""

    def __init__(self, size):
        self.writer, self.reader, self.written, self.read = np.full((4, size), -1, np.int32)

    def conflict(self, who, when, thread, epoch, threads):
        other = (who != -1) & (who != thread)
        apart = (who == -2) | (who // threads == thread // threads)
        return other & np.where(apart, when >= epoch, True)

    def load(self, where, thread, epoch, threads):
        who, when = self.writer[where], self.written[where]
        bad = self.conflict(who, when, thread, epoch, threads)
        before, since = self.reader[where], self.read[where]
        several = (before != -1) & (before != thread) & (since >= epoch)
        self.reader[where] = np.where(several, -2, thread)
        # Several threads may read at once, and only the last is noted: mark the others.
        clash = self.reader[where] != thread
        self.reader[where[clash]] = -2
        self.read[where] = epoch
        return bad

    def store(self, where, thread, epoch, threads, same):
        """``same``: where the value is what was there."""
        bad = self.conflict(self.writer[where], self.written[where], thread, epoch, threads) & ~same
        bad |= self.conflict(self.reader[where], self.read[where], thread, epoch, threads) & ~same
        self.writer[where], self.written[where] = thread, epoch
        return bad
