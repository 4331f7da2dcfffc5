"""Which early signal foretells the final Uni of a region, and what the default search costs and chooses.

python benchmarks/studies/signal_study.py WORK run                      # every region of the demo's task to the end
python benchmarks/studies/signal_study.py WORK search TASK:SEED:ROWS    # the default search; TASK: sig, e2e, banking77
python benchmarks/studies/signal_study.py WORK summary --json FILE

The task is the demo's (sig codes, 400 rows, 1.5 epochs, anchor on, learning rate 6e-4 for up and down of a quarter of
the layers, others by size). `run` first grafts: it trains everything for ten steps, then keeps only a region's tensors,
or puts only them back to the base, and measures the signal by forward passes. Then it trains each region to the end and
measures the signal at 1/8, 1/2 and 1, and Uni at 1. ROWS 0 takes all rows. DATA: a folder with speciality/TASK/*.jsonl
and versatility/GROUP/*.jsonl, of which the first 30 rows are valid (60 of alpaca).
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from cofitune_fast.commands.setup import make_search, make_workbench, trial_setup
from cofitune_fast.config import Config, load_config
from cofitune_fast.demo.settings import demo_config, demo_model
from cofitune_fast.files import write_text
from cofitune_fast.json_text import read_json, write_json
from cofitune_fast.regions import Region
from cofitune_fast.search import Journal, node_rate
from cofitune_fast.training import TrainOptions
from cofitune_fast.trials import TrialSetup, Workbench, run_job

sys.path.insert(0, str(Path(__file__).parents[1]))
from provenance import save
from studies.search_study import rank_correlation

QUARTERS = ("0%-25%", "25%-50%", "50%-75%", "75%-100%")
WIDE = ("ffn@40%-75%", "ffn@50%-100%", "ffn@25%-100%", "all@25%-100%", "full")
REGIONS = (*WIDE, *(f"{roles}@{layers}" for roles in ("attn.q+attn.k+attn.v", "ffn.up+ffn.down")
                    for layers in ("0%-50%", "25%-75%", "50%-100%", *QUARTERS)))
RUNGS = (0.125, 0.5, 1.0)
GRAFT = {"learning_rate": 2e-4, "max_steps": 10, "save_strategy": "no"}


def settings_of(task: str, work: Path, seed: int, rows: int, data: Path | None = None) -> Config:
    changes: dict[str, Any] = {"output": str(work), "training.seed": seed, "training.data_seed": seed}
    if rows:
        changes["data.limit"] = rows
    if task == "sig":
        return demo_config({"training.learning_rate": 6e-4, **changes})
    speciality = data / "speciality" / task
    return load_config(None, {
        "model.path": str(demo_model()), "data.max_length": 256, "data.limit": 600,
        **{f"data.{part}": str(speciality / f"{part}.jsonl") for part in ("train", "valid", "test")},
        **{f"versatility.{part}": str(suite_part(data, work.parent, part)) for part in ("valid", "test")},
        "training": {"learning_rate": 4e-4, "num_train_epochs": 1 if task == "e2e" else 2,
                     "per_device_train_batch_size": 8, "weight_decay": 0.1},
        "run": {"full_sft_training": {"learning_rate": 1e-4}}, **changes,
    })


def suite_part(data: Path, work: Path, part: str) -> Path:
    """Rows of the versatility files for one part, those of valid first."""
    folder = work / "suite" / part
    for file in sorted((data / "versatility").glob("*/*.jsonl")):
        if file.stem != "ifeval":
            count = 60 if file.stem == "alpaca" else 30
            start = 0 if part == "valid" else count
            lines = file.read_text(encoding="utf-8").splitlines(keepends=True)[start : start + count]
            write_text(folder / file.parent.name / file.name, "".join(lines))
    return folder


def run(work: Path) -> None:
    settings = settings_of("sig", work, 1, 0)
    settings.training["num_train_epochs"] = 1.5
    bench = make_workbench(settings)
    setup = trial_setup(settings, work)
    reference = Region.parse("ffn.up+ffn.down@all").count(bench.model) // 4
    if not (work / "graft.json").is_file():
        write_json(work / "graft.json", graft(bench, setup))
    for text in REGIONS:
        file = work / f"{text.replace('%', '').replace('@', '_')}.json"
        if not file.is_file():
            rate = node_rate(setup.training["learning_rate"], Region.parse(text).count(bench.model), reference)
            write_json(file, to_the_end(bench, setup, text, rate))


def to_the_end(bench: Workbench, setup: TrialSetup, text: str, rate: float) -> dict[str, Any]:
    name = text.replace("%", "").replace("@", "_").replace("+", "-")
    shutil.rmtree(setup.node_folder(name), ignore_errors=True)  # a rung of an interrupted call cannot be measured again
    rungs: dict[str, Any] = {}
    for begin, end in zip((0.0, *RUNGS), RUNGS, strict=False):
        measures = ["signal", "uni"] if end == 1.0 else ["signal"]
        found = run_job(bench, setup, {"id": name, "region": text, "split": "valid", "measure": measures, "seed": 1,
                                       "learning_rate": rate, "begin": begin, "end": end, "last": end == 1.0})
        rungs[f"{end:g}"] = {**found["scores"], "seconds": found["cost"]["seconds"]}
        print(text, end, found["scores"], flush=True)
    shutil.rmtree(setup.node_folder(name), ignore_errors=True)
    return {"region": text, "rate": rate, "trained": Region.parse(text).count(bench.model), "rungs": rungs}


def graft(bench: Workbench, setup: TrialSetup) -> dict[str, Any]:
    """Signals after everything was trained for a few steps, of each region's tensors alone and of all the others."""
    full, regions = Region.full(), [text for text in REGIONS if text != "full"]
    anchor = bench.anchor(setup.anchor)
    bench.base_states("valid", setup.drift_rows)
    start = time.perf_counter()
    with bench.trial(full) as base, tempfile.TemporaryDirectory() as folder:
        bench.train(full, folder, {**setup.training, **GRAFT}, TrainOptions(anchor=anchor, memory=setup.memory))
        seconds, trained = time.perf_counter() - start, {name: p.clone() for name, p in bench.model.named_parameters()}
        found = {}
        for text in regions:
            names = {name for name, _ in Region.parse(text).parameters(bench.model)}
            for mode in ("alone", "back"):
                with torch.no_grad():
                    for name, parameter in bench.model.named_parameters():
                        parameter.copy_((trained if (name in names) == (mode == "alone") else base)[name])
                found.setdefault(text, {})[mode] = bench.signal("valid", setup.drift_rows).value
    return {"training_seconds": seconds, "seconds": time.perf_counter() - start, "regions": found}


