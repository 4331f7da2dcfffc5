"""Readers under fuzzing: each writes a good file by the package's own writer, and reads what became of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from synthetic_report import synthetic_report
from tiny import make_tiny_model, make_tiny_tokenizer

from cofitune_fast.anchor.reference import BaseRow
from cofitune_fast.anchor.store import _read, _write
from cofitune_fast.artefacts.reading import read_artefact
from cofitune_fast.config import load_config
from cofitune_fast.data.rows import read_rows
from cofitune_fast.importance import Importance
from cofitune_fast.json_text import read_json
from cofitune_fast.memory.prefix_store import KEY_BYTES, PrefixStore
from cofitune_fast.methods.folder import RunFolder
from cofitune_fast.migration.source import read_given
from cofitune_fast.models.folder import check_model
from cofitune_fast.optim import MaskedAdamW
from cofitune_fast.regions import Region, load_delta, read_delta, restore, save_delta
from cofitune_fast.regions.delta import BaseInfo, read_cells
from cofitune_fast.scoring.results import ItemScore, SuiteScores, make_score
from cofitune_fast.search.journal import Journal
from cofitune_fast.search.ledger import Ledger
from cofitune_fast.training.checkpoint import (
    Checkpoint,
    complete_checkpoint,
    load_training_state,
    save_training_state,
    set_random_states,
)
from cofitune_fast.yaml_text import read_yaml

REGION = "attn.q+ffn.down@1-2"
SETTINGS = {"seed": 3, "rates": [1e-4, 2e-4]}


@dataclass(frozen=True)
class Reader:
    """A reader of files.

    file: the one that is mutated, in the folder that `write` fills. kind: see `mutation.mutated`.
    """

    name: str
    file: str
    kind: str
    write: Callable[[Path], object]
    read: Callable[[Path], object]


class _Model:
    """The tiny base, made once."""

    def __init__(self) -> None:
        self.model = make_tiny_model()
        self.base = BaseInfo.of(self.model, "tiny")
        self.whole = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}


_made: list[_Model] = []


def _tiny() -> _Model:
    if not _made:
        _made.append(_Model())
    return _made[0]


def _write_delta(folder: Path) -> None:
    save_delta(_tiny().model, REGION, folder, base=_tiny().base, settings={"rate": 1e-4}, scores={"uni": 1.0})


def _load_delta(folder: Path) -> None:
    tiny = _tiny()
    info = read_delta(folder)
    replaced = load_delta(tiny.model, folder, base_fingerprint=tiny.base.fingerprint, keep_base=True)
    trained = {name for name, _ in Region.parse(info.region).parameters(tiny.model)}
    restore(tiny.model, replaced, info.parts)
    assert set(replaced) == trained, "other tensors than those of the stated region were taken"
    for name, tensor in tiny.model.state_dict().items():
        assert torch.equal(tensor, tiny.whole[name])


def _write_importance(folder: Path) -> None:
    scores = {"attn.head": torch.rand(2, 4), "ffn.neuron": torch.rand(2, 48)}
    Importance(scores, (0, 1), 5, "tiny", "f" * 64, {"proxy": "kl"}).save(folder / "importance.safetensors")


def _write_checkpoint(folder: Path) -> None:
    parameter = torch.nn.Parameter(torch.randn(4, 4))
    optimizer = MaskedAdamW([("weight", parameter)], lr=1e-3)
    parameter.grad = torch.randn(4, 4)
    optimizer.step()
    save_training_state(folder, optimizer.state_dict(), {"last_epoch": 1, "base_lrs": [1e-3]})
    complete_checkpoint(folder, {"step": 1, "run": "abc", "identity": {"seed": 1}, "figures": {"loss": 1.0},
                                 "temporary": False, "began": "2026-01-01"})


def _read_state(folder: Path) -> None:
    before = torch.random.get_rng_state()
    optimizer, _, states = load_training_state(folder)
    set_random_states(states)
    torch.random.set_rng_state(before)
    parameter = torch.nn.Parameter(torch.zeros(4, 4))
    MaskedAdamW([("weight", parameter)], lr=1e-3).load_state_dict(optimizer)


def _scores() -> SuiteScores:
    items = [ItemScore(float(number + 1), 3, number % 2 == 0) for number in range(4)]
    return SuiteScores.of({group: {"task": make_score(items, "likelihood", "exact")}
                           for group in ("speciality", "knowledge", "reasoning", "instruction")})


_COST = {"seconds": 1.0, "tokens": 10, "flops": 1e9, "full_sft": 0.1, "scoring_flops": 1e8, "training_seconds": 0.5,
         "scoring_seconds": 0.2}


def _write_search(folder: Path) -> None:
    with Journal(folder, SETTINGS) as journal:
        ledger = Ledger(journal, 10)
        scores = _scores()
        answer = {"scores": scores.to_dict(), "cost": _COST, "items": {"uni": scores.to_dict(items=True)}}
        ledger.keep_base(answer, {})
        ledger.keep_rung({"id": "n1", "end": 0.5, "region": REGION, "seed": 1}, answer, {})
        ledger.keep_prior("level", {REGION: 0.5})


def _read_search(folder: Path) -> None:
    with Journal(folder, SETTINGS) as journal:
        ledger = Ledger(journal, 10)
        if ledger.base:
            _ = ledger.spent(), ledger.pace, ledger.pace_of_all, ledger.prior("level")
            ledger.base_scores()
        if ledger.rung("n1", 0.5):
            ledger.estimate("n1", 0.5)


_IDENTITY = {"settings": {"base": "f" * 64, "training": {"learning_rate": 1e-4}, "drift_rows": 0},
             "tasks": {"one": {"sha256": {"train": "a" * 64}}}, "general": {"sha256": "b" * 64}}


def _open_runs(folder: Path) -> None:
    with RunFolder(folder, _IDENTITY) as runs:
        file = runs.file("base")
        if file.is_file():
            SuiteScores.from_dict(read_json(file, "finished run", {"items": {"test": dict}})["items"]["test"])
            runs.read("base")
        else:
            runs.keep("base", {"id": "base", "items": {"test": _scores().to_dict(items=True)}})


def _write_prefix(folder: Path) -> None:
    store = PrefixStore(folder / "store", torch.float32, 8, 10**9, {"base": "tiny"})
    store.write([(bytes([row]) * KEY_BYTES, torch.randn(3, 8)) for row in range(3)])
    store.close()


def _read_prefix(folder: Path) -> None:
    store = PrefixStore(folder / "store", torch.float32, 8, 10**9)
    for row in range(3):
        states = store.read(bytes([row]) * KEY_BYTES)
        assert states is None or states.shape[1:] == (8,)
    store.close()


def _write_anchor(folder: Path) -> None:
    from cofitune_fast.anchor.distributions import Distributions

    rows = [BaseRow([1, 2, 3, 4], 2, "row", **{
        "ids": torch.zeros(2, 4, dtype=torch.int32), "log_p": torch.zeros(2, 4)} | {
            name: torch.zeros(2) for name in Distributions._fields if name not in ("ids", "log_p")})]
    _write(folder / "anchor.safetensors", rows, {"k": 4}, 1.0)


def _write_model(folder: Path) -> None:
    _tiny().model.save_pretrained(folder, max_shard_size="40kB")
    make_tiny_tokenizer().save_pretrained(folder)


def _put(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text, encoding="utf-8")


_YAML = """model: {path: tiny, dtype: bfloat16}
data:
  train: train.jsonl
  max_length: 512
