"""Commands that set up this machine, run every test, and grade a class."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from labkit.cli.arguments import SET_UP, TEACH, lab_numbers
from labkit.system.console import console, print_lines, working
from labkit.system.labs import ROOT, find_lab

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
        typer.Option(help="what to use without access to the real weights; auto: dummy weights if the model is gated"),
    ] = "auto",
    layers: Annotated[int | None, typer.Option(help="number of layers of dummy weights; default: all")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="verify every byte of a checkpoint that is already there")] = False,
    json: Annotated[
        bool, typer.Option("--json", help="print the result as JSON; everything else goes to standard error")
    ] = False,
) -> None:
    """Fetch a checkpoint, or create dummy weights in its shapes.

    A gated model needs a token in HF_TOKEN; without one you get dummy weights. smollm2 needs no login.
    """
    from labkit.checkpoints.fetch import Fallback
    from labkit.checkpoints.fetch.checkpoint import fetch as fetch_checkpoint

    console.stderr = json
    fetched = fetch_checkpoint(model, revision=revision, to=to, fallback=Fallback(fallback), layers=layers, verify=verify)
    print_lines(*fetched.notes, fetched.told, *([] if json else [str(fetched.directory)]))
    if json:
        sys.stdout.write(fetched.json + "\n")


@app.command(rich_help_panel=SET_UP)
def doctor() -> None:
    """Check what the labs need on this machine, and how to fix it."""
    from labkit.system import doctor as examination
    from labkit.system.host_probes import Host

    with working("Checking this machine"):
        findings = examination.examine(Host())
    raise typer.Exit(0 if examination.show(findings, console) else 1)


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    rich_help_panel=SET_UP,
)
def test(context: typer.Context) -> None:
    """Run every test that needs no GPU, with tox.

    Further arguments go to tox, for instance -e lab01.
    """
    from labkit.system.installer import uv_variables

    raise typer.Exit(
        subprocess.call([sys.executable, "-m", "tox", "-c", str(ROOT / "tox.ini"), *context.args], env=uv_variables())
    )


@app.command(rich_help_panel=TEACH)
def grade(
    submissions: Annotated[
        Path, typer.Argument(metavar="SUBMISSIONS_DIR", help="a directory with a folder, .zip or .py file for each learner")
    ],
    number: Annotated[
        str, typer.Option("--lab", metavar="01|02|03|04", help="number of the lab they submit", autocompletion=lab_numbers)
    ],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="the directory for the results")] = Path("grades"),
    jobs: Annotated[int | None, typer.Option(min=1, help="submissions graded at a time; default: one for each CPU")] = None,
    no_sandbox: Annotated[
        bool, typer.Option("--no-sandbox", help="use a child process instead of a container; only for code that you trust")
    ] = False,
    image: Annotated[str, typer.Option(help="the container image, built from docker/Dockerfile")] = "mini-vllm-labs",
    ray: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="grade on the Ray cluster at HOST:PORT; this machine must be one of its nodes"),
    ] = None,
    formats: Annotated[
        list[str] | None,
        typer.Option("--format", help="additional report format: junit, gradescope or classroom; may be repeated"),
    ] = None,
    similarity: Annotated[bool, typer.Option("--similarity", help="also arrange the files for JPlag")] = False,
) -> None:
    """Grade a class; each submission runs in a new container.

    Run the command again to continue after an interruption.
    """
    from labkit.grading.command import grade_class

    sandbox_image = None if no_sandbox else image
    failed = grade_class(submissions, find_lab(number), output, jobs, sandbox_image, ray, formats or [], similarity)
    raise typer.Exit(1 if failed else 0)
