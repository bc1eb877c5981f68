"""Numbers as texts."""

import math

TIMES, DASH = "\u00d7", "\u2013"
# Beside a provider whose calls wait for the device: its device clock has host time in it.
WAITS = "\u2020"


def geometric_mean(values):
    values = [v for v in values if v > 0]
    return math.exp(sum(map(math.log, values)) / len(values)) if values else math.nan


def factor(value):
    """A ratio with two or three digits.

    >>> factor(0.0123), factor(0.62), factor(1.352), factor(12.34)
    ('0.012', '0.62', '1.35', '12.3')
    """
    if value < 0.095:
        return f"{value:.2g}"
    return f"{value:.2f}" if value < 9.95 else f"{value:.1f}"


def short_name(op):
    """The name of an op where there is little room."""
    return op.replace("negative_binomial", "nb")


def ratio(value):
    """1.35 with a multiplication sign, or a dash for nan."""
    return DASH if math.isnan(value) else f"{factor(value)}{TIMES}"


def seconds(value):
    """A time with three digits and a unit; a dash for nan.

    >>> seconds(0.00012345), seconds(1.5), seconds(2.5e-10), seconds(math.nan) == DASH
    ('123 µs', '1.5 s', '250 ps', True)
    """
    if math.isnan(value):
        return DASH
    for scale, unit in ((1, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"), (1e-12, "ps")):
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value:.3g} s"


def size(bytes_):
    """
    >>> size(2**28), size(1.5 * 2**30), size(math.nan) == DASH
    ('256 MiB', '1.5 GiB', True)
    """
    if bytes_ is None or math.isnan(bytes_):
        return DASH
    for scale, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if bytes_ >= scale:
            shown = bytes_ / scale
            return f"{shown:.3g} {unit}" if shown < 999 else f"{shown:.0f} {unit}"
    return f"{bytes_:.0f} B"


def digits(value):
    """Three digits, and no exponent.

    >>> digits(1.2345), digits(1234.5)
    ('1.23', '1,234')
    """
    return f"{value:.3g}" if value < 100 else f"{value:,.0f}"


def number(value, digits=3):
    """A number with a true minus; a dash where there is none.

    >>> number(0.012345), number(None) == DASH
    ('0.0123', True)
    """
    if value is None or math.isnan(value):
        return DASH
    return f"{value:.{digits}g}".replace("-", "\u2212")


def plus_minus(value, error):
    """A number and its error, to two digits of the error.

    >>> plus_minus(1.2345, 0.012)
    '1.234 ± 0.012'
    """
    if value is None or math.isnan(value):
        return DASH
    places = max(0, 1 - math.floor(math.log10(error))) if error > 0 else 4
    return f"{value:.{places}f} ± {error:.{places}f}".replace("-", "\u2212")