def search(work: Path, task: str, seed: int, rows: int, data: Path | None) -> None:
    """The default search, with an empty prefix cache and the anchor's texts at hand."""
    folder = work / f"search-{task}-{seed}-{rows}"
    settings = settings_of(task, folder, seed, rows, data)
    with tempfile.TemporaryDirectory() as cache:
        os.environ["COFITUNE_PREFIX_CACHE"] = cache
        bench = make_workbench(settings)
        bench.anchor(settings.anchor)
        made, start = make_search(settings, bench, folder), time.perf_counter()
        with Journal(folder, made.identity()) as journal:
            result = made.run(journal, finish=False)
    nodes = [{"region": node.region, "learning_rate": node.learning_rate, **node.scores} for node in result.nodes]
    write_json(folder / "result.json", {
        "task": task, "seed": seed, "rows": rows or len(bench.train_rows), "seconds": time.perf_counter() - start,
        "full_sft": result.cost["full_sft"], "chosen": result.chosen.region, "sentence": result.choice.sentence,
        "nodes": nodes,
    })
    print(f"{folder.name}: {result.cost['full_sft']:.2f} full fine-tunings. {result.choice.sentence}", flush=True)


def summary(work: Path) -> list[dict[str, Any]]:
    found = [read_json(file, "region") for file in sorted(work.glob("*_*.json"))] + [
        read_json(file, "region") for file in work.glob("full.json")]
    grafts = read_json(work / "graft.json", "grafts")
    rows = []
    for one in found:
        rungs = one["rungs"]
        rows.append({"region": one["region"], "trained": one["trained"], "rate": one["rate"],
                     **{f"signal at {end}": rung["signal"] for end, rung in rungs.items()},
                     **{f"nll at {end}": rung["nll"] for end, rung in rungs.items()},
                     **{key: rungs["1"][key] for key in ("spec", "vers", "uni", "uni_se")},
                     **{f"graft, {mode}": value * (1 if mode == "alone" else -1)
                        for mode, value in grafts["regions"].get(one["region"], {}).items()}})
    rows.sort(key=lambda row: -row["uni"])
    signals = ("trained", "signal at 0.125", "nll at 0.125", "signal at 0.5", "graft, alone", "graft, back")
    correlations = {}
    for signal in signals:
        there = [row for row in rows if signal in row]
        sign = -1 if signal.startswith("nll") else 1
        correlations[signal] = {"regions": len(there), **{
            f"with {final}": rank_correlation([sign * row[signal] for row in there], [row[final] for row in there])
            for final in ("uni", "spec", "signal at 1")}}
    sizes = [row for row in rows if row["region"] in {*WIDE, "ffn.up+ffn.down@50%-75%"}]
    correlations["signal at 0.125, among sizes"] = {"regions": len(sizes), "with uni": rank_correlation(
        [row["signal at 0.125"] for row in sizes], [row["uni"] for row in sizes])}
    searches = [read_json(file, "search") for file in sorted(work.glob("search-*/result.json"))]
    searches += [{**read_json(file, "search"), "unlimited": True} for file in sorted(work.glob("unlimited-*.json"))]
    return [{"kind": "signals", "rank_correlation": correlations, "regions": rows,
             "graft_seconds": {key: grafts[key] for key in ("training_seconds", "seconds") if key in grafts}},
            *({"kind": "search", **one} for one in searches)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("action", choices=("run", "search", "summary"))
    parser.add_argument("searches", nargs="*")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.action == "run":
        run(arguments.work)
    for text in arguments.searches:
        task, seed, rows = text.split(":")
        search(arguments.work, task, int(seed), int(rows), arguments.data)
    if arguments.action == "summary":
        content = summary(arguments.work)
        for name, values in content[0]["rank_correlation"].items():
            print(name, values)
        save(arguments.json, "signal_study", content)


if __name__ == "__main__":
    main()
