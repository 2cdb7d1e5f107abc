"""The command line. Each command is a module of this package, and only the requested one is imported."""

import argparse
import io
import os
import signal
import sys
import warnings
from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import cast

from dnas import __version__
from dnas.cli.parser import Command, Parser, add_command
from dnas.errors import InputError, did_you_mean, os_reason

GROUPS = {
    "search for networks": ("search", "spaces", "status", "report"),
    "understand a search": ("importance", "path", "plot", "track", "verify"),
    "ablate and reproduce": ("ablate", "compare", "reproduce"),
    "one network": ("cost", "train", "eval", "predict", "export"),
    "several machines": ("worker", "pull"),
    "maintain a study": ("extend", "replay", "doctor"),
    "use this command line": ("completion",),
}
COMMANDS = tuple(name for names in GROUPS.values() for name in names)


def command_module(name: str) -> Command:
    """Import and return the module of a command, which imports further modules only when it runs."""
    return cast(Command, import_module(f"dnas.cli.{name}"))


def make_parser(names: Iterable[str] = COMMANDS, *, options: bool = True) -> argparse.ArgumentParser:
    """Return a parser of the commands `names`, which the main help needs without their options."""
    modules = {name: command_module(name) for name in names}
    parser = Parser(
        prog="dnas",
        usage="dnas [-h] [--version] [--debug] COMMAND ...",
        description="Neural-architecture search and ablation for densely connected convolutional networks.",
        epilog=_overview(modules),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"dnas {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(
        prog="dnas",
        dest="command",
        metavar="COMMAND",
        required=True,
        parser_class=Parser,
        help=argparse.SUPPRESS,
    )
    for name, module in modules.items():
        command = add_command(commands, name, module.SUMMARY, module.EXAMPLES)
        if options:
            module.add_arguments(command)
    return parser


def _overview(modules: dict[str, Command]) -> str:
    """Return the list of commands, by group, for the main help."""
    lines = ["commands:"]
    for group, names in GROUPS.items():
        lines += [f"  {group}", *(f"    {name:12s}{modules[name].SUMMARY}" for name in names if name in modules), ""]
    return "\n".join([*lines, "`dnas help COMMAND` describes a command and its options, with examples."])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    Without arguments it prints the help, as `dnas help` does. The status is 0 for success, 1 if the work failed or was
    done in part, 2 for invalid input, and 130 after Ctrl-C.
    """
    # Must be set before torch is imported. Threads that spin while they wait gain a little on idle cores; on busy cores
    # they make a step slower than a single thread would (benchmarks/results/threads.md).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ["MPLBACKEND"] = "agg"  # a notebook's is not installed everywhere, and nothing is shown in a window
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] == ["help"]:
        arguments = [*arguments[1:], "--help"]
    name = next((argument for argument in arguments if not argument.startswith("-")), None)
    if not arguments:
        arguments = ["--help"]
    if name is not None and name not in COMMANDS:
        names = ", ".join(sorted(COMMANDS))
        print(f"dnas: no command {name!r}; there are {names}.{did_you_mean(name, COMMANDS)}", file=sys.stderr)
        return 2
    options = arguments[: arguments.index(name)] if name is not None else arguments  # options before the command
    needs_all = name is None or "-h" in options or "--help" in options
    parser = make_parser(options=False) if needs_all else make_parser([cast(str, name)])
    args = parser.parse_args(arguments)
    try:
        return command_module(args.command).run(args)
    except InputError as error:
        if args.debug:
            raise
        print(f"dnas: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader, such as `head`, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (OSError, UnicodeError, MemoryError) as error:
        if args.debug:
            raise
        print(f"dnas: {_cause(error)}; `dnas --debug ...` shows where it happened.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _cause(error: OSError | UnicodeError | MemoryError) -> str:
    """Describe an error of the operating system, of an encoding or of the memory in one line."""
    if isinstance(error, OSError):
        names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
        return (f"{' and '.join(names)}: " if names else "") + os_reason(error)
    if isinstance(error, UnicodeError):
        return f"a text has characters that cannot be read or written ({error})"
    return "out of memory"


def entry_point() -> int:
    """Run one command as a program.

    Characters that the terminal lacks are replaced, and warnings of libraries are printed without their source lines.
    After the command has ended, Ctrl-C no longer interrupts Python's own shutdown.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    warnings.showwarning = _show_warning
    try:
        return main()
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _show_warning(message: Warning | str, *where: object, **options: object) -> None:
    print(f"dnas: warning: {str(message).splitlines()[0]}", file=sys.stderr)
