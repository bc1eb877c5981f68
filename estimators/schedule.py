"""Schedules of the KL's weight beta during training."""

import warnings

from .dispatch import validate


class KLSchedule:
    """beta as a function of the training step, from ``start`` to ``end``.

    ``KLSchedule.linear(warmup)`` rises over ``warmup`` steps and stays (Bowman et al. 2016;
    Sonderby et al. 2016). ``KLSchedule.cyclical(period, ratio)`` rises over the first ``ratio``
    of every period, stays for its rest and starts again (Fu et al. 2019). With ``warmup=0`` there
    is no rise; with ``ratio=1.0`` only the last step of a period is at ``end``. Used as a context
    manager it warns when training ended inside the (first) warm-up: the model was then never
    trained on the ELBO, and its losses are not comparable.

    >>> with KLSchedule.linear(warmup=2) as schedule:
    ...     [schedule.step() for _ in range(4)]
    [0.0, 0.5, 1.0, 1.0]
    """

    def __init__(
        self, warmup: int, period: int | None = None, start: float = 0.0, end: float = 1.0
    ):
        self.warmup = validate.count("warmup", warmup, least=0)
        self.period = period
        if period is not None:
            self.period = validate.count("period", period, least=warmup + 1)
        self.start, self.end = validate.number("start", start), validate.number("end", end)
        self.steps = 0

    @classmethod
    def linear(cls, warmup: int, *, start: float = 0.0, end: float = 1.0) -> "KLSchedule":
        """One rise over ``warmup`` steps."""
        return cls(warmup, None, start, end)

    @classmethod
    def cyclical(
        cls, period: int, ratio: float = 0.5, *, start: float = 0.0, end: float = 1.0
    ) -> "KLSchedule":
        """A rise over the first ``ratio`` of every ``period`` steps."""
        period = validate.count("period", period, least=2)
        if not 0 < ratio <= 1:
            raise ValueError(f"ratio must be in (0, 1], got {ratio}")
        warmup = min(max(1, round(ratio * period)), period - 1)
        return cls(warmup, period, start, end)

    def beta(self, step: int) -> float:
        """beta at a step, counted from 0."""
        step = validate.count("step", step, least=0)
        within = step if self.period is None else step % self.period
        if within >= self.warmup:
            return self.end
        return self.start + (self.end - self.start) * within / self.warmup

    def step(self) -> float:
        """beta of this step; the next call is the next step's."""
        beta = self.beta(self.steps)
        self.steps += 1
        return beta

    def state_dict(self) -> dict[str, float | None]:
        """The schedule and how many steps it took, for a checkpoint."""
        return dict(vars(self))

    def load_state_dict(self, state_dict: dict[str, float | None]) -> None:
        """Go on where :meth:`state_dict` was taken, on its schedule."""
        if state_dict.keys() != vars(self).keys():
            names = ", ".join(vars(self))
            raise ValueError(f"expected a state_dict of {names}, got {', '.join(state_dict)}")
        vars(self).update(state_dict)

    def check_finished(self) -> None:
        """Warn if fewer steps were taken than the warm-up has."""
        if self.warmup > 0 and self.steps <= self.warmup:
            warnings.warn(
                f"training ended after {self.steps} steps, inside the KL's warm-up of "
                f"{self.warmup}: beta never stayed at {self.end}",
                stacklevel=2,
            )

    def __enter__(self) -> "KLSchedule":
        return self

    def __exit__(self, kind, *_):
        if kind is None:
            self.check_finished()
