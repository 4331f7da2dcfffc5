"""Change per cell, variants in and out of the base, and the whole measurement of a tiny model."""

from __future__ import annotations

import pytest
import torch
from tiny import make_tiny_model, write_jsonl

from cofitune_fast.analysis import analyze, find_variants
from cofitune_fast.analysis.change import weight_change
from cofitune_fast.analysis.variants import applied
from cofitune_fast.errors import CofituneError
from cofitune_fast.models.fingerprint import base_fingerprint, named_parameters
from cofitune_fast.regions import BaseInfo, Region, resolve_layout, save_delta
from cofitune_fast.scoring import read_task, score_task

ROWS = [{"prompt": f"say {letter}", "completion": letter.upper() * (2 + i)} for i, letter in enumerate("abcd")]


@pytest.fixture
def task(tmp_path):
    return read_task(write_jsonl(tmp_path / "rows.jsonl", ROWS))


def saved_delta(model, region: str, path, seed: int = 0):
    """A delta whose region's tensors moved at random; the model comes back as it was."""
    base = BaseInfo.of(model, "tiny")
    kept = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    torch.manual_seed(seed)
    with torch.no_grad():
        for _, weight in Region.parse(region).parameters(model):
            weight.add_(0.1 * torch.randn_like(weight))
    moved = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    save_delta(model, region, path, base=base)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(kept[name])
    return kept, moved


def test_the_change_of_each_cell_is_its_frobenius_norm_with_the_bias():
    model = make_tiny_model("qwen2")
    before = {name: weight.detach().clone() for name, weight in named_parameters(model)}
    torch.manual_seed(3)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    change = weight_change(model, resolve_layout(model), before)
    after = dict(named_parameters(model))
    whole = sum((after[name] - old).double().square().sum() for name, old in before.items())
    expected_shares = 0.0
    for role, names in {"attn.q": ("self_attn.q_proj.weight", "self_attn.q_proj.bias"),
                        "ffn.down": ("mlp.down_proj.weight",)}.items():
        for layer in range(4):
            keys = [f"model.layers.{layer}.{name}" for name in names]
            new, old = (torch.cat([source[key].flatten() for key in keys]) for source in (after, before))
            assert change["relative"][role][layer] == pytest.approx(((new - old).norm() / old.norm()).item(), rel=1e-5)
            share = ((new - old).double().square().sum() / whole).item()
            assert change["share"][role][layer] == pytest.approx(share, rel=1e-5)
            expected_shares += share
    total = sum(sum(row) for row in change["share"].values()) + change["rest"]["share"]
    assert total == pytest.approx(1) and change["rest"]["share"] > 0
    size = sum(old.double().square().sum() for old in before.values())
    assert change["total"] == pytest.approx((whole / size).sqrt().item(), rel=1e-5)


def test_what_is_not_named_before_did_not_change():
    model = make_tiny_model()
    change = weight_change(model, resolve_layout(model), {})
    assert change["total"] == 0 and change["rest"] == {"relative": 0.0, "share": 0.0}
    assert change["relative"] == change["share"] == {role: [0.0] * 4 for role in resolve_layout(model).roles}


def test_a_variant_is_in_the_base_only_inside_the_block(tmp_path, tiny_model):
    kept, moved = saved_delta(tiny_model, "ffn@1-2", tmp_path / "run" / "delta")
    (variant,) = find_variants([tmp_path / "run" / "delta"])
    assert (variant.name, variant.region) == ("run", "ffn@1-2")
    with applied(tiny_model, variant, base_fingerprint(tiny_model)) as before:
        assert len(before) == 6
        for name, weight in tiny_model.named_parameters():
            torch.testing.assert_close(weight.detach(), moved[name], rtol=0, atol=0)
    for name, weight in tiny_model.named_parameters():
        torch.testing.assert_close(weight.detach(), kept[name], rtol=0, atol=0)


def test_a_model_folder_is_a_variant_and_a_foreign_one_is_refused(tmp_path, tiny_model, tiny_tokenizer):
    other = make_tiny_model(seed=5)
    for name, model in (("tuned", other), ("foreign", make_tiny_model("qwen2"))):
        model.save_pretrained(tmp_path / name)
        tiny_tokenizer.save_pretrained(tmp_path / name)
    tuned, foreign = find_variants([tmp_path / "tuned", tmp_path / "foreign"])
    kept = {name: weight.detach().clone() for name, weight in tiny_model.named_parameters()}
    with applied(tiny_model, tuned, ""):
        for (_, mine), theirs in zip(tiny_model.named_parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=0)
    with pytest.raises(CofituneError, match=r"is no fine-tuning of .* other names or shapes"), applied(
            tiny_model, foreign, ""):
        pass
    for name, weight in tiny_model.named_parameters():
        torch.testing.assert_close(weight.detach(), kept[name], rtol=0, atol=0)


def test_names_come_from_folders_and_are_each_its_own(tmp_path, tiny_model):
    for path in ("a/delta", "b/a", "base"):
        saved_delta(tiny_model, "ffn@0", tmp_path / path)
    names = [variant.name for variant in find_variants([tmp_path / "a/delta", tmp_path / "b/a", tmp_path / "base"])]
    assert names == ["a", "a (2)", "base (2)"]
    with pytest.raises(CofituneError, match="give --delta FOLDER"):
        find_variants([])
    with pytest.raises(CofituneError, match="is not a delta"):
        find_variants([tmp_path])


