"""The command line: `cofitune COMMAND --config run.yaml --section.key value`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

from .errors import CofituneError

try:
    import typer
    from rich.console import Console
except ImportError as _error:
    raise SystemExit(f"cofitune: the command line needs {_error.name}: pip install 'cofitune-fast[cli]'.") from None

from . import __version__
from .config import Config, load_config, parse_overrides

app = typer.Typer(
    name="cofitune", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    help="Fine-tune the few modules that matter: search them, train them, keep the model's versatility.",
    epilog="Every configuration key can be given as --section.key value, e.g. --training.learning_rate 1e-4.",
)
_OPEN = {"allow_extra_args": True, "ignore_unknown_options": True}
ConfigFile = Annotated[Path | None, typer.Option("--config", "-c", help="A YAML file with the run's settings.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]
# Of the processes that torchrun starts the first one speaks; the others only say what went wrong with them alone.
_SILENT = int(os.environ.get("WORLD_SIZE", "1")) > 1 and os.environ.get("RANK", "0") != "0"
console = Console(stderr=True, quiet=_SILENT)


def main() -> None:
    """Entry point of the console script."""
    app()


def _command(function: Callable[..., None]) -> Callable[..., None]:
    """What all commands share: a CofituneError is one line and status 2, Ctrl-C says how to go on, and the libraries'
    chatter stays off the screen."""
    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> None:
        import logging

        from transformers.utils import logging as transformers_logging

        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # transformers imports it wherever it is installed
        try:
            function(*args, **kwargs)
            _leave_the_others()
        except CofituneError as error:
            _say(error)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            console.print("\ncofitune: stopped. What is finished is kept; the same command goes on from there.")
            raise typer.Exit(130) from None

    return run


def _leave_the_others() -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from .models.sharded import leave

        leave()


def _say(error: CofituneError) -> None:
    from .models.sharded import rank, world_size

    if _SILENT and world_size() == 1:
        return  # before the ranks join, each meets the same error
    who = f"cofitune, rank {rank()}: " if _SILENT else "cofitune: "
    Console(stderr=True).print(f"{who}{error}", style="red", markup=False, highlight=False, soft_wrap=True)


def _config(context: typer.Context, file: Path | None) -> Config:
    return load_config(file, parse_overrides(context.args))


def _emit(value: Any, as_json: bool, show: Callable[[], None]) -> None:
    if _SILENT:
        return
    if as_json:
        print(json.dumps(value, ensure_ascii=False))
    else:
        show()


@app.command(context_settings=_OPEN)
@_command
def demo(context: typer.Context, as_json: AsJson = False) -> None:
    """Run the whole pipeline on SmolLM2-135M-Instruct with the embedded data."""
    from .demo.settings import demo_config

    _compare(demo_config(parse_overrides(context.args)), as_json)


@app.command(context_settings=_OPEN)
@_command
def compare(
    context: typer.Context,
    config: ConfigFile = None,
    as_json: AsJson = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the runs of compare.methods; train none.")] = False,
    so_far: Annotated[bool, typer.Option("--so-far", help="Compare the runs that there are; train none.")] = False,
) -> None:
    """Search (unless `region` is given), train plainly and with anchor or mask, contrast with full SFT, report.

    With compare.methods: methods x tasks x learning rates x seeds, resumed in the same output folder."""
    settings = _config(context, config)
    if settings.compare.methods:
        _compare_methods(settings, as_json, dry_run, so_far)
    elif dry_run or so_far:
        raise CofituneError("--dry-run and --so-far are for the runs of compare.methods, and there are none; for a "
                            "search use `cofitune search --dry-run`.")
    else:
        _compare(settings, as_json)


def _compare_methods(settings: Config, as_json: bool, dry_run: bool, so_far: bool) -> None:
    from .compare_command import open_comparison, plan_table
    from .display import PlainDisplay
    from .report import comparison_table, write_report

    display = PlainDisplay(console)
    display.stage(f"Loading {_needed(settings, 'model').path}")
    elsewhere = settings.compare.executor != "in-process"
    with open_comparison(settings, _needed(settings, "output"), display,
                         lambda: _workbench(settings, device="cpu" if elsewhere else None),
                         dry_run=dry_run) as comparison:
        if dry_run:
            rows = comparison.plan()
            _emit({"runs": rows}, as_json, lambda: print(plan_table(rows)))
            return
        content = comparison.run(make=not so_far)
    paths = write_report(Path(settings.output) / "comparison.json", settings.output)

    def show() -> None:
        out = Console()
        out.print(comparison_table(content))
        for path in (paths["html"], *paths["png"], paths["json"]):
            out.print(str(path), highlight=False, soft_wrap=True)

    _emit(content, as_json, show)


def _compare(config: Config, as_json: bool) -> None:
    from .display import make_display
    from .report import methods_table, write_report

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise CofituneError("compare trains whole models too and runs in one process; under torchrun use search and "
                            "train.")
    display = make_display(console)
    with display.running(), _pipeline(config, display) as pipeline:
        report = pipeline.run(config.title)
    paths = write_report(pipeline.output / "report.json", pipeline.output)

    def show() -> None:
        out = Console()
        out.print(methods_table(report))
        for check in report["checks"]:
            out.print(f"{'✓' if check['passed'] else '✗'} {check['name']}: {check['detail']}", highlight=False)
        for path in (paths["html"], *paths["png"], pipeline.output / "report.json"):
            out.print(str(path), highlight=False, soft_wrap=True)

    _emit(report, as_json, show)


@app.command(context_settings=_OPEN)
@_command
def search(
    context: typer.Context,
    config: ConfigFile = None,
    as_json: AsJson = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the space, sizes and costs; train nothing.")] = False,
    budget: Annotated[str | None, typer.Option(help="End after such as '2 full-sft', '1.5h', '3M tokens'.")] = None,
    executor: Annotated[str | None, typer.Option(help="in-process, processes (one per GPU) or ray.")] = None,
    ray_address: Annotated[str | None, typer.Option(help="A Ray cluster: auto, or host:port.")] = None,
) -> None:
    """Search the region with the best Uni on the validation part; resumes in the same output folder.

    With --json every event is a line of JSON on standard output, and the last line the result."""
    from .display import make_display, scores_text, show_space
    from .search_command import preview_search

    given = {"budget": budget, "executor": executor, "ray_address": ray_address}
    settings = load_config(config, {**parse_overrides(context.args),
                                    **{f"search.{key}": value for key, value in given.items() if value is not None}})
    settings.region = None
    if dry_run:
        content = preview_search(settings, _workbench(settings))
        _emit(content, as_json, lambda: Console().print(show_space(content["nodes"], content["totals"])))
        return
    display = make_display(console, as_json)
    with display.running(), _pipeline(settings, display, search_alone=True) as pipeline:
        if pipeline is None:
            return  # this rank has followed the first one
        result = pipeline.search(settings.title)

    def show() -> None:
        print(f"{result.chosen.region}  {scores_text(result.chosen.scores)}\n{result.choice.sentence}")
        print(f"The tree, the pictures and all nodes: cofitune report {pipeline.output}")

    _emit(result.to_dict(), as_json, show)


@app.command(context_settings=_OPEN)
@_command
def importance(context: typer.Context, config: ConfigFile = None, as_json: AsJson = False) -> None:
    """Measure the importance of heads and FFN neurons; writes importance.safetensors."""
    from .files import writable_folder
    from .regions import Region

    settings = _config(context, config)
    path = writable_folder(_needed(settings, "output")) / "importance.safetensors"
    bench = _workbench(settings)
    region = Region.parse(settings.region) if settings.region else None
    measured = bench.importance(region, **settings.importance.arguments())
    measured.save(path)
    content = {"path": str(path), "samples": measured.samples, "layers": list(measured.layers)}
    _emit(content, as_json, lambda: print(f"{path}: {measured.samples} samples, {len(measured.layers)} layers"))


@app.command(context_settings=_OPEN)
@_command
def train(
    context: typer.Context,
    config: ConfigFile = None,
    as_json: AsJson = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the delta of an earlier run.")] = False,
) -> None:
    """Train one region with its soft mask; writes OUTPUT/delta."""
    from .display import duration
    from .train_command import train_delta

    settings = _config(context, config)
    result = train_delta(settings, _needed(settings, "output"), _workbench, overwrite=overwrite, console=console)

    def show() -> None:
        print(f"{result['delta']}: {result['region']}, {result['trained_parameters']:,} parameters, loss "
              f"{result['loss']:.3f}, {duration(result['seconds'])}; "
              f"{result['frozen_tensors']} frozen tensors unchanged")

    _emit(result, as_json, show)
    if result["interrupted"]:
        console.print(f"Stopped after step {result['steps']}; go on with the same command and "
                      "--training.resume_from_checkpoint true.")
        raise typer.Exit(130)


@app.command(context_settings=_OPEN)
@_command
def evaluate(
    context: typer.Context,
    config: ConfigFile = None,
    as_json: AsJson = False,
    split: Annotated[str, typer.Option(help="valid or test")] = "test",
    limit: Annotated[int | None, typer.Option(help="Score the speciality's first rows only.")] = None,
    generate: Annotated[bool, typer.Option("--generate", help="Also let the model write: the speciality's responses, "
                                           "and IFEval's where the versatility tasks hold it.")] = False,
    max_new_tokens: Annotated[int | None, typer.Option(help="Longest response for --generate and --harness.")] = None,
    harness: Annotated[str | None, typer.Option(help="Also lm-eval's scores: its task names or local files, with "
                                                "commas between.")] = None,
) -> None:
    """Score the model, with --delta FOLDER the fine-tuned one, and then its drift: the KL to the base, in nats per
    token of the instruction files' responses. Without versatility tasks only the speciality.

    With model.quantize the delta's region stays in full precision, without a delta the `region`, if one is given."""
    from .display import scores_text
    from .regions import load_delta, read_delta
    from .scoring import generation_score, harness_scores, needs_packages, read_task, score_task, tasks_to_write

    if split not in ("valid", "test"):
        raise CofituneError(f"--split is {split!r}; choose valid or test.")
    settings = _config(context, config)
    path, versatility = getattr(settings.data, split), getattr(settings.versatility, split)
    if versatility and limit is not None:
        raise CofituneError("--limit is for the speciality alone; with versatility tasks use versatility.limit.")
    if path is None:
        raise CofituneError(f"Nothing to score: set data.{split}, and versatility.{split} for all of it.")
    to_write = tasks_to_write(path, versatility, limit=limit, versatility_limit=settings.versatility.limit) \
        if generate else []
    if harness:
        needs_packages("--harness", "lm_eval")
    bench = _workbench(settings, read_delta(settings.delta).region if settings.delta else None)
    base = None
    if settings.delta:
        base = bench.base_states(split, settings.versatility.drift_rows) if versatility else None
        load_delta(bench.model, settings.delta, base_fingerprint=bench.base.fingerprint)
    content, lines = {}, []
    if versatility:
        content = replace(bench.score(split), drift=base.drift(bench.model) if base else None).to_dict()
        lines.append(scores_text(content))
    else:
        score = score_task(bench.model, bench.tokenizer, read_task(path, limit=limit, metric=settings.data.metric))
        content["tasks"] = {"speciality": {path: score.to_dict()}}
    if to_write:
        content["generation"] = {
            task.name: generation_score(bench.model, bench.tokenizer, task, max_new_tokens=max_new_tokens).to_dict()
            for task in to_write
        }
    if harness:
        content["harness"] = harness_scores(
            bench.model, bench.tokenizer, harness.split(","), limit=limit or settings.versatility.limit,
            max_new_tokens=max_new_tokens,
        )
    drift = {"drift": {"from the base": content["drift"]}} if base else {}
    lines += _task_lines({**content["tasks"], **drift, "generation": content.get("generation", {})})
    for name, figures in content.get("harness", {}).items():
        lines.append(f"  {'lm-eval':12}{name:32}" + "  ".join(f"{key} {value:.4g}" for key, value in figures.items()))
    _emit(content, as_json, lambda: print(*lines, sep="\n"))


