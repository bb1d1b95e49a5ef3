"""How numbers are written for people: separators, units, three figures where more would not be read."""

from collections.abc import Sequence


def count(number: float) -> str:
    """A whole number with separators."""
    return f"{number:,.0f}"


def size(size_bytes: float) -> str:
    """Bytes in decimal units, three figures."""
    number, unit = _scaled(size_bytes, ("B", "kB", "MB", "GB", "TB", "PB"))
    return f"{number} {unit}"


def short(number: float) -> str:
    """A count of three figures with K, M, B or T (thousand to trillion)."""
    return " ".join(_scaled(number, ("", "K", "M", "B", "T"))).strip()


def _scaled(number: float, units: Sequence[str]) -> tuple[str, str]:
    """A number over the power of 1000 that leaves it below 1000, and the unit of that power."""
    power = 0
    while number >= 999.5 and power < len(units) - 1:
        number, power = number / 1000, power + 1
    decimals = 0 if not power or number >= 99.95 else 1 if number >= 9.995 else 2
    return f"{number:,.{decimals}f}", units[power]


def share(part: float, whole: float) -> str:
    """A part in per cent of the whole; less than a tenth is said so."""
    percent = 100 * part / whole if whole else 0.0
    return "< 0.1 %" if 0 < percent < 0.05 else f"{percent:.1f} %"


def figure(value: float, digits: int = 6) -> str:
    """A number of up to so many significant figures, with separators."""
    return f"{value:,.{digits}g}" if abs(value) < 10**digits else f"{value:,.0f}"


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss or m:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d} h" if hours else f"{minutes}:{rest:02d} min"
