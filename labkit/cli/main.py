"""Entry point of the command line: runs a command and prints an error as one sentence.

The sentence of a UserError says how to fix the error; any other error is a bug of this project. ``--debug`` shows the traceback.
"""

from __future__ import annotations

import io
import re
import shlex
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated

import typer

from labkit.cli import grade, inspect, learn, set_up
from labkit.course import board
from labkit.system.console import print_lines, print_text
from labkit.system.errors import UserError

app = typer.Typer(pretty_exceptions_enable=False)
for commands in (learn, inspect, set_up, grade):
    app.add_typer(commands.app)


@app.callback(invoke_without_command=True)
def board_without_command(
    context: typer.Context, debug: Annotated[bool, typer.Option("--debug", help="show the traceback of an error")] = False
) -> None:
    """Add a model to vLLM for the first time. Without a command: show the board of all labs."""
    if context.invoked_subcommand is None:
        board.show_board()


def main() -> None:
    """Runs the command line; the exit status is 0 only if the command succeeded and all checks of the command passed."""
    try:
        if sys.argv[1:2] in (["--install-completion"], ["--show-completion"]):
            _shell_completion()
        app(prog_name="./lab", complete_var="_LAB_COMPLETE")
    except KeyboardInterrupt:
        print_lines("lab: interrupted")
        sys.exit(130)
    except Exception as fault:
        if sys.argv[1:2] == ["--debug"]:
            raise
        if isinstance(fault, UserError):
            print_text(f"lab: {fault}")
            sys.exit(fault.status)
        again = f"./lab --debug {shlex.join(sys.argv[1:])}"
        print_text(f"lab: a bug of this project, {type(fault).__name__}: {fault}; {again} shows the traceback")
        sys.exit(1)


def _shell_completion() -> None:
    """Prints or installs typer's completion script, changed to call the program by the path that was typed.

    typer's scripts for zsh and fish call ``lab``, which is not on the PATH; typer has no option to change them.
    """
    printed = io.StringIO()
    try:
        with redirect_stdout(printed):
            app(prog_name="lab")
    finally:
        text = printed.getvalue()
        if installed := re.search(r"completion installed in (.+)", text):
            script = Path(installed[1])
            script.write_text(_call_as_typed(script.read_text(encoding="utf-8")), encoding="utf-8")
        sys.stdout.write(_call_as_typed(text))


def _call_as_typed(script: str) -> str:
    # zsh's first Tab only loads the file and must be answered as well, as in click's own script.
    register = "compdef _lab_completion lab"
    answer = f'if [[ $zsh_eval_context[-1] == loadautofunc ]]; then\n  _lab_completion "$@"\nelse\n  {register}\nfi'
    script = script.replace("=complete_zsh lab", "=complete_zsh ${words[1]}").replace(f"\n{register}", f"\n{answer}")
    return script.replace("(commandline -cp) lab", "(commandline -cp) (commandline -opc)[1]")