@app.command(context_settings=_OPEN)
@_command
def merge(context: typer.Context, config: ConfigFile = None, as_json: AsJson = False) -> None:
    """Write base + delta as an ordinary model folder: --model BASE --delta FOLDER --output FOLDER."""
    from .models import load_model
    from .regions import merge as merge_delta
    from .regions import read_delta

    settings = _config(context, config)
    delta = _needed(settings, "delta")
    dtype = read_delta(delta).base.dtype
    section = _needed(settings, "model")
    base = load_model(section.path, gguf_file=section.gguf_file, dtype=dtype, device="cpu")
    out = merge_delta(base, delta, _needed(settings, "output"))
    _emit({"path": str(out)}, as_json, lambda: print(out))


@app.command(context_settings=_OPEN)
@_command
def analyze(
    context: typer.Context,
    config: ConfigFile = None,
    as_json: AsJson = False,
    delta: Annotated[list[Path] | None, typer.Option(help="A delta or a fine-tuned model; may be repeated.")] = None,
    limit: Annotated[int | None, typer.Option(min=2, help="Rows of data.test that are read (default 100).")] = None,
) -> None:
    """Show where a speciality enters: change per layer and role, logit lens, attention against FFN."""
    from .analyze_command import write_analysis
    from .report import write_analysis_page

    settings = _config(context, config)
    _needed(settings, "model")
    deltas = delta or ([settings.delta] if settings.delta else [])
    path = write_analysis(settings, deltas, _needed(settings, "output"), limit=limit,
                          tell=lambda text: console.print(text, highlight=False))
    _emit_analysis(write_analysis_page(path, path.parent), as_json)


