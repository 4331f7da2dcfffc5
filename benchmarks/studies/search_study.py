"""What a search costs, how often it chooses well, and which cheap signal foretells its answer, on a real model.

python benchmarks/studies/search_study.py MODEL DATA WORK run VARIANT...    # each a search in WORK/VARIANT; resumable
python benchmarks/studies/search_study.py MODEL DATA WORK priors VARIANT    # the priors of a finished variant's nodes
python benchmarks/studies/search_study.py MODEL DATA WORK summary [--json FILE]

MODEL: a model folder. DATA: a folder with speciality/NAME/{train,valid,test}.jsonl and versatility/GROUP/*.jsonl; of
each versatility file the first 30 rows make the validation part, the next 30 the test part.
Variants: `exhaustive-e2e` trains every node of the space in rungs and is what the others are judged by;
`racing-e2e` is the default search, `greedy-e2e` the paper's; `-seed2`, `-seed3`, `-half` and `-large` (half or four
times the rows), `-fixed` (one learning rate for all sizes) and `-gsm8k` instead of `-e2e` vary the default. `full-e2e`
(`full-gsm8k`, `full-e2e-large`) is one full fine-tuning.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from cofitune_fast.commands.setup import make_search, trial_data
from cofitune_fast.config import load_config
from cofitune_fast.files import write_text
from cofitune_fast.json_text import read_json, write_json
from cofitune_fast.models import load_model
from cofitune_fast.regions import Region
from cofitune_fast.scoring import SuiteScores, resampled_figures
from cofitune_fast.search import Journal, Search
from cofitune_fast.search.preview import lowest_layer
from cofitune_fast.search.uncertainty import Estimate, clearly_behind, ranked, tied_with_best
from cofitune_fast.trials import Workbench
from cofitune_fast.trials.priors import make_prior

sys.path.insert(0, str(Path(__file__).parents[1]))
from provenance import save

PER_TASK = 30
ROWS = {"e2e": 600, "gsm8k": 250}
RUNGS = [0.125, 0.5, 1.0]  # of the exhaustive search, to see what early scores foretell
# The paper's space but for single q, k, v projections, which keeps the exhaustive search below half an hour.
SPACE = [{"name": "broad range × module", "layers": ["0%-50%", "25%-75%", "50%-100%"],
          "roles": ["attn.q+attn.k+attn.v", "ffn.up+ffn.down"]},
         {"name": "narrow range", "layers": "halves"}, {"name": "projection", "roles": ["ffn.up", "ffn.down"]}]
PRIORS = ("gradient", "kl", "spectrum")


def configuration(model: str, data: Path, work: Path, variant: str) -> Any:
    name, task, *changes = variant.split("-")
    rows = ROWS[task] * 4 if "large" in changes else ROWS[task] // 2 if "half" in changes else ROWS[task]
    seed = next((int(change[4:]) for change in changes if change.startswith("seed")), 1)
    values = {
        "model.path": model, "output": str(work / variant), "data.max_length": 256, "data.limit": rows,
        **{f"data.{part}": str(data / "speciality" / task / f"{part}.jsonl") for part in ("train", "valid", "test")},
        **{f"versatility.{part}": str(work / "suite" / part) for part in ("valid", "test")},
        # The study had 4e-4 for up and down of a quarter; now the rate is that of the default region, twice as large.
        "training": {"learning_rate": 4e-4 / 2**0.5, "num_train_epochs": 1, "per_device_train_batch_size": 8,
                     "weight_decay": 0.1, "seed": seed, "data_seed": seed},
        "run": {"full_sft_training": {"learning_rate": 1e-4}},
        "anchor.weight": 0.0,  # regions alone, as in the paper
        "search.space": SPACE, "search.early": "uni", "search.budget_time": 2.0,
        "search.strategy": name if name != "full" else "greedy",
        "search.learning_rate": "fixed" if "fixed" in changes else "size",
    }
    if task == "gsm8k":
        values["data.valid"] = str(work / "suite" / "gsm8k_valid.jsonl")
    if name in ("exhaustive", "racing"):
        values["search.rungs"] = RUNGS
    return load_config(None, values)


def prepare(data: Path, work: Path) -> None:
    """Disjoint validation and test parts of the versatility files."""
    if (work / "suite").is_dir():
        return
    for group in ("knowledge", "reasoning", "instruction"):
        for file in sorted((data / "versatility" / group).glob("*.jsonl")):
            lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
            if "instruction_id_list" in json.loads(lines[0]):
                continue  # its answers must be generated
            for number, part in enumerate(("valid", "test")):
                chosen = lines[number * PER_TASK : (number + 1) * PER_TASK]
                write_text(work / "suite" / part / group / file.name, "".join(chosen))
    lines = (data / "speciality" / "gsm8k" / "valid.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    write_text(work / "suite" / "gsm8k_valid.jsonl", "".join(lines[:PER_TASK]))


def run(model: str, data: Path, work: Path, variant: str) -> None:
    config = configuration(model, data, work, variant)
    bench = Workbench(load_model(model), trial_data(config))
    if variant.startswith("full-"):
        run_full(bench, config, work / variant)
        return
    search = make_search(config, bench, config.output)
    start = time.perf_counter()
    with Journal(config.output, search.identity()) as journal:
        already = sum(record["cost"]["seconds"] for record in journal.records if "cost" in record)
        result = search.run(journal)
        training, scoring = recount(search, journal)
    wall = time.perf_counter() - start + already
    write_json(work / variant / "search.json", {**result.to_dict(), "wall_seconds": wall, "training": training,
                                                "scoring": scoring})
    print(f"{variant}: {result.choice.sentence} {training:.2f} + {scoring:.2f} full fine-tunings, {wall:.0f} s")


def recount(search: Search, journal: Journal) -> tuple[float, float]:
    """What training and scoring cost, in full fine-tunings, from the jobs in the journal."""
    seen: dict[int, float] = {}
    total, scoring = 0.0, search.work.scoring()
    for job in journal.of_kind("rung"):
        total += search.flops(job, seen)
        lowest = lowest_layer(Region.parse(job["region"]), search.bench.layout)
        scoring += search.work.scoring(lowest, first=lowest not in seen)
        search.note_seen(job, seen)
    return (total + search.work.scoring() - scoring) / search.work.full_sft, scoring / search.work.full_sft


def run_full(bench: Workbench, config: Any, output: Path) -> None:
    training = {**config.training, **config.run.full_sft_training}
    with bench.trial(Region.full()), tempfile.TemporaryDirectory() as folder:
        result = bench.train(Region.full(), folder, training)
        scores = bench.score("valid").to_dict()
    write_json(output / "full.json", {"seconds": result.seconds, "tokens": result.tokens, "scores": scores})
    print(f"{output.name}: {result.seconds:.0f} s, Spec {scores['spec']:.3f}, Vers {scores['vers']:.3f}")


def priors(model: str, data: Path, work: Path, variant: str) -> None:
    """Values and seconds of every prior for the variant's nodes."""
    config = configuration(model, data, work, variant)
    bench = Workbench(load_model(model), trial_data(config))
    nodes = read_json(work / variant / "search.json", "search")["nodes"]
    found: dict[str, Any] = {}
    for name in PRIORS:
        start = time.perf_counter()
        values = make_prior(name, bench)([Region.parse(node["region"]) for node in nodes],
                                         [node["learning_rate"] for node in nodes])
        found[name] = {"seconds": time.perf_counter() - start,
                       "values": {node["id"]: value for node, value in zip(nodes, values, strict=True)}}
    write_json(work / variant / "priors.json", found)


