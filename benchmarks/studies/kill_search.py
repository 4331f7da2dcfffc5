"""Kill a search with SIGKILL at random moments, resume it each time, and compare it with one that was left alone.

python benchmarks/studies/kill_search.py RUN.yaml WORK [--kills 20] [--seed 0] [--json FILE]
python benchmarks/studies/kill_search.py tiny WORK ...    # a tiny random model and its data, made in WORK

Checked at the end of each killed search: the journal is that of the undisturbed search up to times and memory, with
the same choice and the same test scores; no rung of a node stands in it twice; every JSON file can be read, and nothing
half written is left.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from cofitune_fast.files import write_text

sys.path.insert(0, str(Path(__file__).parents[1]))
from provenance import save

VOLATILE = {"seconds", "training_seconds", "scoring_seconds", "peak_memory_bytes", "cached_rows", "notes"}


def start(config: Path, output: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "cofitune_fast.cli", "search", "--config", str(config), "--output", str(output)]
    return subprocess.Popen(
        [*command, "--json"],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )


def finish(process: subprocess.Popen) -> None:
    _, errors = process.communicate()
    if process.returncode != 0:
        raise SystemExit(f"The search ended with status {process.returncode}: {errors[-2000:]}")


def steady(value: Any) -> Any:
    """Without what differs from run to run by nature: times, memory, and the folder."""
    if isinstance(value, dict):
        return {key: steady(item) for key, item in value.items() if key not in VOLATILE}
    return [steady(item) for item in value] if isinstance(value, list) else value


def journal(folder: Path) -> list[Any]:
    return [steady(json.loads(line)) for line in (folder / "journal.jsonl").read_text().splitlines()]


def compare(whole: Path, killed: Path) -> None:
    first, second = journal(whole), journal(killed)
    assert first == second, f"{killed}: the journals differ"
    rungs = [(record["id"], record["end"]) for record in second if record["kind"] == "rung"]
    assert len(rungs) == len(set(rungs)), f"{killed}: a rung was trained twice"
    for name in ("search.json", "test.json"):
        left, right = (steady(json.loads((folder / name).read_text())) for folder in (whole, killed))
        left, right = (content.get("search", content) for content in (left, right))  # without command and date
        assert left == right, f"{killed}: {name} differs"
    for file in killed.rglob("*.json"):
        json.loads(file.read_text())
    left = {str(path.relative_to(whole)) for path in whole.rglob("*") if path.is_file()}
    right = {str(path.relative_to(killed)) for path in killed.rglob("*") if path.is_file()}
    assert right <= left, f"{killed}: left behind {sorted(right - left)[:5]}"


def tiny_config(work: Path) -> Path:
    """A search of about half a minute whose nodes leave a checkpoint every second."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
    from tiny import make_tiny_model, make_tiny_tokenizer, write_jsonl

    model = work / "model"
    make_tiny_model().save_pretrained(model)
    make_tiny_tokenizer().save_pretrained(model)
    rows = [{"prompt": f"say {chr(97 + i % 26)} {i}", "completion": chr(65 + i % 26) * (i % 3 + 1)} for i in range(300)]
    for part, chosen in (("train", rows[:200]), ("valid", rows[200:250]), ("test", rows[250:])):
        write_jsonl(work / f"{part}.jsonl", chosen)
        for group in ("knowledge", "reasoning", "instruction"):
            write_jsonl(work / part / group / f"{group}.jsonl", [
                {"query": f"{group} {i} is", "choices": ["yes", "no"], "gold": i % 2} for i in range(30)])
    config = work / "run.yaml"
    write_text(config, json.dumps({
        "model": str(model), "data": {part: str(work / f"{part}.jsonl") for part in ("train", "valid", "test")},
        "versatility": {part: str(work / part) for part in ("valid", "test")},
        "training": {"learning_rate": 0.01, "num_train_epochs": 4, "per_device_train_batch_size": 4},
        "anchor": {"weight": 0.0}, "search": {"checkpoint_minutes": 1 / 60},
    }))
    return config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("work", type=Path)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    arguments.work.mkdir(parents=True, exist_ok=True)
    config = tiny_config(arguments.work) if arguments.config == "tiny" else Path(arguments.config)
    whole = arguments.work / "whole"
    begun = time.monotonic()
    finish(start(config, whole))
    duration = time.monotonic() - begun
    records = len(journal(whole))
    kills: list[dict[str, Any]] = []
    searches = 0
    while len(kills) < arguments.kills:
        killed = arguments.work / f"killed-{searches}"
        shutil.rmtree(killed, ignore_errors=True)
        searches += 1
        while True:
            process = start(config, killed)
            # Up to a third of a search's time, so that one search is killed several times on its way.
            patience = chance.uniform(0, max(duration / 3, 15)) if len(kills) < arguments.kills else None
            try:
                process.wait(patience)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.communicate()
                path = killed / "journal.jsonl"
                done = path.read_bytes().count(b"\n") if path.exists() else 0
                kills.append({"after_seconds": patience, "journal_lines": done, "search": searches})
                print(f"kill {len(kills)} after {patience:.1f} s: {done} of {records} lines", flush=True)
                continue
            finish(process)
            break
        compare(whole, killed)
        print(f"search {searches} ended as the undisturbed one", flush=True)
    if arguments.json:
        save(arguments.json, "kill_search", [{"undisturbed_seconds": duration, "journal_lines": records,
                                              "searches": searches, "kills": kills}])


if __name__ == "__main__":
    main()
