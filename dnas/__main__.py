"""`python -m dnas`, which `torchrun -m dnas` needs."""

from dnas.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
