"""Words for the page and the figures, beside those of `dnas.wording`: networks' sizes in M, as papers have them."""

import math


def params(number: float) -> str:
    """31_234 -> "0.031 M", 769_162 -> "0.77 M", 15_324_406 -> "15.3 M"."""
    return f"{_short(number / 1e6)} M"


def macs(number: float) -> str:
    """1_940_000 -> "1.94 M", 287_929_692 -> "288 M", 5_418_785_724 -> "5.42 G"."""
    return f"{_short(number / 1e9)} G" if round(number / 1e6) >= 1000 else f"{_short(number / 1e6)} M"


def several(number: int, one: str, more: str | None = None) -> str:
    """(1, "trial") -> "1 trial", (1200, "trial") -> "1,200 trials"."""
    return f"{number:,} {one if number == 1 else more or one + 's'}"


def big(number: int) -> str:
    """1_234_567 -> "1.2·10⁶"; small ones in full."""
    if number < 100_000:
        return f"{number:,}"
    power = math.floor(math.log10(number))
    factor = f"{number / 10**power:.1f}"
    if factor == "10.0":
        factor, power = "1.0", power + 1
    return f"{factor}·10" + "".join("⁰¹²³⁴⁵⁶⁷⁸⁹"[int(digit)] for digit in str(power))


def joined(parts: list[str]) -> str:
    """["a", "b", "c"] -> "a, b and c"."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def _short(value: float) -> str:
    """Three significant digits from 1 on, two below."""
    if value == 0:
        return "0"
    decimals = max(0, (2 if abs(value) >= 1 else 1) - math.floor(math.log10(abs(value))))
    return f"{value:.{decimals}f}"
