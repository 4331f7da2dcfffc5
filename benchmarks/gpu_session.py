"""All that only a GPU can prove, in one run of less than ten minutes: build, agreement, tests, contests.

python benchmarks/gpu_session.py [--out FOLDER] [--minutes 9.3] [--only PART ...] [--dry-run]

A part that fails or outlasts its time is noted and the next begins. FOLDER (default: $OUT, else gpu-session) gets
session.json (provenance, and of each part its status and seconds), log.txt, and the contests' results as JSON, which
belong into benchmarks/results/ afterwards. Other packages' optimizers take part where they are installed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

ROOT = Path(__file__).parents[1]


@dataclass
class Part:
    name: str
    seconds: int  # at most
    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)


def plan(out: Path) -> list[Part]:
    """In order of importance, should the time not suffice for all."""

    def contest(script: str, seconds: int, result: str, *options: str) -> Part:
        return Part(result, seconds, [f"benchmarks/compare_{script}.py", "--device", "cuda", *options, "--json",
                                      str(out / f"{result}_cuda.json")])

    return [
        Part("build", 200, ["setup.py", "-q", "build_ext", "--inplace"],
             {"COFITUNE_CUDA": "1", "COFITUNE_NATIVE": "1", "MAX_JOBS": str(os.cpu_count() or 1)}),
        Part("agreement", 60, ["benchmarks/check_backends.py"]),
        Part("tests", 120, ["-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", "--benchmark-skip", "-rfE"]),
        contest("masked_adamw", 110, "masked_adamw_7B", "--workload", "7B"),
        contest("small_tensors", 40, "small_tensors"),
        contest("unit_importance", 30, "unit_importance"),
        contest("linear_kl", 60, "linear_kl"),
        contest("softmax", 30, "softmax"),
        contest("masked_adamw", 110, "masked_adamw_13B", "--workload", "13B"),
    ]


def run(part: Part, limit: float, log: TextIO) -> dict[str, Any]:
    """Runs a part, its output on the screen and in the log; {"part", "status", "seconds"}."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"} | part.environment
    start = time.monotonic()
    process = subprocess.Popen([sys.executable, *part.command], cwd=ROOT, env=environment, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    late = threading.Event()

    def stop() -> None:
        late.set()
        os.killpg(process.pid, signal.SIGKILL)  # what the part started ends with it

    timer = threading.Timer(limit, stop)
    timer.start()
    for line in process.stdout:
        tell(line.rstrip("\n"), log)
    code = process.wait()
    timer.cancel()
    status = f"stopped after {limit:.0f} s" if late.is_set() else "done" if code == 0 else f"failed (status {code})"
    return {"part": part.name, "status": status, "seconds": round(time.monotonic() - start, 1)}


def tell(text: str, log: TextIO) -> None:
    print(text, flush=True)
    print(text, file=log, flush=True)


def headlines(out: Path) -> list[str]:
    """Of each AdamW contest our passes' time and share of the copy bandwidth."""
    lines = []
    for path in sorted(out.glob("masked_adamw_*.json")):
        for result in json.loads(path.read_text(encoding="utf-8"))["results"]:
            lines.append(f"{result['name']}: copy {result['bounds']['copy']:.0f} GB/s")
            lines += [f"    {row['side']:32}{row['median_ms']:9.3f} ms{row['of_copy']:7.0%} of copy  {row['part']}"
                      for row in result["sides"]]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "gpu-session")))
    parser.add_argument("--minutes", type=float, default=9.3, help="for all parts together")
    parser.add_argument("--only", nargs="+", metavar="PART", help="only these parts")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and end")
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    parts = [part for part in plan(out) if arguments.only is None or part.name in arguments.only]
    if arguments.dry_run:
        for part in parts:
            settings = "".join(f"{key}={value} " for key, value in part.environment.items())
            print(f"{part.name:18}at most {part.seconds:4} s  {settings}python {' '.join(part.command)}")
        return
    out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * arguments.minutes
    done: list[dict[str, Any]] = []
    with (out / "log.txt").open("w", encoding="utf-8") as log:
        for part in parts:
            limit = min(part.seconds, end - time.monotonic())
            tell(f"== {part.name} (at most {limit:.0f} s)", log)
            done.append(run(part, limit, log) if limit > 5 else
                        {"part": part.name, "status": "left out for lack of time", "seconds": 0.0})
            tell(f"== {part.name}: {done[-1]['status']}, {done[-1]['seconds']} s", log)
            keep(out, done)
        tell("\n== summary", log)
        for line in [*headlines(out), *(f"{row['part']:18}{row['seconds']:7.1f} s  {row['status']}" for row in done)]:
            tell(line, log)
    sys.exit(any(row["status"] != "done" for row in done))


def keep(out: Path, done: list[dict[str, Any]]) -> None:
    """session.json after every part; a process of its own asks torch, which may not even load before the build."""
    code = "import json, provenance; print(json.dumps(provenance.provenance()))"
    asked = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
                           env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'benchmarks'}"})
    origin = json.loads(asked.stdout) if asked.returncode == 0 else {"error": asked.stderr[-2000:]}
    origin["command"] = "python benchmarks/gpu_session.py"
    (out / "session.json").write_text(json.dumps({"provenance": origin, "parts": done}, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