def test_a_measurement_agrees_with_the_scores_and_leaves_the_base_alone(tmp_path, tiny_model, tiny_tokenizer, task):
    saved_delta(tiny_model, "ffn@1-2", tmp_path / "part")
    saved_delta(tiny_model, "full", tmp_path / "full", seed=1)
    fingerprint = base_fingerprint(tiny_model)
    told: list[str] = []
    tiny_model.train()
    measured = analyze(tiny_model, tiny_tokenizer, task, find_variants([tmp_path / "part", tmp_path / "full"]),
                       BaseInfo.of(tiny_model, "tiny"), tell=told.append)
    assert tiny_model.training and base_fingerprint(tiny_model) == fingerprint
    assert told == ["base", "part", "full"] == [model["name"] for model in measured["models"]]
    score = score_task(tiny_model, tiny_tokenizer, task)
    base, part, full = measured["models"]
    assert base["lens"]["nll"][-1] == pytest.approx(score.metrics["nll"], rel=1e-5)
    assert base["lens"]["nll_se"][-1] == pytest.approx(score.metrics["nll_se"], rel=1e-4)
    assert base["change"] is None and base["readable"]["gained"] == {"counts": [0] * 5, "never": 0}
    assert part["lens"]["nll"][:2] == base["lens"]["nll"][:2]  # the embedding and layer 0 lie below the region
    assert part["lens"]["nll"][2] != base["lens"]["nll"][2]
    assert part["change"]["rest"]["share"] == 0 < full["change"]["rest"]["share"]
    for model in measured["models"]:
        assert model["lens"]["kl"][-1] == 0 and min(model["lens"]["kl"]) >= -1e-6
        counts = model["readable"]["all"]
        assert sum(counts["counts"]) + counts["never"] == measured["data"]["tokens"]
        assert sum(counts["counts"]) / measured["data"]["tokens"] == pytest.approx(model["lens"]["top1"][-1])
        direct = model["direct"]
        parts = (direct["embedding"], *direct["attention"], *direct["ffn"], direct["rounding"])
        assert direct["total"] == pytest.approx(sum(parts))


def test_the_rival_of_every_model_is_the_bases(tmp_path, tiny_model, tiny_tokenizer, task):
    kept, moved = saved_delta(tiny_model, "full", tmp_path / "full")
    measured = analyze(tiny_model, tiny_tokenizer, task, find_variants([tmp_path / "full"]),
                       BaseInfo.of(tiny_model, "tiny"))

    def lead(weights, rivals=None):
        from cofitune_fast.data import collate, encode_examples

        batch = collate(encode_examples(task.items, tiny_tokenizer), 0)
        tiny_model.load_state_dict(weights, strict=False)
        with torch.no_grad():
            logits = tiny_model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
        chosen = batch["labels"][:, 1:] != -100
        logits, targets = logits[chosen], batch["labels"][:, 1:][chosen][:, None]
        if rivals is None:
            rivals = logits.scatter(1, targets, float("-inf")).argmax(1, keepdim=True)
        return (logits.gather(1, targets) - logits.gather(1, rivals)).mean().item(), rivals

    before, rivals = lead(kept)
    after, _ = lead(moved, rivals)
    assert [model["direct"]["total"] for model in measured["models"]] == pytest.approx([before, after], rel=1e-4)


def test_a_delta_of_another_base_and_a_task_of_choices_are_refused(tmp_path, tiny_model, tiny_tokenizer, task):
    saved_delta(make_tiny_model(seed=9), "ffn@1", tmp_path / "foreign")
    variants, base = find_variants([tmp_path / "foreign"]), BaseInfo.of(tiny_model, "tiny")
    with pytest.raises(CofituneError, match="belongs to the base"):
        analyze(tiny_model, tiny_tokenizer, task, variants, base)
    choices = read_task(write_jsonl(tmp_path / "choice.jsonl", [
        {"query": "is it", "choices": ["yes", "no"], "gold": 0}] * 2))
    with pytest.raises(CofituneError, match="choices and no responses"):
        analyze(tiny_model, tiny_tokenizer, choices, variants, base)


def test_weights_that_are_not_numbers_are_named(tiny_model, tiny_tokenizer, task):
    with torch.no_grad():
        tiny_model.model.layers[2].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(CofituneError, match="not finite"):
        analyze(tiny_model, tiny_tokenizer, task, [], BaseInfo.of(tiny_model, "tiny"))


def test_the_change_of_a_part_of_a_fused_projection_is_its_roles():
    from families import tiny_family

    from cofitune_fast.regions import Region, resolve_layout, tensors_named

    model = tiny_family("phi3")
    layout, (name,) = resolve_layout(model), [name for name, _ in Region.parse("attn.k@2").parameters(model)]
    before = {name: tensors_named(model, [name])[name].detach().clone()}
    with torch.no_grad():
        tensors_named(model, [name])[name].mul_(1.5)
    change = weight_change(model, layout, before)
    assert change["relative"]["attn.k"] == pytest.approx([0, 0, 0.5, 0]) and change["share"]["attn.k"] == [0, 0, 1.0, 0]
    assert all(set(change["relative"][role]) == {0.0} for role in layout.roles if role != "attn.k")
