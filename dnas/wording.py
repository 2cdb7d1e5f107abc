"""Numbers as people say them."""


def percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.2f}%"


def count(number: float) -> str:
    """12,345 as `12.3 k`, 769,162 as `0.77 M`, 5.4e9 as `5.42 G`."""
    for size, letter in ((1e9, "G"), (1e5, "M"), (1e3, "k")):
        if number >= size:
            unit = {"G": 1e9, "M": 1e6, "k": 1e3}[letter]
            return f"{number / unit:.{1 if letter == 'k' else 2}f} {letter}"
    return f"{number:g}"


def size(number: float) -> str:
    """Bytes as `1.2 GB`."""
    for unit, letter in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if number >= unit:
            return f"{number / unit:.1f} {letter}"
    return f"{number:.0f} bytes"


def duration(seconds: float) -> str:
    """`48 s`, `7 min 05 s`, `1 h 12 min`, `3 days 4 h`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 48 * 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} days {whole % 86400 // 3600} h"
