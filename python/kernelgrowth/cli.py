"""The command ``kernelgrowth``.

Exit status: 0 on success; 2 on bad input, with one line on stderr; 130 on Ctrl-C; 1 on an error of the program's own.
There is a traceback only with ``--debug``. Everything heavy is imported inside the commands.
"""

# No "from __future__ import annotations" here: typer reads annotations that name local imports.

import glob
import io
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

if TYPE_CHECKING:
    import typer

    from kernelgrowth.experiments import ExperimentConfig, ExperimentResult, Progress

__all__ = ["build_app", "main"]

_BAD_INPUT = 2
_INTERRUPTED = 130
_OWN_ERROR = 1
# Series that `watch` shows, and what it calls them.
_WATCHED = {"loss": "loss", "kernel_norm": "‖K‖", "alignment": "A", "rotation": "rotation"}
_OPTIONAL = ("typer", "rich", "matplotlib", "jinja2", "scikit-learn", "torch", "jax", "cupy-cuda13x")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    Parameters
    ----------
    arguments : sequence of str, optional
        Without the program's name; those of the process by default.
    """
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a sign shows "?" for it; a finished run must not fail over its last sentence.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        import rich  # noqa: F401
        import typer
    except KeyboardInterrupt:
        return _fail("interrupted", _INTERRUPTED)
    except ModuleNotFoundError as error:
        print(f'kernelgrowth: the command line needs {error.name}: pip install "kernelgrowth[run]"', file=sys.stderr)
        return _BAD_INPUT
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    # --debug is an option of the program, welcome anywhere.
    command = typer.main.get_command(build_app())
    words = ["--debug"] * debug + [word for word in given if word != "--debug"]
    # typer may bring its own copy of click, whose exceptions it does not export by this name.
    usage_error: Any = next(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException")
    try:
        status = command.main(words, prog_name="kernelgrowth", standalone_mode=False)
    except usage_error as error:
        if debug:
            raise
        message = " ".join(error.format_message().split())
        # Without a command the help has been shown, and says it all.
        return _fail(f"{message} (see kernelgrowth --help)", _BAD_INPUT) if message else _BAD_INPUT
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted", _INTERRUPTED)
    return status if isinstance(status, int) else 0


def build_app() -> "typer.Typer":
    """Build the command line's application."""
    import typer

    app = typer.Typer(
        name="kernelgrowth",
        help="Follow the neural tangent kernel of a network through its training.",
        add_completion=False,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    Out = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Folder of the run.")]
    Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only the verdict.")]
    Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the run that the folder holds.")]
    Resume = Annotated[bool, typer.Option("--resume", help="Continue the folder's run from its last checkpoint.")]

    def show_version(value: bool) -> None:
        if value:
            print(f"kernelgrowth {_version('kernelgrowth') or 'unknown'}")
            raise typer.Exit

    @app.callback()
    def program(
        context: typer.Context,
        debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
        version: Annotated[
            bool, typer.Option("--version", help="Show the version.", callback=show_version, is_eager=True)
        ] = False,
    ) -> None:
        context.obj = debug

    @app.command()
    def demo(
        context: typer.Context,
        out: Out = None,
        seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of data and initial weights.")] = 0,
        whiten: Annotated[bool, typer.Option("--whiten/--no-whiten", help="Whether the inputs are whitened.")] = True,
        overwrite: Overwrite = False,
        quiet: Quiet = False,
    ) -> None:
        """Show silent alignment on handwritten digits, in seconds."""
        with _one_line_errors(context.obj):
            # Its matrices are too small to share: threads of BLAS that wait for each other would only slow it down.
            _set_blas_threads("1")
            from kernelgrowth.experiments import demo_config

            folder = out or Path("kernelgrowth-demo")
            _run(demo_config(seed, whiten=whiten), folder, overwrite=overwrite, quiet=quiet)

    @app.command()
    def run(
        context: typer.Context,
        config: Annotated[
            Path | None, typer.Argument(metavar="CONFIG.toml", help="The experiment; not needed to resume.")
        ] = None,
        out: Out = None,
        resume: Resume = False,
        overwrite: Overwrite = False,
        quiet: Quiet = False,
    ) -> None:
        """Run the experiment that a configuration file describes."""
        with _one_line_errors(context.obj):
            if resume and out is not None:
                _take_threads_of(out)
            experiment, folder = _experiment(config, out, resume=resume)
            _run(experiment, folder, resume=resume, overwrite=overwrite, quiet=quiet)

    @app.command()
    def sweep(
        context: typer.Context,
        config: Annotated[Path, typer.Argument(metavar="SWEEP.toml", help="An experiment with a table [sweep].")],
        out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Folder of the sweep.")] = None,
        workers: Annotated[
            int | None,
            typer.Option("--workers", min=1, help="Processes; as many as the processors allow unless given."),
        ] = None,
        scheduler: Annotated[
            str | None, typer.Option("--scheduler", metavar="ADDRESS", help="Of a Dask cluster to use instead.")
        ] = None,
        retries: Annotated[
            int | None, typer.Option("--retries", min=0, help="How often a run that failed is tried again.")
        ] = None,
        quiet: Quiet = False,
    ) -> None:
        """Make many runs that differ in some settings; what DIR holds of them already is not made again."""
        with _one_line_errors(context.obj):
            _sweep(config, out, workers=workers, scheduler=scheduler, retries=retries, quiet=quiet)

    @app.command()
    def report(
        context: typer.Context, folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a run.")]
    ) -> None:
        """Write summary and report of a recorded run again, or of one that was interrupted."""
        with _one_line_errors(context.obj):
            from kernelgrowth.experiments import report_run

            _say_result(report_run(folder))

    @app.command()
    def watch(
        context: typer.Context,
        folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a run, or of runs.")],
        every: Annotated[float, typer.Option("--every", min=0.1, help="Seconds between two looks.")] = 2.0,
    ) -> None:
        """Show recorded runs while they are written, until all have ended or Ctrl-C is pressed."""
        with _one_line_errors(context.obj):
            _watch(folder, every)

    @app.command()
    def download(
        context: typer.Context,
        name: Annotated[str, typer.Argument(metavar="mnist|cifar10", help="The data set.")],
        folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where its files go.")],
        url: Annotated[str | None, typer.Option("--url", metavar="URL", help="A mirror of the files.")] = None,
    ) -> None:
        """Fetch a data set's files, checked against their published checksums."""
        with _one_line_errors(context.obj):
            from kernelgrowth.datasets import download as fetch

            print(f"Files of {name}: {fetch(name, folder, url=url)}")

    @app.command()
    def figures(context: typer.Context) -> None:
        """List the figures of the paper, and what each costs."""
        with _one_line_errors(context.obj):
            from kernelgrowth.experiments.figures import FIGURES

            for one in FIGURES:
                print(f"{one.name:<3} {one.title}\n    {one.cost}")

    @app.command()
    def figure(
        context: typer.Context,
        name: Annotated[str, typer.Argument(metavar="NAME", help="As `kernelgrowth figures` lists it.")],
        out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the picture and its runs.")] = Path(
            "kernelgrowth-figures"
        ),
        full: Annotated[bool, typer.Option("--full", help="The paper's setting in place of the quick one.")] = False,
        seeds: Annotated[int, typer.Option("--seeds", min=1, help="Runs of each setting, one a seed.")] = 1,
        data: Annotated[
            str | None, typer.Option("--data", metavar="DIR", help="Folder of MNIST's or CIFAR-10's files.")
        ] = None,
        workers: Annotated[
            int | None, typer.Option("--workers", min=1, help="Processes; one for each processor unless given.")
        ] = None,
        quiet: Quiet = False,
    ) -> None:
        """Run and draw a figure of the paper; what DIR holds of its runs already is not run again."""
        with _one_line_errors(context.obj):
            _draw(name, out, quiet=quiet, full=full, seeds=seeds, data=data, workers=workers)

    @app.command()
    def info(context: typer.Context) -> None:
        """Show versions, what was compiled, and what this machine has."""
        with _one_line_errors(context.obj):
            for name, value in _information():
                print(f"{name:<14} {value}")

    return app