def _emit_analysis(paths: dict[str, Any], as_json: bool) -> None:
    content = {"json": str(paths["json"]), "html": str(paths["html"]), "png": [str(path) for path in paths["png"]]}
    _emit(content, as_json, lambda: print(*paths["sentences"], paths["html"], sep="\n"))


@app.command()
@_command
def report(
    folder: Annotated[Path, typer.Argument(help="A folder with report, search, comparison or analysis .json.")],
    as_json: AsJson = False,
) -> None:
    """Make the page and the pictures of a finished run anew."""
    from .report import comparison_table, methods_table, read_report, write_analysis_page, write_report

    others = (folder / name for name in ("report.json", "search.json", "comparison.json"))
    if (folder / "analysis.json").is_file() and not any(map(Path.is_file, others)):
        _emit_analysis(write_analysis_page(folder, folder), as_json)
        return
    content = read_report(folder)
    paths = write_report(content, folder)

    def show() -> None:
        if "runs" in content:
            Console().print(comparison_table(content))
        elif content["methods"]:
            Console().print(methods_table(content))
        print(paths["html"])

    _emit({"html": str(paths["html"]), "png": [str(path) for path in paths["png"]]}, as_json, show)


@app.command(context_settings=_OPEN)
@_command
def plan(
    context: typer.Context,
    config: ConfigFile = None,
    as_json: AsJson = False,
    budget: Annotated[str | None, typer.Option("--fit", help="Find settings within a budget such as 24GiB.")] = None,
) -> None:
    """Predict memory and time of a training step from the model's configuration; no weights are loaded."""
    from .plan_command import plan_run

    content, text = plan_run(_config(context, config), budget)
    _emit(content, as_json, lambda: print(text))


