"""The command line: the commands of labkit/cli, and how a fault ends.

Every fault ends as one sentence: one that a person can mend says how, and a defect of ours says so. --debug shows the traceback.
"""

from __future__ import annotations

import shlex
import sys
from typing import Annotated

import typer
from typer import _completion_shared

from labkit.cli import grade, inspect, learn, set_up
from labkit.cli.help_screen import Commands
from labkit.course import board
from labkit.system.console import print_lines, print_text
from labkit.system.errors import UserError

# typer's scripts for zsh and fish call the program by its name alone, and ./lab is not on the PATH: call it as it was typed. And
# a shell's first Tab does no more than load the one for zsh: as in click's own, that Tab is answered too.
_zsh = _completion_shared.COMPLETION_SCRIPT_ZSH.replace("=complete_zsh %(prog_name)s", "=complete_zsh ${words[1]}")
_register = "compdef %(complete_func)s %(prog_name)s"
_answer = f'if [[ $zsh_eval_context[-1] == loadautofunc ]]; then\n  %(complete_func)s "$@"\nelse\n  {_register}\nfi'
_completion_shared._completion_scripts |= {
    "zsh": _zsh.replace(f"\n{_register}", f"\n{_answer}"),
    "fish": _completion_shared.COMPLETION_SCRIPT_FISH.replace("-cp) %(prog_name)s", "-cp) (commandline -opc)[1]"),
}

app = typer.Typer(cls=Commands, pretty_exceptions_enable=False, no_args_is_help=False)
for group in (learn, inspect, set_up, grade):
    app.add_typer(group.app)


@app.callback(invoke_without_command=True)
def board_if_alone(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="a fault ends with its traceback, not with a sentence alone")] = False,
) -> None:
    """Add a model to vLLM for the first time: labs, and a small real engine. Without a command: the board."""
    if context.invoked_subcommand is None:
        board.show_board()


def main() -> None:
    """Runs the command line; the exit status is 0 only if what was asked for was done and held."""
    try:
        asks_for_completion = sys.argv[1:2] in (["--install-completion"], ["--show-completion"])
        app(prog_name="lab" if asks_for_completion else "./lab", complete_var="_LAB_COMPLETE")
    except KeyboardInterrupt:
        print_lines("lab: interrupted")
        sys.exit(130)
    except Exception as fault:
        if sys.argv[1:2] == ["--debug"]:
            raise
        ours = f"a defect of ours, {type(fault).__name__}: " if not isinstance(fault, UserError) else ""
        where = f"; ./lab --debug {shlex.join(sys.argv[1:])} shows where" if ours else ""
        print_text(f"lab: {ours}{fault}{where}")
        sys.exit(getattr(fault, "status", 1))