def _experiment(config: Path | None, out: Path | None, *, resume: bool) -> "tuple[ExperimentConfig, Path]":
    """Return the experiment and its folder, from a file or, to resume, from the folder alone."""
    from kernelgrowth.experiments import load_config, stored_config

    if config is None:
        if not resume or out is None:
            raise ValueError("CONFIG.toml is missing: only --resume with --out DIR goes without it")
        stored = stored_config(out)
        if stored is None:
            raise ValueError(f"{out}: holds no experiment to resume")
        return stored, out
    experiment = load_config(config)
    if out is None:
        out = Path(experiment.output.folder) if experiment.output.folder else Path("runs") / config.stem
    return experiment, out


def _set_blas_threads(number: str) -> None:
    # OpenBLAS reads it once, when NumPy is first imported.
    if "numpy" not in sys.modules:
        os.environ.setdefault("OPENBLAS_NUM_THREADS", number)


def _take_threads_of(folder: Path) -> None:
    """Resume with the number of BLAS threads the run began with, on which the last bits of eigenvalues depend."""
    try:
        number = json.loads((folder / "experiment.json").read_text(encoding="utf-8")).get("openblas_num_threads")
    except (OSError, ValueError, AttributeError):
        return  # whatever is wrong with the folder is said when it is opened
    if isinstance(number, str) and number.isdigit():
        _set_blas_threads(number)


