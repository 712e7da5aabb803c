"""``vfiokit completion``: completion scripts for bash, zsh and fish."""

from __future__ import annotations

import argparse

from vfiokit.cli import exit as exit_code
from vfiokit.cli.session import Session

DESCRIPTION = "Print a completion script for your shell."
EPILOG = """\
examples:
  vfiokit completion bash > ~/.local/share/bash-completion/completions/vfiokit
  vfiokit completion zsh  > ~/.zfunc/_vfiokit
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare arguments."""
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh", "fish"))


def run(arguments: argparse.Namespace, session: Session) -> int:
    """Print the script."""
    del session
    import shtab

    from vfiokit.cli.main import build_parser

    print(shtab.complete(build_parser(), shell=arguments.shell))
    return exit_code.DONE
