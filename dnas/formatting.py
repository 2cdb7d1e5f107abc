"""Formatting of numbers and lists as text."""

import math
import re
from collections.abc import Iterable
from html import escape


def percent(share: float | None) -> str:
    """Format 0.1234 as `12.34%`, and None as a dash."""
    return "–" if share is None else f"{100 * share:.2f}%"


def count(number: float) -> str:
    """Format 12,345 as "12.3 k", 769,162 as "0.77 M", 287,929,692 as "288 M", 5.42e9 as "5.42 G"."""
    if number < 1e3:
        return f"{number:g}"
    if number < 1e5:
        return f"{number / 1e3:.1f} k"
    return f"{_short(number / 1e9)} G" if round(number / 1e6) >= 1000 else f"{_short(number / 1e6)} M"


def size(number: float) -> str:
    """Format a number of bytes as `1.2 GB`."""
    for unit, letter in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if number >= unit:
            return f"{number / unit:.1f} {letter}"
    return f"{number:.0f} bytes"


def duration(seconds: float) -> str:
    """Format seconds as `48 s`, `7 min 05 s`, `1 h 12 min` or `3 days 4 h`."""
    rounded = round(seconds)
    if rounded < 60:
        return f"{rounded} s"
    if rounded < 3600:
        return f"{rounded // 60} min {rounded % 60:02d} s"
    if rounded < 48 * 3600:
        return f"{rounded // 3600} h {rounded % 3600 // 60:02d} min"
    return f"{rounded // 86400} days {rounded % 86400 // 3600} h"


def points(difference: float) -> str:
    """Format a difference of errors in percentage points: -0.0123 as "−1.23", 0.004 as "+0.40", 0 as "0.00"."""
    text = f"{100 * difference:+.2f}".replace("-", "\u2212")
    return "0.00" if text[1:] == "0.00" else text


def signed(difference: float) -> str:
    """Format a difference of plain numbers: -0.012345 as "−0.0123", 12 as "+12", 0 as "0"."""
    text = f"{difference:+.3g}"
    return "0" if float(text) == 0 else text.replace("-", "\u2212", 1) if text.startswith("-") else text


def p_value(p: float) -> str:
    """Format 0.00012 as "p < 0.001", 0.046875 as "p = 0.047", 0.328 as "p = 0.33", with non-breaking spaces."""
    if p < 0.001:
        return "p\u00a0<\u00a00.001"
    return f"p\u00a0=\u00a0{p:.3f}" if p < 0.0995 else f"p\u00a0=\u00a0{p:.2f}"


def several(number: int, one: str, more: str | None = None) -> str:
    """Format (1, "trial") as "1 trial", (1200, "trial") as "1,200 trials"."""
    return f"{number:,} {one if number == 1 else more or one + 's'}"


def big(number: int) -> str:
    """Format 1_234_567 as "1.2·10⁶", and numbers below 100,000 in full."""
    if number < 100_000:
        return f"{number:,}"
    power = math.floor(math.log10(number))
    factor = f"{number / 10**power:.1f}"
    if factor == "10.0":
        factor, power = "1.0", power + 1
    return f"{factor}·10" + "".join("⁰¹²³⁴⁵⁶⁷⁸⁹"[int(digit)] for digit in str(power))


def joined(parts: list[str]) -> str:
    """Join ["a", "b", "c"] to "a, b and c"."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def _short(value: float) -> str:
    """Format with three significant digits from 1 on, and with two below."""
    if value == 0:
        return "0"
    decimals = max(0, (2 if abs(value) >= 1 else 1) - math.floor(math.log10(abs(value))))
    return f"{value:.{decimals}f}"


def html_table(rows: Iterable[tuple[str, str]]) -> str:
    """Return rows of two texts as an HTML table."""
    cells = "".join(f"<tr><td>{escape(name)}</td><td>{escape(text)}</td></tr>" for name, text in rows)
    return f"<table>{cells}</table>"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, without secrets and the period at its end; its type without a text."""
    lines = (line.strip() for line in str(error).splitlines())
    return redact(next(filter(None, lines), type(error).__name__)).rstrip(".")


def redact(text: str) -> str:
    """Mask passwords and keys in URLs: postgresql://user:***@host/name."""
    text = re.sub(r"(\w[\w+.-]*://[^\s:/@]*):\S*@", r"\1:***@", text)  # to the last @: passwords may contain one
    return re.sub(r"(?i)\b(password|sslpassword|secret|token|key)=[^\s&'\"]+", r"\1=***", text)