def _run(
    config: "ExperimentConfig", folder: Path, *, resume: bool = False, overwrite: bool = False, quiet: bool = False
) -> None:
    from kernelgrowth.experiments import FolderTakenError, run_experiment

    if resume and overwrite:
        raise ValueError("--resume and --overwrite exclude each other: give one of them")
    try:
        with _display(quiet) as on_progress:
            result = run_experiment(config, folder, resume=resume, overwrite=overwrite, on_progress=on_progress)
    except FolderTakenError as error:
        choices = f"take another with --out, replace it with --overwrite, or continue it: run --resume --out {folder}"
        raise ValueError(f"{error.folder} holds another run: {choices}") from error
    except KeyboardInterrupt:
        import typer

        if not (folder / "zarr.json").exists():
            raise
        message = (
            f"interrupted; everything so far is in {folder}: continue with 'kernelgrowth run --resume --out {folder}', "
            f"or look at it with 'kernelgrowth report {folder}'"
        )
        raise typer.Exit(_fail(message, _INTERRUPTED)) from None
    _say_result(result)


def _draw(name: str, folder: Path, *, quiet: bool, **options: Any) -> None:
    # Each process of a sweep has one processor.
    _set_blas_threads("1")
    from kernelgrowth.experiments.figures import draw_figure, figure_named

    chosen = figure_named(name)
    try:
        with _counting(quiet) as on_progress:
            drawn = draw_figure(chosen, folder, on_progress=on_progress, **options)
    except KeyboardInterrupt:
        import typer

        message = f"interrupted; finished runs are in {folder}: the same command goes on from there"
        raise typer.Exit(_fail(message, _INTERRUPTED)) from None
    for finding, value in drawn.findings.items():
        print(f"{finding:<32} {value:.4g}")
    print(f"Picture: {drawn.picture}")


def _sweep(config: Path, out: Path | None, *, retries: int | None, quiet: bool, **options: Any) -> None:
    import dataclasses

    from kernelgrowth.experiments import load_sweep, sweep_experiments

    sweep = load_sweep(config)
    if retries is not None:
        sweep = dataclasses.replace(sweep, retries=retries)
    folder = out or Path("runs") / config.stem
    try:
        with _counting(quiet) as show:
            result = sweep_experiments(
                sweep, folder, on_progress=show and (lambda at: show(at.done + at.failed, at.total)), **options
            )
    except KeyboardInterrupt:
        import typer

        message = f"interrupted; finished runs are in {folder}: the same command goes on from there"
        raise typer.Exit(_fail(message, _INTERRUPTED)) from None
    print(f"{len(result.rows) - len(result.failed)} of {len(result.rows)} runs, table: {folder / 'table.csv'}")
    if result.report is not None:
        print(f"Report: {result.report}")
    if result.failed:
        import typer

        for name, path in result.failed.items():
            print(f"{name} failed: {path.read_text(encoding='utf-8').splitlines()[-2]} (see {path})", file=sys.stderr)
        raise typer.Exit(_BAD_INPUT)


