"""Which method forgets least, on a real model: the sweeps behind docs/comparison.md and docs/anchor.md.

python benchmarks/studies/forgetting_study.py MODEL DATA WORK run TASK STUDY [--seeds 1 2 3] [--workers N] [--runs FILE]
python benchmarks/studies/forgetting_study.py MODEL DATA WORK summary TASK STUDY [--seeds 1 2 3] --json FILE
python benchmarks/studies/forgetting_study.py MODEL DATA WORK time TASK STUDY [--seeds 1 2 3] --json FILE    # alone
python benchmarks/studies/forgetting_study.py MODEL DATA WORK keep TASK --runs FILE

MODEL: a model folder or a GGUF file. DATA: a folder with speciality/{e2e,gsm8k,banking77}/{train,valid,test}.jsonl and
versatility/GROUP/*.jsonl of arc_easy, openbookqa (knowledge), lambada, piqa (reasoning) and alpaca (instruction). TASK:
e2e (400 training rows), gsm8k (200), banking77 (400) or sig (the demo's 400, which are in the package). The last two
are short: fewer rows of versatility are scored, and the drift from the base is. STUDY: a key of STUDIES. All studies
of a task share the folder WORK/TASK, and so their runs (a second model needs a second WORK); `run` goes on where it
stopped. `keep` writes all of a task's runs, items included, to FILE (JSON Lines, the folder's identity first), and `run
--runs FILE` begins with what is in it, so that a study goes on where WORK is lost. `time` trains each method on TIMED
rows, one method after the other and that once per seed, and gives seconds and the share of full SFT's.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from cofitune_fast.demo import data_folder
from cofitune_fast.files import write_text
from cofitune_fast.json_text import read_json

sys.path.insert(0, str(Path(__file__).parents[1]))
from provenance import save

# The first row of each versatility file, how many follow, and how many of alpaca.
PARTS = {"valid": (0, 30, 60), "test": (200, 60, 120)}
SHORT_PARTS = {"valid": (0, 10, 32), "test": (200, 20, 80)}
TASKS = {"e2e": {"limit": 400, "max_length": 256}, "gsm8k": {"limit": 200, "max_length": 384},
         "banking77": {"limit": 400, "max_length": 192}, "sig": {"limit": 400, "max_length": 192}}
SHORT = ("banking77", "sig")
# The rows of validation and test of each task; the rest is too much for two cores.
SCORED: dict[str, tuple[Iterable[int], Iterable[int]]] = {
    "e2e": (range(68), random.Random(0).sample(range(630), 120)), "gsm8k": (range(60), range(150)),
    "banking77": (range(100), range(200)), "sig": (range(80), range(160)),
}
TIMED = 120
FULL, LORA = [5e-5, 1e-4, 2e-4, 4e-4], [5e-4, 1e-3, 2e-3, 4e-3]
LOW = [1e-5, 3e-5, 1e-4, 2e-4]
MIDDLE, QUARTER, BROAD, WIDE = "ffn.up+ffn.down@50%-75%", "ffn@50%-75%", "ffn@40%-75%", "ffn@25%-75%"
UP, ACROSS = [4e-4, 8e-4, 1.6e-3], [4e-4, 6e-4, 1e-3]  # rates of the first region, and of the others


def anchored(name: str, region: str = MIDDLE, rates: list[float] = [8e-4], **anchor: Any) -> dict[str, Any]:  # noqa: B006
    return {"name": name, "method": "anchor", "region": region, "anchor": anchor, "learning_rates": rates}


def plain(name: str, method: str = "region", rates: list[float] = [8e-4], **fields: Any) -> dict[str, Any]:  # noqa: B006
    return {"name": name, "method": method, "region": MIDDLE, "learning_rates": rates, **fields}


STUDIES: dict[str, list[dict[str, Any]]] = {
    "main": [
        {"method": "full-sft", "learning_rates": FULL},
        {"method": "lora", "learning_rates": LORA},
        {"method": "region", "region": QUARTER, "learning_rates": ACROSS},
        anchored("anchor", QUARTER, ACROSS),
        anchored("anchor-broad", BROAD, ACROSS),
        anchored("anchor-wide", WIDE, ACROSS),
    ],
    "default": [anchored("default", BROAD, [4e-4]), {"method": "lora-anchor", "learning_rates": LORA[2:3]}],
    "lower rates": [  # for gsm8k, where the highest speciality lies there
        {"method": "full-sft", "learning_rates": FULL[:3]},
        {"method": "lora", "learning_rates": LORA[:3]},
        {"method": "region", "region": BROAD, "learning_rates": [4e-4]},
        anchored("anchor", QUARTER, [6e-4]),
        anchored("anchor-broad", BROAD, [2e-4, *ACROSS]),
        anchored("anchor-wide", WIDE, [4e-4]),
        {"method": "full-anchor", "learning_rates": [1e-4]},
    ],
    "best rates": [  # of gsm8k, for further seeds
        {"method": "full-sft", "learning_rates": FULL[1:2]}, anchored("anchor-broad", BROAD, ACROSS[:1]),
        {"method": "lora", "learning_rates": LORA[2:3]},
    ],
    "anchored baselines": [
        {"method": "full-anchor", "learning_rates": FULL[1:3]},
        {"method": "lora-anchor", "learning_rates": LORA[1:3]},
    ],
    "anchor": [
        anchored("4 texts of 96", rows=4, tokens=96), anchored("2 texts of 96", rows=2, tokens=96),
        anchored("1 text of 96", rows=1, tokens=96), anchored("2 texts of 48"), anchored("weight 4", weight=4.0),
        anchored("the task's prompts", prompts="task"),
    ],
    "regions": [
        anchored("up and down, 50-75 %", rates=UP), anchored("FFN, 50-75 %", QUARTER, ACROSS),
        anchored("all, 50-75 %", "all@50%-75%", [6e-4]),
        anchored("up and down, 50-100 %", "ffn.up+ffn.down@50%-100%", [6e-4]),
        anchored("up and down, 40-75 %", "ffn.up+ffn.down@40%-75%"),
        anchored("FFN, 40-75 %", BROAD, ACROSS), anchored("FFN, 25-75 %", WIDE, ACROSS),
        anchored("FFN, 40-75 %, 1 text", BROAD, ACROSS, rows=1),
    ],
    "masks": [
        anchored("anchor-wide", WIDE, ACROSS),
        {**anchored("rank mask on the update", WIDE, [8e-4]), "mask": {"mode": "update"}},
        {**anchored("the paper's mask", WIDE, [6e-4]), "mask": {"preset": "paper", "mode": "gradient"}},
    ],
    # What holds a region back without an anchor, beside what smaller rates do.
    "brakes": [
        plain("region", rates=[3e-4, 8e-4]),
        plain("rank mask on the update", "fine-update"),
        plain("the same by FFN output", "fine-update", mask={"preset": "rank-output"}),
        plain("the same of general rows", "fine-general"),
        plain("the same against the task's needs", "fine-update", mask={"importance": "contrast"}),
        plain("rank mask on the gradient", "fine-gradient"), plain("the paper's mask", "fine-paper"),
        plain("pull to the base", pull={"strength": 20.0}),
        plain("pull by importance", pull={"strength": 20.0, "units": "importance"}),
        {**anchored("anchor and pull", BROAD, [6e-4, 1e-3]), "pull": {"strength": 20.0}},
    ],
    "baselines": [
        {"method": "full-sft", "learning_rates": FULL}, {"method": "wise-ft", "learning_rates": FULL[1:]},
        {"method": "mix", "learning_rates": FULL[1:3]},
    ],
    # Is a pull, or the default, more than full SFT at half its best rate?
    "half rates": [
        {"method": "full-sft", "learning_rates": [2.5e-5]}, anchored("default", BROAD, ACROSS[:2]),
        {"method": "l2", "learning_rates": FULL[:1]},
    ],
    # What holds the steps back is tried at a higher rate first than what changes the loss or pulls.
    "other baselines": [
        {"method": "full-sft", "learning_rates": FULL[:2]}, {"method": "lora-anchor", "learning_rates": LORA[1:3]},
        *({"method": name, "learning_rates": FULL[:2]} for name in ("l2", "ewc", "dft", "v-softmask")),
        *({"method": name, "learning_rates": FULL[1:3]} for name in ("hft", "mofo", "bottom-frozen")),
        *({"method": name, "learning_rates": FULL[:2]} for name in ("eaft", "l1")),
        {"method": "lora-ffn", "learning_rates": LORA[1:3]},
    ],
    # For the short tasks, each study with more than the one before.
    "short middle": [{"method": "full-sft", "learning_rates": [1e-4]}, anchored("default", BROAD, [4e-4])],
    "short": [
        {"method": "full-sft", "learning_rates": LOW}, anchored("default", BROAD, [2e-4, 4e-4, 8e-4]),
        {"method": "lora", "learning_rates": [2e-4, 1e-3, 2e-3]},
        {"method": "full-anchor", "learning_rates": FULL[1:3]},
    ],
}
# Is the default region too small, or its rate too low?
STUDIES["short wide"] = [
    anchored("upper half", "ffn@50%-100%", [6e-4]), anchored("upper three quarters", "ffn@25%-100%", [5e-4]),
    anchored("default", BROAD, [4e-4, 8e-4]), {"method": "full-anchor", "learning_rates": FULL[2:3]},
    {"method": "full-sft", "learning_rates": FULL[1:3]},
]
# What the claim rests on: does a wide region with the anchor reach full SFT's speciality, and at what loss?
STUDIES["short main"] = [
    {"method": "full-sft", "learning_rates": FULL[1:]}, anchored("upper half", "ffn@50%-100%", [6e-4, 1e-3]),
    {"method": "lora", "learning_rates": LORA[1:3]}, {"method": "full-anchor", "learning_rates": FULL[2:3]},
]
STUDIES["short lean"] = [  # the rates that `short main` and the demo's study found best
    {"method": "full-sft", "learning_rates": FULL[2:]}, anchored("upper half", "ffn@50%-100%", [6e-4]),
    {"method": "lora", "learning_rates": LORA[2:3]},
]
STUDIES["upper half"] = [
    {"method": "full-sft", "learning_rates": FULL[1:2]}, anchored("upper half", "ffn@50%-100%", [6e-4]),
]
STUDIES["short baselines"] = [
    *STUDIES["short"], *({"method": name, "learning_rates": FULL[1:3]} for name in ("self-mix", "sft-kl")),
    {"method": "l2", "learning_rates": FULL[1:2]},
]


def cut(source: Path, target: Path, rows: Iterable[int]) -> None:
    lines = source.read_text(encoding="utf-8").splitlines()
    write_text(target, "".join(lines[row] + "\n" for row in rows if row < len(lines)))


def speciality(data: Path, task: str) -> Path:
    return data_folder() / "speciality" if task == "sig" else data / "speciality" / task


def prepare(data: Path, work: Path) -> None:
    """The parts of the data that are used, in WORK/data."""
    for folder, parts in ((work / "data", PARTS), (work / "data" / "short", SHORT_PARTS)):
        for part, (start, count, many) in parts.items():
            for file in sorted((data / "versatility").glob("*/*.jsonl")):
                if file.stem != "ifeval":
                    rows = range(start, start + (many if file.stem == "alpaca" else count))
                    cut(file, folder / part / file.parent.name / file.name, rows)
    cut(data / "versatility" / "instruction" / "alpaca.jsonl", work / "data" / "general.jsonl", range(400, 999))
    for task, scored in SCORED.items():
        for part, rows in zip(PARTS, scored, strict=True):
            cut(speciality(data, task) / f"{part}.jsonl", work / "data" / f"{task}_{part}.jsonl", rows)


def configuration(arguments: argparse.Namespace) -> dict[str, Any]:
    files, task = arguments.work.resolve() / "data", arguments.task
    short = task in SHORT
    suites = files / "short" if short else files
    return {
        "title": f"Which method forgets least: {arguments.study} on {task}",
        "model": str(arguments.model.resolve()),
        "data": {"max_length": 256},
        # The first runs of the other folders were made before the drift was measured.
        "versatility": {**{part: str(suites / part) for part in PARTS}, "drift_rows": 64 if short else 0},
        "training": {"num_train_epochs": 2, "per_device_train_batch_size": 8, "weight_decay": 0.1},
        "compare": {
            "tasks": {task: {
                "train": str((speciality(arguments.data, task) / "train.jsonl").resolve()),
                **{part: str(files / f"{task}_{part}.jsonl") for part in PARTS}, **TASKS[task],
            }},
            "general": str(files / "general.jsonl"), "seeds": arguments.seeds,
            "executor": "processes" if arguments.workers else "in-process", "workers": arguments.workers,
            "methods": STUDIES[arguments.study],
        },
        "output": str(arguments.work.resolve() / task),
    }


def run(arguments: argparse.Namespace, *options: str) -> int:
    file = arguments.work / f"{arguments.task}-{arguments.study}.yaml".replace(" ", "-")
    return compare(file, configuration(arguments), *options)


def compare(file: Path, content: dict[str, Any], *options: str, **environment: str) -> int:
    write_text(file, yaml.safe_dump(content, sort_keys=False))
    command = [sys.executable, "-m", "cofitune_fast.cli", "compare", "-c", str(file), *options]
    return subprocess.run(command, env={**os.environ, **environment}).returncode


def summary(arguments: argparse.Namespace) -> None:
    """What there is of a comparison, without per-item values; its page and pictures are left in the run's folder."""
    if run(arguments, "--so-far"):
        raise SystemExit(1)
    content = read_json(arguments.work / arguments.task / "comparison.json", "comparison")
    del content["command"]  # names folders
    save(arguments.json, f"forgetting_study {arguments.task} {arguments.study}", [content])


