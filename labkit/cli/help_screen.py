"""``./lab --help``: every command in one screen of 24 lines and 80 columns, in groups."""

from __future__ import annotations

from typing import Any

from rich.table import Table
from typer import Context
from typer.core import TyperGroup

from labkit.system.console import console

LEARN, LOOK, SET_UP, MORE = "learn", "look", "set up", "more"
"""The groups, in their order; a command that names none is in the last."""


class Commands(TyperGroup):
    """The commands of ./lab. Each command's own help is typer's."""

    def format_help(self, ctx: Context, formatter: Any) -> None:  # type: ignore[override]
        """Prints a line for each command."""
        groups: dict[str, list[tuple[str, str]]] = {name: [] for name in (LEARN, LOOK, SET_UP, MORE)}
        for name in self.list_commands(ctx):
            command = self.commands[name]
            if not command.hidden:
                panel = getattr(command, "rich_help_panel", None) or MORE
                groups.setdefault(panel, []).append((name, command.get_short_help_str(100)))
        table = Table.grid(padding=(0, 2))
        for _ in range(2):
            table.add_column(no_wrap=True)
        table.add_column(no_wrap=True, overflow="ellipsis")
        for panel, commands in groups.items():
            for number, (name, short) in enumerate(commands):
                table.add_row("" if number else f"[bold]{panel}[/bold]", name, short)
        console.print("Usage: ./lab [--debug] COMMAND ...      without a command: the board\n")
        console.print(table)
        console.print()
        formatter.write("./lab COMMAND --help says more. Tab completion: ./lab --install-completion")  # printed by who asked
