"""Tries every family of tests/families.py, whole, and writes what was seen into docs/families.md.

python tests/family_page.py [FAMILY ...] [--page docs/families.md]

For each family: `cofitune train` with the anchor on a saved model, and the merge of its delta; importance and a step
with its mask; which speed features are on; a quantised frozen part; the plan. Without --page the table is only printed.
A dash means that the feature is refused or off, for the reason that is printed; "fault" that something broke.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from families import FAMILIES, tiny_family
from tiny import make_tiny_tokenizer, write_jsonl

from cofitune_fast import cli
from cofitune_fast.errors import CofituneError
from cofitune_fast.importance import compute_importance
from cofitune_fast.memory.abilities import abilities
from cofitune_fast.models import load_model
from cofitune_fast.optim import MaskedAdamW
from cofitune_fast.regions import Region, resolve_layout

YES, OFF = "yes", "–"
COLUMNS = ("roles", "train, merge", "importance", "mask", "prefix", "cache", "trie", "quantised", "plan")
START, END = "<!-- families -->", "<!-- /families -->"
IDS = torch.tensor([[5, 9, 7, 33, 60, 8], [4, 4, 90, 12, 6, 30]])


class Trial:
    """One family, saved in a folder of its own."""

    def __init__(self, family: str, folder: Path) -> None:
        self.family, self.folder, self.notes = family, folder, []
        self.model = tiny_family(family)
        self.layout = resolve_layout(self.model)
        layer = self.layout.num_layers - 1
        while any(cell.shared for cell in self.layout.cells if cell.layer == layer):
            layer -= 1  # a shared weight cannot be trained alone
        self.region = Region.parse(f"all@{layer}")
        self.model.save_pretrained(folder / "model")
        make_tiny_tokenizer().save_pretrained(folder / "model")
        write_jsonl(folder / "rows.jsonl", [
            {"prompt": f"say {letter}", "completion": letter.upper() * 2} for letter in "abcdefghijklmnop"])

    def attempt(self, name: str, stage: Callable[[], str | None]) -> str:
        silent = io.StringIO()
        try:
            with contextlib.redirect_stdout(silent), contextlib.redirect_stderr(silent):
                return stage() or YES
        except CofituneError as error:
            self.notes.append(f"{name}: {error}")
            return OFF
        except Exception as error:
            self.notes.append(f"{name}: {type(error).__name__} {' '.join(str(error).split())[:300]}")
            return "fault"

    def row(self) -> list[str]:
        found = abilities(self.model, min(cell.layer for cell in self.region.cells(self.layout)))
        self.notes += [f"{name}: {ability.why_not}" for name, ability in found.items() if not ability]
        features = [YES if found[name] else OFF for name in ("prefix cut", "prefix cache", "trie")]
        stages = (("train", self.train), ("importance", self.importance), ("mask", self.mask))
        return [self.roles(), *(self.attempt(*stage) for stage in stages), *features,
                self.attempt("quantised", self.quantised), self.attempt("plan", self.plan)]

    def roles(self) -> str:
        kinds = dict.fromkeys(
            " ".join(role.replace("attn.", "").replace("ffn.", "") for role in dict.fromkeys(
                cell.role for cell in self.layout.cells if cell.layer == layer))
            for layer in range(self.layout.num_layers))
        return "; ".join(kinds)

    def train(self) -> str | None:
        where = str(self.folder / "model")
        command = ["train", "--model", where, "--data.train", str(self.folder / "rows.jsonl"),
                   "--region", str(self.region), "--training.learning_rate", "0.01",
                   "--training.per_device_train_batch_size", "8"]
        told = None
        try:
            run = self.folder / "run"
            cofitune(*command, "--output", str(run), "--anchor.texts", "4", "--anchor.tokens", "4")
        except Exception as error:  # some random models write one token only; transformers' xLSTM does not write
            run = self.folder / "run-without-anchor"
            cofitune(*command, "--output", str(run), "--anchor.weight", "0")
            told = None if "repeat themselves" in str(error) else "without an anchor"
        cofitune("merge", "--model", where, "--delta", str(run / "delta"),
                 "--output", str(self.folder / "merged"))
        before, after = (dict(load_model(self.folder / name).model.named_parameters()) for name in ("model", "merged"))
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        trained = {cell.parameter for cell in self.region.cells(self.layout)}
        if not changed or not all(any(name.endswith(part.split(".layers.")[-1].split(".h.")[-1]) for part in trained)
                                  for name in changed if not name.endswith("bias")):
            raise AssertionError(f"changed: {sorted(changed)}")
        return told

    def importance(self) -> None:
        batch = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS), "labels": IDS}
        self.measured = compute_importance(self.model, [batch], proxy="task_nll", region=self.region)

    def mask(self) -> None:
        if not hasattr(self, "measured"):
            raise CofituneError("nothing to make a mask of")
        optimizer = MaskedAdamW(self.region.apply(self.model), masks=self.measured.masks(self.model, self.region))
        self.model(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
        optimizer.step()

    def quantised(self) -> None:
        loaded = load_model(self.folder / "model", quantize="nf4", keep=self.region.modules)
        pairs = self.region.apply(loaded.model)
        if all(parameter.is_floating_point() for parameter in loaded.model.parameters()):
            raise CofituneError("no projection outside of the region is an nn.Linear")
        loaded.model(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
        assert all(parameter.grad is not None for _, parameter in pairs)

    def plan(self) -> None:
        cofitune("plan", "--model", str(self.folder / "model"), "--region", str(self.region))


def cofitune(*arguments: str) -> None:
    former, sys.argv = sys.argv, ["cofitune", *arguments]
    messages = io.StringIO()
    try:
        with contextlib.redirect_stderr(messages):
            cli.main()
    except SystemExit as stop:
        if stop.code:
            raise CofituneError(" ".join(messages.getvalue().split())[-400:]) from None
    finally:
        sys.argv = former


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", metavar="FAMILY")
    parser.add_argument("--page", type=Path)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    transformers.utils.logging.disable_progress_bar()
    lines = [f"| family | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
    for family in arguments.families or FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            try:
                trial = Trial(family, Path(folder))
                cells, notes = trial.row(), trial.notes
            except Exception as error:
                cells, notes = ["fault"] * len(COLUMNS), [f"{type(error).__name__}: {str(error)[:300]}"]
        lines.append(f"| {family} | {' | '.join(cells)} |")
        print(lines[-1], *notes, sep="\n    ", flush=True)
    table = "\n".join(lines)
    if arguments.page:
        text = arguments.page.read_text(encoding="utf-8")
        head, tail = text.split(START)[0], text.split(END)[1]
        arguments.page.write_text(f"{head}{START}\n{table}\n{END}{tail}", encoding="utf-8")


if __name__ == "__main__":
    main()
