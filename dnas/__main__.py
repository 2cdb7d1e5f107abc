"""Entry point of `python -m dnas`, which `torchrun -m dnas` needs."""

from dnas.cli import entry_point

if __name__ == "__main__":
    raise SystemExit(entry_point())
