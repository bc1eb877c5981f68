"""The KL's schedule: its values, and the warning when training ended too early."""

import warnings

import pytest

from fused_elbo.estimators.schedule import KLSchedule


def test_linear_rises_and_stays():
    schedule = KLSchedule.linear(4)
    assert [schedule.step() for _ in range(7)] == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_from_start_to_end():
    schedule = KLSchedule.linear(2, start=0.2, end=4.0)
    assert [schedule.beta(step) for step in (0, 1, 2, 100)] == pytest.approx([0.2, 2.1, 4.0, 4.0])
    falling = KLSchedule.linear(2, start=2.0, end=1.0)
    assert [falling.beta(step) for step in range(4)] == pytest.approx([2.0, 1.5, 1.0, 1.0])


def test_cyclical_starts_again():
    schedule = KLSchedule.cyclical(8, 0.5)
    period = [0.0, 0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0]
    assert [schedule.step() for _ in range(20)] == period * 2 + period[:4]


@pytest.mark.parametrize(
    ("period", "ratio", "warmup"),
    [(10, 0.5, 5), (10, 0.01, 1), (10, 0.99, 9), (2, 0.5, 1), (10, 1.0, 9)],
)
def test_cyclical_spends_the_ratio_rising_and_reaches_its_end(period, ratio, warmup):
    schedule = KLSchedule.cyclical(period, ratio, end=3.0)
    assert schedule.warmup == warmup
    values = [schedule.step() for _ in range(2 * period)]
    assert values[:period] == values[period:]
    assert values[0] == 0.0
    assert values[period - 1] == 3.0
    assert sum(value < 3.0 for value in values) == 2 * warmup


def test_no_warm_up():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with KLSchedule.linear(0, end=2.0) as schedule:
            assert [schedule.step() for _ in range(3)] == [2.0] * 3
        KLSchedule.linear(0).check_finished()


def test_beta_does_not_count_steps():
    schedule = KLSchedule.linear(4)
    assert schedule.beta(3) == 0.75
    assert schedule.step() == 0.0
    assert schedule.steps == 1


@pytest.mark.parametrize("steps", [1, 4, 5])
@pytest.mark.parametrize(
    "schedule",
    [lambda: KLSchedule.linear(5), lambda: KLSchedule.cyclical(10)],
    ids=["linear", "cyclical"],
)
def test_warns_when_training_ended_inside_the_warmup(schedule, steps):
    """Step 5 would be the first at beta = 1: five steps, 0 to 4, do not reach it."""
    s = schedule()

    def train():
        with s:
            for _ in range(steps):
                s.step()

    with pytest.warns(UserWarning, match=f"ended after {steps} steps.*warm-up of 5"):
        train()
    assert max(s.beta(step) for step in range(steps)) < 1


@pytest.mark.parametrize("steps", [6, 7, 50])
@pytest.mark.parametrize(
    "schedule",
    [lambda: KLSchedule.linear(5), lambda: KLSchedule.cyclical(10)],
    ids=["linear", "cyclical"],
)
def test_no_warning_after_the_warmup(schedule, steps):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with schedule() as s:
            for _ in range(steps):
                s.step()
    assert s.beta(steps - 1) == 1 or s.period is not None


def test_an_error_in_training_is_not_hidden_by_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(KeyError), KLSchedule.linear(5):
            raise KeyError


def test_without_the_context_manager():
    schedule = KLSchedule.linear(3)
    schedule.step()
    with pytest.warns(UserWarning, match="ended after 1 steps"):
        schedule.check_finished()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: KLSchedule.linear(-1), "warmup must be at least 0, got -1"),
        (lambda: KLSchedule.cyclical(10, 0.0), r"ratio must be in \(0, 1\], got 0.0"),
        (lambda: KLSchedule.cyclical(10, 1.5), r"ratio must be in \(0, 1\], got 1.5"),
        (lambda: KLSchedule.cyclical(0), "period must be at least 2, got 0"),
        (lambda: KLSchedule(5, period=4), "period must be at least 6, got 4"),
        (lambda: KLSchedule.linear(5).beta(-1), "step must be at least 0, got -1"),
    ],
    ids=["no warmup", "ratio 0", "ratio past 1", "no period", "short period", "negative step"],
)
def test_bad_arguments(make, words):
    with pytest.raises(ValueError, match=words):
        make()
