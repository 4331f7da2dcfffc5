"""Training a region: against plain PyTorch, with proof of the frozen part, resumed, interrupted, diverging."""

import json
import os
import shutil
import signal

import pytest
import torch
from families import tiny_family
from tiny import make_tiny_model
from transformers import TrainerCallback

from cofitune_fast.data import Encoded, collate
from cofitune_fast.errors import CofituneError
from cofitune_fast.models.fingerprint import named_parameters, tensor_digests
from cofitune_fast.ops._storage import STORAGES
from cofitune_fast.regions import BaseInfo, Region, read_delta
from cofitune_fast.signals import Stopped, exit_status
from cofitune_fast.training import LossNotFinite, MemorySettings, TrainOptions, last_complete_checkpoint, train_region
from cofitune_fast.training.callbacks import Saves
from cofitune_fast.training.checkpoint import Checkpoint, random_states, set_random_states

REGION = Region.parse("ffn.up+ffn.down@50%-100%")


def rows(count=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(count):
        length = int(torch.randint(6, 14, (), generator=generator))
        made.append(Encoded(torch.randint(4, 260, (length,), generator=generator).tolist(), length // 2))
    return made


WATCHING = ("callbacks", "on_last_good", "interruptible", "eval_rows")


def run(model, folder, region=REGION, data=None, **options):
    watching = {key: options.pop(key) for key in WATCHING if key in options}
    training = {"learning_rate": 1e-2, "per_device_train_batch_size": 4, "seed": 3, **options.pop("training", {})}
    return train_region(
        model, region, data or rows(), folder, training, TrainOptions(**options), base=BaseInfo.of(model, "tiny"),
        pad_token_id=0, **watching,
    )


def state(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(("family", "region"), [("llama", str(REGION)), ("phi3", "attn.k+ffn.up@2;attn.o@1")])
def test_one_step_is_what_plain_torch_does(tmp_path, family, region):
    """One batch, one step: cross entropy of the response tokens, clip, AdamW, by the book.

    eps is large enough that the last bits of tiny gradients, which Adam would blow up to a whole step, do not show.
    """
    make = make_tiny_model if family == "llama" else tiny_family
    model, expected, data = make(family), make(family), rows(4)
    params = [p for _, p in Region.parse(region).apply(expected)]
    batch = collate(data, 0)
    logits = expected(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())
    loss.backward()
    torch.nn.utils.clip_grad_norm_(params, 0.05)
    torch.optim.AdamW(params, lr=1e-2, betas=(0.9, 0.95), eps=1e-4, weight_decay=1.0).step()
    result = run(model, tmp_path, Region.parse(region), data=data, training={
        "adam_epsilon": 1e-4,
        "weight_decay": 1.0, "max_grad_norm": 0.05, "lr_scheduler_type": "constant", "warmup_steps": 0,
    })
    assert result.steps == 1
    assert result.loss == pytest.approx(loss.item(), rel=1e-5)
    theirs = dict(named_parameters(expected))
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, theirs[name], rtol=1e-5, atol=1e-6)


def test_only_the_region_moves_and_the_result_says_so(tmp_path, tiny_model):
    before = tensor_digests(tiny_model)
    result = run(tiny_model, tmp_path)
    after = tensor_digests(tiny_model)
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {name for name, _ in REGION.parameters(tiny_model)}
    assert result.frozen_tensors == len(before) - len(changed)
    assert result.trained_parameters == 2 * 2 * 32 * 48
    assert all(parameter.grad is None for parameter in tiny_model.parameters())


def test_gradient_accumulation_equals_one_large_batch(tmp_path):
    options = {"lr_scheduler_type": "constant", "warmup_steps": 0, "adam_epsilon": 1e-4}  # as in the first test
    whole, split = make_tiny_model(), make_tiny_model()
    run(whole, tmp_path / "a", data=rows(8), training={**options, "per_device_train_batch_size": 8})
    run(split, tmp_path / "b", data=rows(8), training={
        **options, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 4})
    for name, parameter in whole.named_parameters():
        torch.testing.assert_close(dict(split.named_parameters())[name], parameter, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("storage", STORAGES)
def test_resume_is_the_run_without_a_break_bit_for_bit(tmp_path, storage):
    dtype = STORAGES[storage].weight
    through, broken = make_tiny_model(dtype=dtype), make_tiny_model(dtype=dtype)
    options = {"num_train_epochs": 2, "save_strategy": "steps", "save_steps": 2}
    run(through, tmp_path / "through", training=options, storage=storage)

    base = BaseInfo.of(broken, "tiny")
    with pytest.raises(ZeroDivisionError):
        run(broken, tmp_path / "broken", training=options, storage=storage, callbacks=[Crash(3)])
    fresh = make_tiny_model(dtype=dtype)
    train_region(
        fresh, REGION, rows(), tmp_path / "broken",
        {"learning_rate": 1e-2, "per_device_train_batch_size": 4, "seed": 3, **options, "resume_from_checkpoint": True},
        TrainOptions(storage=storage), base=base, pad_token_id=0,
    )
    assert tensor_digests(fresh) == tensor_digests(through)


def test_a_checkpoint_has_no_pickle_and_no_frozen_weights(tmp_path, tiny_model):
    run(tiny_model, tmp_path, training={"save_strategy": "steps", "save_steps": 3})
    checkpoint = tmp_path / "checkpoint-3"
    names = {path.name for path in checkpoint.iterdir()}
    assert names == {"README.md", "cofitune.json", "delta.safetensors", "optimizer.safetensors", "trainer_state.json",
                     "training_state.json", "checkpoint.json"}
    assert set(read_delta(checkpoint).parameters) == {name for name, _ in REGION.parameters(tiny_model)}


def test_without_a_checkpoint_there_is_none(tmp_path):
    assert last_complete_checkpoint(tmp_path / "nowhere") is None


class Press(TrainerCallback):
    """Send this process a signal during a step."""

    def __init__(self, number, step=1, times=1):
        self.number, self.step, self.times = number, step, times

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            for _ in range(self.times):
                os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_saves_a_checkpoint_after_the_step(tmp_path, tiny_model, number):
    handler = signal.getsignal(number)
    result = run(tiny_model, tmp_path, callbacks=[Press(number)], interruptible=True,
                 training={"num_train_epochs": 5, "save_only_model": True})
    assert result.interrupted and result.steps == 2 and result.signal == number
    assert last_complete_checkpoint(tmp_path).endswith("checkpoint-2")
    assert signal.getsignal(number) is handler


def test_a_signal_in_the_last_step_lets_the_run_finish(tmp_path, tiny_model):
    result = run(tiny_model, tmp_path, callbacks=[Press(signal.SIGTERM, 2)], interruptible=True)
    assert not result.interrupted and result.steps == 3 and not list(tmp_path.glob("checkpoint-*"))


def test_the_second_signal_ends_at_once(tmp_path, tiny_model):
    with pytest.raises(Stopped) as stopped:
        run(tiny_model, tmp_path, callbacks=[Press(signal.SIGTERM, times=2)], interruptible=True)
    assert exit_status(stopped.value) == 143 and not list(tmp_path.glob("checkpoint-*"))


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_weights(tmp_path, tiny_model):
    from transformers import TrainerCallback

    class Poison(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **kwargs):
            if state.global_step == 2:
                model.get_decoder().norm.register_forward_hook(lambda module, inputs, output: output * float("nan"))

    kept = []
    with pytest.raises(LossNotFinite, match=r"loss is nan at step 3; training stops.*learning_rate"):
        run(tiny_model, tmp_path, callbacks=[Poison()], on_last_good=lambda: kept.append(state(tiny_model)))
    assert kept and all(tensor.isfinite().all() for tensor in kept[0].values())


def test_masked_rows_stay_as_they_were(tmp_path, tiny_model):
    name = "model.layers.3.mlp.up_proj.weight"
    mask = torch.ones(48, 1)
    mask[:10] = 0
    before = state(tiny_model)[name]
    run(tiny_model, tmp_path, masks={name: mask})
    after = state(tiny_model)[name]
    torch.testing.assert_close(after[:10], before[:10], rtol=0, atol=0)
    assert (after[10:] != before[10:]).any(1).all()


def test_checkpointing_ends_the_backward_at_the_region(tmp_path):
    """No gradient flows into the layer below the region, and the result is that of a run without checkpointing."""
    plain, checkpointed = make_tiny_model(), make_tiny_model()
    run(plain, tmp_path / "a")
    reached = []
    checkpointed.model.layers[0].mlp.down_proj.register_full_backward_hook(lambda *_: reached.append(1))
    run(checkpointed, tmp_path / "b", training={"gradient_checkpointing": True})
    assert not reached
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(dict(checkpointed.named_parameters())[name], parameter)


@pytest.mark.parametrize("values, words", [
    ({"learning_rate": -1e-4}, "training.learning_rate is -0.0001; it must be a number above 0"),
    ({"learning_rat": 1e-4}, r"Unknown key training.learning_rat; did you mean training.learning_rate\?"),
    ({"lr_scheduler_type": "sawtooth"}, "lr_scheduler_type is 'sawtooth'; choose one of linear"),
    ({"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}, "use_reentrant=True"),
])
def test_bad_training_arguments(tmp_path, tiny_model, values, words):
    with pytest.raises(CofituneError, match=words):
        run(tiny_model, tmp_path, training=values)


def _cut(path):
    path.write_bytes(path.read_bytes()[:50])


def _empty(path):
    path.write_bytes(b"")


def _flip(path):
    content = bytearray(path.read_bytes())
    content[-9] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize(("name", "damage"), [
    ("trainer_state.json", _empty), ("trainer_state.json", _cut), ("optimizer.safetensors", _cut),
    ("optimizer.safetensors", _flip), ("training_state.json", _flip), ("delta.safetensors", _flip),
    ("checkpoint.json", _cut), ("checkpoint.json", os.unlink), ("trainer_state.json", os.unlink),
], ids=lambda value: getattr(value, "__name__", value))
def test_a_damaged_checkpoint_is_none_and_the_one_before_is_taken(checkpointed, tmp_path, name, damage):
    folder = tmp_path / "run"
    shutil.copytree(checkpointed, folder)
    assert last_complete_checkpoint(folder) == str(folder / "checkpoint-3")
    damage(folder / "checkpoint-3" / name)
    assert last_complete_checkpoint(folder) == str(folder / "checkpoint-2")
    with pytest.raises(CofituneError, match="checkpoint-3 is incomplete, damaged or of an earlier version"):
        run(make_tiny_model(), folder, training={"resume_from_checkpoint": str(folder / "checkpoint-3")})


@pytest.fixture(scope="module")
def checkpointed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpointed")
    run(make_tiny_model(), folder, training={"save_strategy": "steps", "save_steps": 1, "save_total_limit": 2})
    return folder


def test_old_checkpoints_go_by_their_steps_also_when_the_clock_is_set_back(tmp_path, tiny_model):
    class SetBack(TrainerCallback):
        """Give each new checkpoint an earlier time than those before."""

        def on_save(self, args, state, control, **kwargs):
            os.utime(tmp_path / f"checkpoint-{state.global_step}", (10**9 - 100 * state.global_step,) * 2)

    run(tiny_model, tmp_path, callbacks=[SetBack()],
        training={"num_train_epochs": 2, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 2})
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-5", "checkpoint-6"]


@pytest.mark.parametrize(("change", "words"), [
    ({"training": {"learning_rate": 2e-2}}, "training.learning_rate was 0.01, is 0.02"),
    ({"data": rows(seed=1)}, "the rows are other ones"),
    ({"loss": "dft"}, 'loss was "ce", is "dft"'),
    ({"masks": {"model.layers.3.mlp.up_proj.weight": torch.zeros(48, 1)}}, 'mask_mode was not set, is "update"'),
    ({"region": Region.parse("ffn.up@3")}, "region was"),
], ids=lambda value: value if isinstance(value, str) else "")
def test_a_checkpoint_of_another_run_is_refused_by_the_difference(checkpointed, change, words):
    training = {"resume_from_checkpoint": True, **change.pop("training", {})}
    with pytest.raises(CofituneError, match="is of another run") as refused:
        run(make_tiny_model(), checkpointed, training=training, **change)
    assert words in str(refused.value)


def test_what_has_no_influence_may_change_and_the_new_cadence_counts(checkpointed, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(checkpointed, folder)
    shutil.rmtree(folder / "checkpoint-3")
    result = run(make_tiny_model(), folder, training={
        "resume_from_checkpoint": True, "save_strategy": "no", "logging_steps": 1, "checkpoint_minutes": 0})
    assert result.steps == 3 and not (folder / "checkpoint-3").exists()


class Crash(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise ZeroDivisionError


def test_checkpoints_by_time_carry_the_figures_and_only_the_newest_is_kept(tmp_path):
    """Each step is due. The resumed run has the bits and the figures of the run without a break."""
    through, fresh = make_tiny_model(), make_tiny_model()
    whole = run(through, tmp_path / "through", training={"num_train_epochs": 2})
    with pytest.raises(ZeroDivisionError):
        run(make_tiny_model(), tmp_path / "broken", callbacks=[Saves(0.0), Crash(4)], training={"num_train_epochs": 2})
    assert [path.name for path in (tmp_path / "broken").iterdir()] == ["checkpoint-4"]
    resumed = run(fresh, tmp_path / "broken", training={"num_train_epochs": 2, "resume_from_checkpoint": True})
    assert tensor_digests(fresh) == tensor_digests(through)
    assert (resumed.loss, resumed.steps, resumed.tokens) == (whole.loss, whole.steps, whole.tokens)
    assert resumed.seconds > Checkpoint.read(tmp_path / "broken" / "checkpoint-4").figures["seconds"] > 0


@pytest.mark.parametrize("strategy", ["epoch", "best"])
def test_a_stop_between_evaluations_chooses_the_same_weights(tmp_path, strategy):
    """The signal comes in the middle of an epoch, or after its last step; neither evaluation nor patience is lost."""
    options = {"num_train_epochs": 3, "eval_strategy": "epoch", "save_strategy": strategy, "early_stopping_patience": 2,
               "load_best_model_at_end": True, "metric_for_best_model": "loss"}
    through = make_tiny_model()
    whole = run(through, tmp_path / "through", eval_rows=rows(4, seed=2), training=options)
    for step in (1, 2):
        model, folder = make_tiny_model(), tmp_path / f"broken-{step}"
        stopped = run(model, folder, eval_rows=rows(4, seed=2), training=options, interruptible=True,
                      callbacks=[Press(signal.SIGTERM, step)])
        assert stopped.interrupted and stopped.signal == signal.SIGTERM and stopped.steps == step + 1
        fresh = make_tiny_model()
        resumed = run(fresh, folder, eval_rows=rows(4, seed=2), training={**options, "resume_from_checkpoint": True})
        assert (resumed.best_step, resumed.eval_loss, resumed.steps) == (whole.best_step, whole.eval_loss, whole.steps)
        assert tensor_digests(fresh) == tensor_digests(through)


@pytest.mark.parametrize("release", ["off", "exact"])
def test_steps_without_finite_gradients_are_counted_and_a_run_of_them_alone_is_refused(tmp_path, release):
    memory = MemorySettings(gradient_release=release)
    result = run(make_tiny_model(), tmp_path / "a", callbacks=[Poison(1)], memory=memory)
    assert result.skipped_steps == 1 and any("1 of 3 steps changed nothing" in note for note in result.notes)
    with pytest.raises(LossNotFinite, match="The gradients of all 3 steps were not finite, so nothing was trained"):
        run(make_tiny_model(), tmp_path / "b", callbacks=[Poison(0, 1, 2)], memory=memory)


class Poison(TrainerCallback):
    """Make the gradients of some steps infinite; the loss stays finite."""

    def __init__(self, *steps):
        self.steps, self.step = steps, 0

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        for _, parameter in REGION.parameters(model):
            parameter.register_hook(lambda grad: grad * float("inf") if self.step in self.steps else grad)

    def on_step_begin(self, args, state, control, **kwargs):
        self.step = state.global_step


def test_random_states_go_through_json():
    states = json.loads(json.dumps(random_states()))
    first = (torch.rand(3), __import__("random").random(), __import__("numpy").random.rand())
    set_random_states(states)
    second = (torch.rand(3), __import__("random").random(), __import__("numpy").random.rand())
    torch.testing.assert_close(first[0], second[0], rtol=0, atol=0)
    assert first[1:] == second[1:]