@app.command()
@_command
def env(as_json: AsJson = False) -> None:
    """Show the machine, the versions, and which backend each op uses."""
    from .environment import environment
    from .ops import backends, native

    extras = {}
    for name in ("accelerate", "typer", "rich", "pydantic", "matplotlib", "jinja2", "gguf", "bitsandbytes",
                 "safetensors"):
        try:
            extras[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            extras[name] = None
    content = {"environment": environment(), "ops": backends(), "native": native.load_error() or "available",
               "packages": extras}

    def show() -> None:
        for key, value in content["environment"].items():
            print(f"{key:15}{value if value is not None else '-'}")
        print(f"{'native kernels':15}{content['native']}")
        if native.load_error():
            print(f"{'':15}without them {native.COST_WITHOUT}")
        for op, table in content["ops"].items():
            autos = {"auto": "on CPU tensors", "auto on cuda": "on CUDA tensors"}
            chosen = ", ".join(f"{table[key]} {where}" for key, where in autos.items() if key in table)
            print(f"\n{op} (auto: {chosen})")
            for backend, state in table.items():
                if backend not in autos:
                    print(f"  {backend:12}{state}")
        print()
        for name, version in extras.items():
            print(f"{name:15}{version or 'not installed'}")

    _emit(content, as_json, show)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(__version__)
        raise typer.Exit()


# From the configuration to the rooms ---------------------------------------------------------------------------------


def _needed(settings: Config, key: str) -> Any:
    value = getattr(settings, key)
    if value is None:
        raise CofituneError(f"This command needs {key}: give --{key} VALUE or set it in the YAML.")
    return value


def _workbench(settings: Config, region: str | None = None, device: str | None = None) -> Any:
    """The workbench of a run; with model.quantize all but `region` (None: the run's, if any) is quantised. device: goes
    over model.device."""
    from .models import load_model
    from .regions import Region
    from .search_command import trial_data
    from .trials import Workbench

    section, region = _needed(settings, "model"), region or settings.region
    loaded = load_model(section.path, dtype=section.dtype, device=device or section.device, gguf_file=section.gguf_file,
                        attn_implementation=section.attn_implementation, quantize=section.quantize,
                        keep=Region.parse(region).modules if region else ())
    return Workbench(loaded, trial_data(settings))


def _pipeline(settings: Config, display: Any, *, search_alone: bool = False) -> Any:
    from .search_command import open_pipeline

    output, model = _needed(settings, "output"), _needed(settings, "model")
    display.stage(f"Loading {model.path}")
    # A driver that only hands out work needs the model's names and sizes; the GPUs belong to the workers.
    elsewhere = search_alone and settings.search.executor != "in-process"
    return open_pipeline(settings, output, display, lambda: _workbench(settings, device="cpu" if elsewhere else None),
                         follows=_SILENT)


def _task_lines(tasks: dict[str, dict[str, Any]]) -> list[str]:
    lines = []
    for group, scores in tasks.items():
        for name, score in scores.items():
            extra = "  ".join(f"{key} {value:.3f}" for key, value in score["metrics"].items() if key != score["metric"])
            lines.append(f"  {group:12}{name:32}{score['metric']} {score['value']:.3f} ± {score['se']:.3f}  {extra}")
    return lines


if __name__ == "__main__":
    main()
