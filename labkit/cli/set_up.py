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


@app.command(short_help="fetch a checkpoint: real, or dummy weights of its shapes", rich_help_panel=SET_UP)
def fetch(
    model: Annotated[str, typer.Argument(help="a hub id, or smollm2")] = "meta-llama/Meta-Llama-3-8B-Instruct",
    revision: Annotated[str, typer.Option(help="a branch, a tag or a commit of the hub")] = "main",
    to: Annotated[Path | None, typer.Option(help="the directory to make, instead of one in the cache")] = None,
    fallback: Annotated[
        Literal["auto", "dummy", "smollm2", "none"],
        typer.Option(help="auto: dummy weights if the model is gated; others: the replacement for any failure"),
    ] = "auto",
    layers: Annotated[int | None, typer.Option(help="number of layers of dummy weights; default all")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="check every byte of an existing directory")] = False,
    json: Annotated[bool, typer.Option("--json", help="print the result as JSON; everything else goes to stderr")] = False,
) -> None:
    """Fetch a checkpoint: a model of the hub, dummy weights of its shapes if it is gated, or smollm2, which needs no login."""
    from labkit.checkpoints.fetch.checkpoint import fetch as fetch_checkpoint

    console.stderr = json
    fetched = fetch_checkpoint(model, revision=revision, to=to, fallback=fallback, layers=layers, verify=verify)
    print_lines(*fetched.notes, fetched.summary, *([] if json else [str(fetched.directory)]))
    if json:
        sys.stdout.write(fetched.json + "\n")


@app.command(short_help="check this machine, and say how to fix each problem", rich_help_panel=SET_UP)
def doctor() -> None:
    """Check this machine for what the labs need, and say how to fix each problem."""
    from labkit.system.doctor import Host, examine, show

    with working("Checking this machine"):
        findings = examine(Host())
    raise typer.Exit(0 if show(findings) else 1)


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
