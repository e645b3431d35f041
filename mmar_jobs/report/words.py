"""Numbers as people read them: shares, differences in points, intervals, p-values, times.

Not here: what they are about.
"""

from typing import Final

_SUPERSCRIPT: Final = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def count(value: int) -> str:
    """A whole number with its thousands apart."""
    return f"{value:,}"


def percent(fraction: float) -> str:
    """A share of 1."""
    return f"{fraction:.1%}"


def interval(ends: tuple[float, float]) -> str:
    """The two ends of a share."""
    low, high = ends
    return f"{100 * low:.1f} to {100 * high:.1f}%"


def points(fraction: float) -> str:
    """A difference of two shares in points, with its sign; one that rounds to nothing has none."""
    text = f"{100 * fraction:+.1f}"
    return "0.0" if float(text) == 0 else text.replace("-", "\N{MINUS SIGN}")


def gain_interval(ends: tuple[float, float] | None) -> str:
    """The two ends of a difference; empty where there is no interval."""
    return "" if ends is None else f"{points(ends[0])} to {points(ends[1])}"


def p_value(value: float) -> str:
    """A p-value in a table."""
    if value >= 0.001:
        return f"{value:.2g}"
    mantissa, _, exponent = f"{value:.0e}".partition("e")
    return f"{mantissa}·10" + str(int(exponent)).translate(_SUPERSCRIPT)


def p_text(value: float) -> str:
    """A p-value in a sentence, with its sign of comparison."""
    return "p < 0.001" if value < 0.001 else f"p = {value:.2g}"


def duration(seconds: float) -> str:
    """Seconds in the form that a reader would say: 8.3 s, 4 min 05 s, 2 h 10 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