def rank_correlation(first: list[float], second: list[float]) -> float:
    """Spearman's; equal values share their mean rank."""
    columns = [np.asarray(values)[:, None] for values in (first, second)]
    ranks = [(values > values.T).sum(1) + (values == values.T).sum(1) / 2 for values in columns]
    return float(np.corrcoef(*ranks)[0, 1])


def summary(work: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    searches = {path.parent.name: read_json(path, "search") for path in sorted(work.glob("*/search.json"))}
    truth = {name.split("-")[1]: name for name in searches if name.startswith("exhaustive")}
    for name, search in searches.items():
        task = name.split("-")[1]
        row = {"kind": "search", "variant": name, "nodes": len(search["nodes"]), "wall_seconds": search["wall_seconds"],
               "full_sft": search["training"] + search["scoring"], "full_sft_training": search["training"],
               "full_sft_scoring": search["scoring"], "tokens": search["cost"]["tokens"],
               "chosen": next(n["region"] for n in search["nodes"] if n["id"] == search["chosen"]),
               "sentence": search["choice"]["sentence"], "tied": len(search["choice"]["tied"]),
               "candidates": len(search["choice"]["candidates"])}
        size = [change for change in name.split("-")[2:] if change in ("half", "large")]
        full = work / "-".join(["full", task, *size]) / "full.json"
        if full.is_file():
            row["full_sft_by_time"] = search["wall_seconds"] / read_json(full, "full fine-tuning")["seconds"]
        if task in truth and name != truth[task]:
            row["against_exhaustive"] = _against(work / truth[task], searches[truth[task]], search["chosen"])
        rows.append(row)
    for name in truth.values():
        rows.append({"kind": "signals", "variant": name, **_signals(work / name, searches[name])})
    return rows


def _estimates(folder: Path, search: dict[str, Any], fraction: float = 1.0) -> dict[str, Estimate]:
    found = {}
    for node in search["nodes"]:
        scores = SuiteScores.from_dict(read_json(folder / "scores" / f"{node['id']}-{fraction:g}.json", "scores"))
        found[node["id"]] = Estimate(scores.uni, resampled_figures(scores)["uni"])
    return found


def _against(folder: Path, search: dict[str, Any], chosen: str) -> dict[str, Any]:
    """The chosen node among all nodes, each trained to the end with the exhaustive search's seed."""
    estimates = _estimates(folder, search)
    order = ranked(estimates)
    if chosen not in estimates:
        return {"chosen_in_space": False}
    gap = estimates[order[0]].minus(estimates[chosen])
    return {"rank": order.index(chosen) + 1, "of": len(order), "behind": gap.value, "se": gap.se,
            "within_one_se": gap.value <= gap.se, "within_95": chosen not in clearly_behind(estimates, 0.95),
            "best": next(node["region"] for node in search["nodes"] if node["id"] == order[0]),
            "tied_with_best": len(tied_with_best(estimates))}


def _signals(folder: Path, search: dict[str, Any]) -> dict[str, Any]:
    """Rank correlations of the priors, of size and of early rungs with the Uni at the end, over all nodes and the first
    level's."""
    nodes = search["nodes"]
    groups = {"all": nodes, "first level": [node for node in nodes if node["level"] == 0],
              "quarters": [node for node in nodes if node["level"] == 1]}
    signals: dict[str, dict[str, float]] = {
        "size": {node["id"]: node["trained_parameters"] for node in nodes},
        **{f"Uni at {rung:g}": {node["id"]: next(r["uni"] for r in node["rungs"] if r["fraction"] == rung)
                                  for node in nodes} for rung in RUNGS[:-1]},
    }
    seconds = {}
    if (folder / "priors.json").is_file():
        for name, content in read_json(folder / "priors.json", "priors").items():
            signals[name], seconds[name] = content["values"], content["seconds"]
    correlations = {
        name: {group: rank_correlation([values[node["id"]] for node in members], [node["uni"] for node in members])
               for group, members in groups.items() if len(members) > 2}
        for name, values in signals.items()
    }
    return {"rank_correlation": correlations, "prior_seconds": seconds,
            "nodes": [{key: node[key] for key in ("region", "level", "learning_rate", "trained_parameters", "spec",
                                                  "vers", "uni", "uni_se", "seconds", "full_sft")} for node in nodes]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("task", choices=("run", "priors", "summary"))
    parser.add_argument("variants", nargs="*")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    if arguments.task == "summary":
        rows = summary(arguments.work)
        for row in rows:
            print(json.dumps({key: value for key, value in row.items() if key != "nodes"}, indent=1))
        if arguments.json:
            save(arguments.json, "search_study", rows)
        return
    prepare(arguments.data, arguments.work)
    for variant in arguments.variants:
        # Variants share no cached prefix, or the later ones would look cheaper than they are.
        os.environ["COFITUNE_PREFIX_CACHE"] = str(arguments.work / "prefix" / variant)
        (run if arguments.task == "run" else priors)(arguments.model, arguments.data, arguments.work, variant)


if __name__ == "__main__":
    main()