def keep(arguments: argparse.Namespace) -> None:
    folder = arguments.work / arguments.task
    files = [folder / "identity.json", *sorted((folder / "runs").glob("*.json"))]
    lines = [json.dumps(read_json(file, "run"), separators=(",", ":")) for file in files]
    write_text(arguments.runs, "".join(f"{line}\n" for line in lines))


def lay_out(arguments: argparse.Namespace) -> None:
    """The kept runs that WORK does not have. The comparison refuses those of another identity."""
    folder = arguments.work / arguments.task
    identity, *runs = arguments.runs.read_text(encoding="utf-8").splitlines()
    for path, line in [(folder / "identity.json", identity),
                       *((folder / "runs" / f"{json.loads(line)['id']}.json", line) for line in runs)]:
        if not path.exists():
            write_text(path, line + "\n")


def timing(arguments: argparse.Namespace) -> None:
    """Seconds of training by method, one entry per seed, and their median as a share of full SFT's. Every run begins
    with an empty prefix cache, as the first one on new data does."""
    content = configuration(arguments)
    content["versatility"]["limit"] = 2
    content["compare"]["tasks"][arguments.task]["limit"] = TIMED
    content["output"] += "-time"
    methods = {method.get("name", method["method"]): {**method, "learning_rates": [1e-4]}
               for method in [{"method": "full-sft"}, *content["compare"]["methods"]]}
    found: dict[str, list[float]] = {}
    for seed, name in itertools.product(arguments.seeds, methods):
        content["compare"].update(executor="in-process", workers=None, seeds=[seed], methods=[methods[name]])
        with tempfile.TemporaryDirectory() as folder:
            if compare(arguments.work / f"{arguments.task}-time.yaml", content, COFITUNE_PREFIX_CACHE=folder):
                raise SystemExit(1)
        run = read_json(Path(content["output"]) / "comparison.json", "comparison")["runs"][0]
        found.setdefault(name, []).append(run["cost"]["training_seconds"])
    whole = median(found["full-sft"])
    rows = [{"method": name, "seconds": times, "of_full_sft": median(times) / whole} for name, times in found.items()]
    save(arguments.json, f"forgetting_study {arguments.task} {arguments.study}: time", rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "data", "work"):
        parser.add_argument(name, type=Path)
    parser.add_argument("action", choices=("run", "summary", "time", "keep"))
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("study", choices=STUDIES, nargs="?")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--workers", type=int)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--runs", type=Path)
    arguments = parser.parse_args()
    needed = {"run": ["study"], "keep": ["runs"]}.get(arguments.action, ["study", "json"])
    if lacking := [name for name in needed if getattr(arguments, name) is None]:
        parser.error(f"{arguments.action} needs {' and '.join(lacking)}")
    if arguments.action == "keep":
        keep(arguments)
        return
    if arguments.action == "summary":
        summary(arguments)
        return
    prepare(arguments.data, arguments.work)
    if arguments.action == "time":
        timing(arguments)
        return
    if arguments.runs:
        lay_out(arguments)
    raise SystemExit(run(arguments))


if __name__ == "__main__":
    main()
