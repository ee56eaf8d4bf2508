"""Commands that set up this machine and run every test."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from labkit.cli.arguments import SET_UP
from labkit.system.console import console, print_lines, working
from labkit.system.labs import ROOT

app = typer.Typer()


@app.command(rich_help_panel=SET_UP)
def fetch(
    model: Annotated[
        str, typer.Argument(help="the id of a model on the Hugging Face hub, or smollm2")
    ] = "meta-llama/Meta-Llama-3-8B-Instruct",
    revision: Annotated[str, typer.Option(help="a branch, tag or commit of the model on the hub")] = "main",
    to: Annotated[Path | None, typer.Option(help="the directory to create; default: one in the cache")] = None,
    fallback: Annotated[
        Literal["auto", "dummy", "smollm2", "none"],
        typer.Option(help="what to use without access to the real weights; auto: dummy weights if gated"),
    ] = "auto",
    layers: Annotated[int | None, typer.Option(help="number of layers of dummy weights; default: all")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="verify every byte that is already there")] = False,
    json: Annotated[bool, typer.Option("--json", help="print the result as JSON, messages to standard error")] = False,
) -> None:
    """Fetch a checkpoint, or create dummy weights in its shapes.

    A gated model needs a token in HF_TOKEN; without one you get dummy weights. smollm2 needs no login.
    """
    from labkit.checkpoints.fetch.checkpoint import fetch as fetch_checkpoint

    console.stderr = json
    fetched = fetch_checkpoint(model, revision=revision, to=to, fallback=fallback, layers=layers, verify=verify)
    print_lines(*fetched.notes, fetched.summary, *([] if json else [str(fetched.directory)]))
    if json:
        sys.stdout.write(fetched.json + "\n")


@app.command(rich_help_panel=SET_UP)
def doctor() -> None:
    """Check what the labs need on this machine, and how to fix it."""
    from labkit.system.doctor import Host, examine, show

    with working("Checking this machine"):
        findings = examine(Host())
    raise typer.Exit(0 if show(findings) else 1)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True}, rich_help_panel=SET_UP)
def test(context: typer.Context) -> None:
    """Run every test that needs no GPU, with tox.

    Further arguments go to tox, for instance -e lab01.
    """
    from labkit.system.installer import uv_variables

    tox = [sys.executable, "-m", "tox", "-c", str(ROOT / "tox.ini"), *context.args]
    raise typer.Exit(subprocess.call(tox, env=uv_variables()))
