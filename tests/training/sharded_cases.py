"""What two ranks do together, each case a function; run by torchrun from test_training_sharded with a folder.

`RUNS` are trainings that one process repeats with the same global batches. A rank writes to rank0.json or rank1.json
what went wrong in each case.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import traceback
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from cases import FULL
from safetensors.torch import load_file
from tiny import make_tiny_model, make_tiny_tokenizer
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import TrainerCallback

from cofitune_fast.anchor import AnchorSettings, ReferenceSettings, open_anchor, task_rows
from cofitune_fast.anchor import anchor as anchor_module
from cofitune_fast.data import Encoded
from cofitune_fast.errors import CofituneError
from cofitune_fast.models import LoadedModel, sharded
from cofitune_fast.models.fingerprint import named_parameters, tensor_digests
from cofitune_fast.regions import BaseInfo, FrozenProof, Region, load_delta, read_delta, restore, save_delta
from cofitune_fast.scoring.score import answer_scores
from cofitune_fast.training import LossNotFinite, MemorySettings, TrainOptions, last_complete_checkpoint, train_region
from cofitune_fast.trials import TrialData, Workbench

WORLD = 2
UPPER = "ffn.up+ffn.down@50%-100%"
MASKS = {f"model.layers.{layer}.mlp.up_proj.weight": torch.linspace(0, 1, 48)[:, None] for layer in (2, 3)}
# eps is large enough that the last bits of tiny gradients, which Adam would blow up to a whole step, do not show
RUNS = {
    "masks and clipping": {"region": UPPER, "masks": MASKS, "training": {"max_grad_norm": 0.05}},
    "rows padded": {"region": UPPER, "memory": {"packing": "off", "prefix_cache": "off"}},
    "rows packed": {"region": UPPER, "memory": {"packing": "on"}},
    "without a prefix cache": {"region": "mha@25%-75%", "memory": {"prefix_cache": "off"}},
    "everything, tied embeddings too": {"region": "full"},
    "an untied head": {"region": "full", "model": {"tie_word_embeddings": False}},
    "accumulated": {"region": UPPER, "training": {"gradient_accumulation_steps": 2}},
    "recomputed": {"region": UPPER, "training": {"gradient_checkpointing": True}},
    "a batch is smaller": {"region": UPPER, "rows": 10},
    "held to the base": {"region": UPPER, "reference": ReferenceSettings(50.0, mask_target=True, top_k=8)},
    "prompts held, tokens filtered, accumulated": {
        "region": UPPER, "reference": ReferenceSettings(50.0, "prompt", top_k=8), "token_filter": 260.0,
        "training": {"gradient_accumulation_steps": 2}},
}
if not FULL:  # each of them is like another one for the most part
    for _name in ("rows padded", "an untied head", "recomputed", "held to the base"):
        del RUNS[_name]


def rows(count=12):
    """Rows of different lengths, of which pairs begin alike."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for number in range(count):
        length = int(torch.randint(8, 14, (), generator=generator))
        start = [10 + number // 2] * 5
        made.append(Encoded(start + torch.randint(4, 260, (length - 5,), generator=generator).tolist(), length - 2))
    return made


def model_of(options=None, dtype=torch.float32):
    """The tiny model; under torchrun shared out over the ranks."""
    model = make_tiny_model(dtype=dtype, **(options or {}))
    return sharded.shard(model, torch.device("cpu")) if sharded.world_size() > 1 else model


def train(folder, region, *, model=None, rows_=None, training=None, memory=None, batch=2, base=None, **options):
    """Trains with batches of `batch` rows per rank, by default 2, so that 2 ranks have 4; returns model and result."""
    model = model or model_of()
    base = base or BaseInfo.of(model, "tiny")
    watching = {key: options.pop(key) for key in ("callbacks", "on_last_good", "interruptible", "eval_rows")
                if key in options}
    result = train_region(
        model, Region.parse(region), rows_ or rows(), folder, {
            "learning_rate": 1e-2, "adam_epsilon": 1e-4, "per_device_train_batch_size": batch, "seed": 3,
            "num_train_epochs": 2, "logging_steps": 1, **(training or {}),
        }, TrainOptions(memory=MemorySettings(**(memory or {})), **options), base=base, pad_token_id=0, **watching,
    )
    return model, base, result


def one_of_the_runs(folder, name, batch=2):
    run = dict(RUNS[name])
    model, data = model_of(run.pop("model", None)), rows(run.pop("rows", 12))
    if "reference" in run:
        data = task_rows(model, data, 0, "print", run["reference"], run.pop("token_filter", None), folder / "reference")
    model, base, result = train(folder / name, run.pop("region"), model=model, rows_=data, batch=batch, **run)
    save_delta(model, RUNS[name]["region"], folder / name / "delta", base=base)
    return result


def anchor_of(model, folder):
    settings = AnchorSettings(weight=1.0, rows=1, texts=6, tokens=5, top_k=8)
    return open_anchor(model, make_tiny_tokenizer(), settings, "print", folder=folder)


class Collectives(TorchDispatchMode):
    """Counts the calls of a collective inside the block."""

    def __init__(self, name):
        super().__init__()
        self.name, self.count = name, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function.namespace == "c10d" and self.name in str(function)
        return function(*args, **(kwargs or {}))


# Cases ------------------------------------------------------------------------------------------------------------


def trained(folder, name):
    result = one_of_the_runs(folder, name)
    assert abs(result.loss - json.loads((folder / "losses.json").read_text())[name]) < 1e-5


def loaded(folder):
    plain, model = make_tiny_model(), model_of()
    assert tensor_digests(model) == tensor_digests(plain)
    assert BaseInfo.of(model, "x") == BaseInfo.of(plain, "x")
    for (name, parameter), (other, full) in zip(model.named_parameters(), plain.named_parameters(), strict=True):
        assert name == other and parameter.shape == full.shape
        part = parameter.to_local()
        assert torch.equal(part, full.chunk(WORLD)[sharded.rank()]) and part.untyped_storage().nbytes() <= full.nbytes


def scored(folder):
    plain, model = make_tiny_model(), model_of()
    assert answer_scores(model, rows(), 0) == answer_scores(plain, rows(), 0)
    assert all(hasattr(parameter, "full_tensor") for parameter in model.parameters())  # sharded again afterwards


def an_anchor_is_written_and_trained_with(folder):
    plain, model = make_tiny_model(), model_of()
    alone, together = anchor_of(plain, folder / f"anchor-{sharded.rank()}"), anchor_of(model, folder / "anchor")
    for one, other in zip(alone.rows, together.rows, strict=True):
        assert one.input_ids == other.input_ids and torch.equal(one.ids, other.ids)
        torch.testing.assert_close(one.log_p, other.log_p)
    assert len(list((folder / "anchor").iterdir())) == 1
    with patch.object(anchor_module, "write_texts", side_effect=AssertionError("written twice")):
        again = anchor_of(model, folder / "anchor")
    assert [row.input_ids for row in again.rows] == [row.input_ids for row in together.rows]
    assert all(hasattr(parameter, "full_tensor") for parameter in model.parameters())
    _, _, result = train(folder / "anchored", UPPER, model=model, anchor=together)
    assert result.anchor_kl > 0


def frozen_layers_cost_nothing(folder):
    model = model_of()
    with Collectives("reduce_scatter") as reduced:
        model, _, result = train(folder / "frozen", UPPER, model=model, memory={"prefix_cache": "off"})
    assert (result.steps, reduced.count) == (6, 2 * result.steps)
    assert all(parameter.grad is None for parameter in model.parameters())


def cached_layers_are_never_gathered(folder):
    gathered, deltas = [], []
    for number, cache in enumerate(("off", "auto", "auto")):
        with Collectives("allgather_base") as spoken:
            model, _, result = train(folder / f"cached-{number}", UPPER, memory={"prefix_cache": cache})
        gathered.append(spoken.count)
        deltas.append({name: p.to_local().clone() for name, p in named_parameters(model)})
    assert result.cached_rows == 12
    assert gathered[2] <= gathered[0] - 2 * result.steps, gathered  # two layers lie below
    assert all(torch.equal(deltas[0][name], deltas[number][name]) for name in deltas[0] for number in (1, 2))


def one_rank_has_no_cached_rows(folder):
    """Then the layers below run on both, for each holds a part of them."""
    model, *_ = train(folder / "whole", UPPER)
    from cofitune_fast.memory.prefix_cache import PrefixCache

    if sharded.rank() == 1:
        with patch.object(PrefixCache, "states", lambda *arguments: None):
            other, *_ = train(folder / "half", UPPER)
    else:
        other, *_ = train(folder / "half", UPPER)
    for (_, p), (_, q) in zip(model.named_parameters(), other.named_parameters(), strict=True):
        assert torch.equal(p.to_local(), q.to_local())


def resumed(folder, storage, dtype):
    """Stopped in the middle and gone on with in another model, to the bit; the files are those of rank 0 alone."""
    options = {"storage": storage, "training": {"save_strategy": "steps", "save_steps": 3}}
    whole, *_ = train(folder / f"straight-{storage}", UPPER, model=model_of(dtype=dtype), **options)
    at = folder / f"resumed-{storage}"
    train(at, UPPER, model=model_of(dtype=dtype), callbacks=[_Stop(3)], **options)
    assert sorted(path.name for path in at.iterdir()) == ["checkpoint-3"]
    checkpoint = Path(last_complete_checkpoint(at))
    assert not [path for path in checkpoint.iterdir() if path.name.startswith(".")]
    options["training"] = {**options["training"], "resume_from_checkpoint": True}
    model, _, result = train(at, UPPER, model=model_of(dtype=dtype), **options)
    assert result.steps == 6
    for (_, p), (_, q) in zip(whole.named_parameters(), model.named_parameters(), strict=True):
        assert torch.equal(p.to_local(), q.to_local())


class _Stop(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step and sharded.rank() == 1:  # rank 0 must follow
            control.should_training_stop = control.should_save = True


def deltas_go_both_ways(folder):
    """Rank 0 writes what one process writes; a delta of one process is loaded into the shards, and taken out again."""
    model, plain = model_of(), make_tiny_model()
    base, before = BaseInfo.of(plain, "tiny"), tensor_digests(plain)
    torch.manual_seed(1)
    for _, parameter in Region.parse(UPPER).parameters(plain):
        parameter.data.add_(torch.randn(parameter.shape))
    save_delta(plain, UPPER, folder / f"plain-{sharded.rank()}", base=base)
    kept = load_delta(model, folder / f"plain-{sharded.rank()}", keep_base=True)
    assert tensor_digests(model) == tensor_digests(plain)
    save_delta(model, UPPER, folder / "sharded", base=base)
    assert read_delta(folder / "sharded") == read_delta(folder / "plain-0")
    for file in ("cofitune.json", "README.md"):
        assert (folder / "sharded" / file).read_bytes() == (folder / "plain-0" / file).read_bytes()
    ours, theirs = (load_file(folder / path / "delta.safetensors") for path in ("sharded", "plain-0"))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)
    restore(model, kept)
    assert tensor_digests(model) == before


def a_trial_puts_the_shards_back(folder):
    model = model_of()
    bench = Workbench(LoadedModel(model, make_tiny_tokenizer(), "tiny"), TrialData())
    with bench.trial(Region.parse(UPPER)):
        train(folder / "trial", UPPER, model=model, base=bench.base)
        assert tensor_digests(model) != bench.digests
    assert tensor_digests(model) == bench.digests == tensor_digests(make_tiny_model())


def moved_frozen_tensors_are_seen(folder):
    model = model_of()
    proof = FrozenProof.of(model, [name for name, _ in Region.parse(UPPER).parameters(model)])
    assert proof.check(model) == FrozenProof.of(make_tiny_model(), proof.trained).check(make_tiny_model())
    if sharded.rank() == 1:  # a row that lies here alone
        with torch.no_grad():
            model.get_input_embeddings().weight.to_local()[0, 0] += 1
    with pytest.raises(CofituneError, match=r"^1 of \d+ frozen tensors changed during training: model\.embed"):
        proof.check(model)


def an_infinite_loss_stops_all(folder):
    from cofitune_fast.training import trainer

    response_losses, kept, model = trainer.response_losses, [], model_of()

    def broken(*arguments, **options):
        losses = response_losses(*arguments, **options)
        return [loss * float("nan") for loss in losses] if sharded.rank() == 1 else losses

    with patch.object(trainer, "response_losses", broken), pytest.raises(LossNotFinite):
        train(folder / "nan", UPPER, model=model, on_last_good=lambda: kept.append(1))
    assert kept == [1]
    assert tensor_digests(model) == tensor_digests(make_tiny_model())


class _Interrupt(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 2 and sharded.rank() == 1:
            os.kill(os.getpid(), signal.SIGINT)


def an_interrupt_of_one_stops_all(folder):
    _, _, result = train(folder / "interrupted", UPPER, callbacks=[_Interrupt()], interruptible=True)
    assert result.interrupted and result.steps == 3 and last_complete_checkpoint(folder / "interrupted")


def refusals(folder):
    for memory, sentence in (({"gradient_release": "exact"}, "memory.gradient_release is exact, which works in one"),
                             ({"optimizer_states": "host"}, "memory.optimizer_states is host"),
                             ({"prefix_weights": "host"}, "memory.prefix_weights is host")):
        with pytest.raises(CofituneError, match=sentence):
            train(folder / "refused", UPPER, memory=memory)
    with pytest.raises(CofituneError, match="2 processes train together, but the model is not sharded"):
        train(folder / "refused", UPPER, model=make_tiny_model())
    with pytest.raises(CofituneError, match="There are 1 training rows for 2 processes"):
        train(folder / "refused", UPPER, rows_=rows(1))
    mixed = make_tiny_model()
    mixed.lm_head.weight = torch.nn.Parameter(mixed.lm_head.weight.bfloat16())
    with pytest.raises(CofituneError, match="mixes the dtypes bfloat16, float32"):
        sharded.shard(mixed, torch.device("cpu"))


def agreements(folder):
    mine = sharded.rank()
    assert (mine, sharded.world_size()) == (int(os.environ["RANK"]), WORLD)
    assert sharded.total(mine + 1) == 3
    assert sharded.any_rank(mine == 1) and not sharded.any_rank(False)
    assert sharded.all_ranks(True) and not sharded.all_ranks(mine == 0)
    assert sharded.broadcast_object({"rank": mine}) == {"rank": 0}
    with sharded.rank_0_first():
        assert (mine == 0) is not (folder / "first").exists()
        (folder / "first").touch()


CASES = {
    **{name: (trained, name) for name in RUNS},
    **{f"resumed: {s}": (resumed, s, d) for s, d in (("fp32", torch.float32), ("int8", torch.bfloat16),
                                                     ("bf16_split", torch.bfloat16))[: 3 if FULL else 2]},
    **{case.__name__: (case,) for case in (
        agreements, loaded, scored, an_anchor_is_written_and_trained_with, frozen_layers_cost_nothing,
        cached_layers_are_never_gathered,
        one_rank_has_no_cached_rows, deltas_go_both_ways, a_trial_puts_the_shards_back, moved_frozen_tensors_are_seen,
        an_infinite_loss_stops_all, an_interrupt_of_one_stops_all, refusals)},
}


def work(folder):
    torch.set_num_threads(1)
    sharded.join(torch.device("cpu"))
    failures = {}
    for name, (case, *arguments) in CASES.items():
        os.environ["COFITUNE_PREFIX_CACHE"] = str(folder / "prefix-caches" / name)
        try:
            case(folder, *arguments)
            failures[name] = ""
        except Exception:
            failures[name] = traceback.format_exc()
        if sharded.any_rank(bool(failures[name])):
            print(name, failures[name], file=sys.stderr)
            break  # a rank that failed alone may have left the other in the midst of something
    (folder / f"rank{sharded.rank()}.json").write_text(json.dumps(failures))
    sharded.leave()


if __name__ == "__main__":
    gc.freeze()  # as conftest.py does
    work(Path(sys.argv[1]))
