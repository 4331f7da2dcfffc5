"""Training a region: against plain PyTorch, with proof of the frozen part, resumed, interrupted, diverging."""

import json
import os
import signal

import pytest
import torch
from families import tiny_family
from tiny import make_tiny_model

from cofitune_fast.data import Encoded, collate
from cofitune_fast.errors import CofituneError
from cofitune_fast.models.fingerprint import named_parameters, tensor_digests
from cofitune_fast.ops._storage import STORAGES
from cofitune_fast.regions import BaseInfo, Region, read_delta
from cofitune_fast.training import LossNotFinite, TrainOptions, train_region
from cofitune_fast.training.checkpoint import last_complete_checkpoint, random_states, set_random_states

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

    class Stop(Exception):
        pass

    from transformers import TrainerCallback

    class Crash(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 3:
                raise Stop

    base = BaseInfo.of(broken, "tiny")
    with pytest.raises(Stop):
        run(broken, tmp_path / "broken", training=options, storage=storage, callbacks=[Crash()])
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
                     "training_state.json"}
    assert set(read_delta(checkpoint).parameters) == {name for name, _ in REGION.parameters(tiny_model)}


def test_an_unfinished_checkpoint_is_passed_over(tmp_path, tiny_model):
    run(tiny_model, tmp_path, training={"save_strategy": "steps", "save_steps": 1, "save_total_limit": 2})
    newest = last_complete_checkpoint(tmp_path)
    assert newest.endswith("checkpoint-3")
    os.unlink(os.path.join(newest, "trainer_state.json"))
    assert last_complete_checkpoint(tmp_path).endswith("checkpoint-2")
    assert last_complete_checkpoint(tmp_path / "nowhere") is None


def test_ctrl_c_saves_a_checkpoint_after_the_step(tmp_path, tiny_model):
    from transformers import TrainerCallback

    class PressCtrlC(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 1:
                os.kill(os.getpid(), signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    result = run(tiny_model, tmp_path, callbacks=[PressCtrlC()], interruptible=True,
                 training={"num_train_epochs": 5})
    assert result.interrupted and result.steps == 2
    assert last_complete_checkpoint(tmp_path).endswith("checkpoint-2")
    assert signal.getsignal(signal.SIGINT) is handler


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


def test_a_cut_off_optimizer_state_is_refused(tmp_path, tiny_model):
    run(tiny_model, tmp_path, training={"save_strategy": "steps", "save_steps": 3})
    file = tmp_path / "checkpoint-3" / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(CofituneError, match=r"optimizer state .*cannot be read"):
        run(make_tiny_model(), tmp_path, training={"resume_from_checkpoint": True, "num_train_epochs": 2})


def test_random_states_go_through_json():
    states = json.loads(json.dumps(random_states()))
    first = (torch.rand(3), __import__("random").random(), __import__("numpy").random.rand())
    set_random_states(states)
    second = (torch.rand(3), __import__("random").random(), __import__("numpy").random.rand())
    torch.testing.assert_close(first[0], second[0], rtol=0, atol=0)
    assert first[1:] == second[1:]
