"""`dnas completion`: print a script with which a shell completes commands, options, studies and files."""

import argparse

SUMMARY = "print a script with which a shell completes commands and options"
EXAMPLES = """  eval "$(dnas completion bash)"                                       # now; in ~/.bashrc: always
  dnas completion zsh > "${fpath[1]}/_dnas"
  dnas completion fish > ~/.config/fish/completions/dnas.fish"""
STUDIES = "ls studies 2>/dev/null"
NAMES_OF_STUDIES = ("STUDY", "STUDY_OR_CHECKPOINT")  # metavars of arguments that are completed with studies


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=["bash", "zsh", "fish"], help="the shell that reads the script")


def run(args: argparse.Namespace) -> int:
    import shtab

    from dnas.cli import make_parser

    parser = make_parser()
    _mark_values(parser)
    print(shtab.complete(parser, args.shell))
    return 0


def _mark_values(parser: argparse.ArgumentParser) -> None:
    """Mark the arguments of all commands whose values are files, folders or studies."""
    import shtab

    from dnas.cli.parser import file_path

    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            action.help = "command"  # shtab leaves out what the help leaves out
            for command in action.choices.values():
                _mark_values(command)
        elif action.type is file_path:
            action.complete = shtab.DIRECTORY if action.metavar == "FOLDER" else shtab.FILE  # type: ignore[attr-defined]
        elif action.metavar in NAMES_OF_STUDIES:
            action.complete = shtab.cmd(STUDIES)  # type: ignore[attr-defined]
