"""Entry point of `python -m dnas.cli`."""

from dnas.cli import entry_point

if __name__ == "__main__":
    raise SystemExit(entry_point())