training: &t
  learning_rate: 1e-4
  num_train_epochs: 2
region: "ffn.down@1-2"
"""
_ROWS = '{"prompt": "a", "response": "b"}\n{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", ' \
        '"content": "y"}]}\n'
_SHELL = "#!/bin/sh\nexport N=1 # a comment\nNPROC_PER_NODE=2 swift sft --model 'a b' --learning_rate 1e-4 \\\n" \
         "  --system \"one\ntwo\" --tuner_type full --lora_rank 8\n"
_AXOLOTL = "base_model: tiny\nlearning_rate: 1e-4\ndatasets:\n  - path: train.jsonl\n    type: chat_template\n"


READERS = [
    Reader("delta", "delta.safetensors", "safetensors", _write_delta, _load_delta),
    Reader("cells", "cofitune.json", "json", _write_delta, read_cells),
    Reader("importance", "importance.safetensors", "safetensors", _write_importance,
           lambda folder: Importance.load(folder / "importance.safetensors")),
    Reader("checkpoint", "checkpoint.json", "json", _write_checkpoint,
           lambda folder: (one := Checkpoint.read(folder)) and one.whole()),
    Reader("checkpoint state", "training_state.json", "json", _write_checkpoint, _read_state),
    Reader("optimizer state", "optimizer.safetensors", "safetensors", _write_checkpoint, _read_state),
    Reader("journal", "journal.jsonl", "jsonl", _write_search, _read_search),
    Reader("scores of the base", "scores/base.json", "json", _write_search, _read_search),
    Reader("scores of a node", "scores/n1-0.5.json", "json", _write_search, _read_search),
    Reader("identity", "identity.json", "json", _open_runs, _open_runs),
    Reader("run", "runs/base.json", "json", _open_runs, _open_runs),
    Reader("report", "report.json", "json", _put("report.json", json.dumps(synthetic_report())),
           lambda folder: read_artefact("report", folder / "report.json")),
    Reader("prefix index", "store/index.bin", "bytes", _write_prefix, _read_prefix),
    Reader("anchor", "anchor.safetensors", "safetensors", _write_anchor,
           lambda folder: _read(folder / "anchor.safetensors", BaseRow)),
    Reader("model configuration", "config.json", "json", _write_model, check_model),
    Reader("list of weights", "model.safetensors.index.json", "json", _write_model, check_model),
    Reader("YAML", "a.yaml", "bytes", _put("a.yaml", _YAML), lambda folder: read_yaml(folder / "a.yaml", "file")),
    Reader("settings", "run.yaml", "bytes", _put("run.yaml", _YAML), lambda folder: load_config(folder / "run.yaml")),
    Reader("rows", "rows.jsonl", "jsonl", _put("rows.jsonl", _ROWS), lambda folder: read_rows(folder / "rows.jsonl")),
    Reader("JSON of rows", "rows.json", "json",
           _put("rows.json", json.dumps([json.loads(line) for line in _ROWS.splitlines()])),
           lambda folder: read_rows(folder / "rows.json")),
    Reader("CSV", "rows.csv", "bytes", _put("rows.csv", 'prompt,response\na,"b\nc"\nd,e\n'),
           lambda folder: read_rows(folder / "rows.csv")),
    Reader("Axolotl", "axolotl.yaml", "bytes", _put("axolotl.yaml", _AXOLOTL),
           lambda folder: read_given(folder / "axolotl.yaml")),
    Reader("shell script", "sft.sh", "bytes", _put("sft.sh", _SHELL), lambda folder: read_given(folder / "sft.sh")),
]
