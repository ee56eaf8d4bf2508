"""Commands that set up and test."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from labkit.cli.help_screen import SET_UP
from labkit.system.console import console, print_lines, working
from labkit.system.labs import ROOT

app = typer.Typer()


@app.command(short_help="a checkpoint: real, or dummy in the true shapes", rich_help_panel=SET_UP)
def fetch(
    model: Annotated[str, typer.Argument(help="a hub id, or smollm2")] = "meta-llama/Meta-Llama-3-8B-Instruct",
    revision: Annotated[str, typer.Option(help="a branch, a tag or a commit of the hub")] = "main",
    to: Annotated[Path | None, typer.Option(help="the directory to make, instead of one in the cache")] = None,
    fallback: Annotated[
        Literal["auto", "dummy", "smollm2", "none"],
        typer.Option(help="auto: dummy weights where they are gated; else what to take whenever there are no real ones"),
    ] = "auto",
    layers: Annotated[int | None, typer.Option(help="how many layers dummy weights have; else all")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="read every byte of what is there already")] = False,
    json: Annotated[bool, typer.Option("--json", help="say what there is now as JSON; all else goes to standard error")] = False,
) -> None:
    """Fetch a checkpoint: a model of the hub, dummy weights in its shapes where it is gated, or smollm2, which needs no login."""
    from labkit.checkpoints.fetch import Fallback
    from labkit.checkpoints.fetch.checkpoint import fetch as fetch_checkpoint

    console.stderr = json
    fetched = fetch_checkpoint(model, revision=revision, to=to, fallback=Fallback(fallback), layers=layers, verify=verify)
    print_lines(*fetched.notes, fetched.told, *([] if json else [str(fetched.directory)]))
    if json:
        sys.stdout.write(fetched.json + "\n")


@app.command(short_help="what this machine has, and how to mend the rest", rich_help_panel=SET_UP)
def doctor() -> None:
    """Look at this machine: what the labs need, what it has, and how to mend what is not right."""
    from labkit.system import doctor as examination
    from labkit.system.host_probes import Host

    with working("Looking at this machine"):
        findings = examination.examine(Host())
    raise typer.Exit(0 if examination.show(findings, console) else 1)


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    short_help="every test that needs no GPU, by tox",
    rich_help_panel=SET_UP,
)
def test(context: typer.Context) -> None:
    """Run every test that needs no GPU (tox; what follows goes to tox, for instance: -e lab01)."""
    from labkit.system.installer import uv_variables

    raise typer.Exit(
        subprocess.call([sys.executable, "-m", "tox", "-c", str(ROOT / "tox.ini"), *context.args], env=uv_variables())
    )
