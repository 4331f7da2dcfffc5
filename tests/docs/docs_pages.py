"""The blocks of README and docs, and a folder in which they can be run: a tiny model, a few rows, the examples."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from synthetic_report import synthetic_report
from tiny import make_tiny_model, make_tiny_tokenizer, write_jsonl

from cofitune_fast.json_text import write_json

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LANGUAGES = {"python", "bash", "yaml", "json", "text"}
_MARK = re.compile(r"<!-- not run: (.{10,}) -->")


@dataclass(frozen=True)
class Block:
    """A fenced block. reason: why it is not run, from `<!-- not run: REASON -->` on the line before it."""

    page: Path
    line: int
    language: str
    text: str
    reason: str | None

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def commands(self) -> list[str]:
        """The lines of a shell block, continued ones joined, without comments and empty ones."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [line for line in map(str.strip, lines) if line and not line.startswith("#")]


def blocks_of(page: Path) -> list[Block]:
    blocks: list[Block] = []
    lines = page.read_text(encoding="utf-8").splitlines()
    start = None
    for number, line in enumerate(lines):
        if not line.lstrip().startswith("```"):
            continue
        if start is None:
            start = number
            continue
        mark = _MARK.fullmatch(lines[start - 1].strip()) if start else None
        blocks.append(Block(page, start + 1, lines[start].strip().removeprefix("```"),
                            "\n".join(lines[start + 1 : number]) + "\n", mark[1] if mark else None))
        start = None
    assert start is None, f"{page}: the fence of line {start} is never closed"
    return blocks


def run_yaml() -> str:
    """The run.yaml of the README, which other pages refer to."""
    (text,) = [block.text for block in blocks_of(ROOT / "README.md") if block.text.startswith("# run.yaml")]
    return text


def make_workspace(folder: Path) -> Path:
    """Make what the pages take for granted: ./my-chat-model, data/, suite/, run.yaml, examples/, and in runs/ deltas
    and a report."""
    import torch

    import cofitune_fast as cf

    model = make_tiny_model("llama", num_hidden_layers=8)
    for owner in (model, make_tiny_tokenizer()):
        owner.save_pretrained(folder / "my-chat-model")
    for task in ("data", "e2e", "gsm8k"):
        for part, start, count in (("train", 0, 16), ("valid", 3, 4), ("test", 7, 4)):
            write_jsonl(folder / task / f"{part}.jsonl", _letters(start, count))
    write_jsonl(folder / "general" / "train.jsonl", _letters(5, 8))
    write_jsonl(folder / "data" / "preferences.jsonl", [
        {"prompt": row["prompt"], "chosen": row["completion"], "rejected": "no"} for row in _letters(0, 8)])
    for part in ("valid", "test"):
        for group in ("knowledge", "reasoning"):
            write_jsonl(folder / "suite" / part / group / f"{group}.jsonl", [
                {"query": f"{group} {number} is", "choices": ["yes", "no"], "gold": number % 2} for number in range(4)])
        write_jsonl(folder / "suite" / part / "instruction" / "do.jsonl", [
            {"instruction": f"repeat {number}", "input": "", "output": f"{number}"} for number in range(4)])
    (folder / "run.yaml").write_text(run_yaml(), encoding="utf-8")
    shutil.copytree(ROOT / "examples", folder / "examples")
    base = cf.BaseInfo.of(model, "./my-chat-model")
    for name, text in (("one", "ffn@40%-75%"), ("full", "full")):
        trained, region = make_tiny_model("llama", num_hidden_layers=8), cf.Region.parse(text)
        with torch.no_grad():
            for _, parameter in region.parameters(trained):
                parameter.mul_(1.01)
        cf.save_delta(trained, region, folder / "runs" / name / "delta", base=base)
    write_json(folder / "runs" / "first" / "report.json", synthetic_report())
    return folder


def _letters(start: int, count: int) -> list[dict[str, str]]:
    return [{"prompt": f"say {chr(97 + number % 26)}", "completion": chr(65 + number % 26) * 2}
            for number in range(start, start + count)]