@contextmanager
def _counting(quiet: bool) -> "Iterator[Callable[[int, int], None] | None]":
    """Yield what draws how many runs are done on stderr, None where nobody looks."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield None
        return
    with Progress(TextColumn("runs"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console) as bar:
        task = bar.add_task("runs", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _watch(folder: Path, every: float) -> None:
    from rich.console import Console
    from rich.live import Live

    console = Console()
    table, running = _table_of_runs(folder)
    if not (running and console.is_terminal):
        console.print(table)
        return
    with Live(table, console=console, auto_refresh=False) as live:
        while running:
            time.sleep(every)
            table, running = _table_of_runs(folder)
            live.update(table, refresh=True)


def _table_of_runs(folder: Path) -> tuple[Any, bool]:
    """Return what to show of the runs in a folder, and whether one of them goes on."""
    from rich.table import Table

    from kernelgrowth.tracking import load_runs

    runs = load_runs([folder, os.path.join(glob.escape(str(folder)), "**")])
    table = Table(box=None, pad_edge=False)
    for name in ("run", "status", "step"):
        table.add_column(name, justify="right" if name == "step" else "left")
    for title in _WATCHED.values():
        table.add_column(title, justify="right")
    for path, history in runs.items():
        newest = history.newest() if len(history.steps) else {}
        numbers = [f"{newest[name]:.3g}" if name in newest else "" for name in _WATCHED]
        name = os.path.relpath(path, folder) if Path(path) != folder else path
        table.add_row(name, history.status, str(newest.get("step", "")), *numbers)
    return table, any(history.status == "running" for history in runs.values())


def _say_result(result: "ExperimentResult") -> None:
    print(result.summary["verdict_sentence"])
    if result.report is not None:
        print(f"Report: {result.report}")
    else:
        print(f"Results: {result.folder}")


@contextmanager
def _display(quiet: bool) -> "Iterator[Callable[[Progress], None] | None]":
    """Yield what draws a live line on stderr, None where nobody looks."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[numbers]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("preparing", total=None, numbers="")

        def show(progress: Any) -> None:
            bar.update(
                task,
                description="training" if progress.step < progress.steps else "reporting",
                total=progress.steps,
                completed=progress.step,
                numbers=f"loss {progress.loss:.2e}  ‖K‖ {progress.kernel_norm:.2e}  A {progress.alignment:.3f}",
            )

        yield show


@contextmanager
def _one_line_errors(debug: bool) -> Iterator[None]:
    """Turn an exception into one line on stderr and an exit status, unless `debug`."""
    import typer

    try:
        yield
    except typer.Exit:
        raise
    except KeyboardInterrupt:
        raise typer.Exit(_fail("interrupted", _INTERRUPTED)) from None
    except BrokenPipeError:
        # Whoever read our output has seen enough; what is still buffered must not be tried again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(0) from None
    except Exception as error:
        if debug:
            raise
        from kernelgrowth._backend.errors import BackendError, DivergedError, RunFolderError

        bad_input = (ValueError, TypeError, OSError, ImportError, MemoryError)
        if isinstance(error, (*bad_input, BackendError, DivergedError, RunFolderError)):
            raise typer.Exit(_fail(str(error), _BAD_INPUT)) from None
        text = f"{type(error).__name__}: {error} (an error of kernelgrowth's own; --debug shows where)"
        raise typer.Exit(_fail(text, _OWN_ERROR)) from None


def _fail(message: str, status: int) -> int:
    """Say one line on stderr and return the exit status."""
    print(f"kernelgrowth: {' '.join(message.split())}", file=sys.stderr)
    return status


def _information() -> list[tuple[str, str]]:
    import platform

    from kernelgrowth._backend.native import info

    native = info()
    cuda: dict[str, Any] = native["cuda"]
    rows = [
        ("kernelgrowth", _version("kernelgrowth") or "unknown"),
        ("python", f"{platform.python_version()} ({platform.system()}, {platform.machine()})"),
        ("numpy", _version("numpy") or "not installed"),
        ("scipy", _version("scipy") or "not installed"),
        ("ISA", f"{native['isa']} (available: {', '.join(native['available_isas'])})"),
        ("threads", str(native["threads"])),
        ("CUDA", f"compiled for {cuda['architectures']}" if cuda["built"] else "not compiled"),
    ]
    devices = [_device(device) for device in cuda["devices"]]
    rows += [("GPU", text) for text in devices] or [("GPU", f"none ({cuda['message']})" if cuda["message"] else "none")]
    return rows + [(name, _version(name) or "not installed") for name in _OPTIONAL]


def _device(device: Any) -> str:
    return ", ".join(f"{key} {value}" for key, value in device.items()) if isinstance(device, dict) else str(device)


def _version(package: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    sys.exit(main())
