"""The anchor: what the base writes, what it thought, where it is kept; and a training step with it."""

import random

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import make_tiny_model, make_tiny_tokenizer, write_jsonl

from cofitune_fast.anchor import AnchorSettings, open_anchor
from cofitune_fast.anchor.settings import _SHIPPED
from cofitune_fast.anchor.writing import write_texts
from cofitune_fast.data import Encoded, encode_prompt
from cofitune_fast.errors import CofituneError
from cofitune_fast.models.fingerprint import tensor_digests
from cofitune_fast.regions import BaseInfo, Region
from cofitune_fast.training import TrainOptions, train_region

PROMPTS = [[{"role": "user", "content": text}] for text in ("Hello", "Tell me of the sea.", "Why?")]
WEIGHT, ROWS = 0.7, 2


def settings(tmp_path, **values):
    file = tmp_path / "prompts.txt"
    file.write_text("Hello\n\nTell me of the sea.\n  Why?  \n", encoding="utf-8")
    return AnchorSettings(**{"weight": WEIGHT, "rows": ROWS, "texts": 5, "tokens": 6, "prompts": str(file),
                             "top_k": 8, **values})


def opened(tmp_path, model=None, **values):
    return open_anchor(model or make_tiny_model(), make_tiny_tokenizer(), settings(tmp_path, **values), "print",
                       folder=tmp_path / "anchor")


def test_the_shipped_prompts_are_many_and_no_two_alike():
    lines = _SHIPPED.read_text(encoding="utf-8").splitlines()
    assert len(lines) >= 192 and len(set(lines)) == len(lines)
    assert AnchorSettings().read_prompts()[0] == [{"role": "user", "content": lines[0]}]


def test_texts_follow_the_prompts_in_turn_and_disturb_nobody():
    model, tokenizer = make_tiny_model().train(), make_tiny_tokenizer()
    plain = write_texts(make_tiny_model(), tokenizer, PROMPTS, texts=7, tokens=6, temperature=1.0, seed=3)
    model.generation_config.do_sample, model.generation_config.repetition_penalty = False, 9.0  # not the anchor's
    options = {"texts": 7, "tokens": 6, "temperature": 1.0, "seed": 3}
    torch.manual_seed(11)
    before = torch.random.get_rng_state()
    written = write_texts(model, tokenizer, PROMPTS, **options)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(module.training for module in model.modules())
    for number, row in enumerate(written):
        assert row.input_ids[: row.response_start] == encode_prompt(tokenizer, PROMPTS[number % 3])
        response = row.input_ids[row.response_start :]
        assert 1 <= len(response) <= 6
        assert 2 not in response[:-1]  # nothing after the end of turn
    assert len({tuple(row.input_ids) for row in written}) == 7
    assert written == plain
    assert write_texts(model, tokenizer, PROMPTS, **options) == written
    assert write_texts(model, tokenizer, PROMPTS, **{**options, "seed": 4}) != written


def test_the_distributions_are_those_of_the_base(tmp_path):
    model = make_tiny_model()
    anchor = opened(tmp_path, model)
    tails = []
    for row in anchor.rows:
        with torch.no_grad():
            log_p = torch.log_softmax(model(torch.tensor([row.input_ids])).logits[0].double(), -1)
        log_p = log_p[row.response_start - 1 : -1]
        top = log_p.topk(8)
        torch.testing.assert_close(row.log_p.double(), top.values, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(log_p.gather(1, row.ids.long()), top.values, rtol=1e-4, atol=1e-5)
        tails += (1 - top.values.exp().sum(-1)).tolist()
    assert anchor.tail == pytest.approx(sum(tails) / len(tails), rel=1e-4)
    assert anchor.tokens == len(tails)


def test_it_is_made_once_and_again_where_it_is_damaged(tmp_path, monkeypatch):
    from cofitune_fast.anchor import anchor as module

    first = opened(tmp_path)
    made, write = [], module.write_texts
    monkeypatch.setattr(module, "write_texts", lambda *a, **k: made.append(1) or write(*a, **k))
    again = opened(tmp_path, weight=0.1, rows=1)  # what is done with the texts is not theirs
    assert not made
    for one, other in zip(first.rows, again.rows, strict=True):
        assert (one.input_ids, one.response_start) == (other.input_ids, other.response_start)
        assert torch.equal(one.ids, other.ids) and torch.equal(one.log_p, other.log_p)
    assert opened(tmp_path, seed=1).rows[0].input_ids != first.rows[0].input_ids
    assert len(made) == 1
    for file in (tmp_path / "anchor").iterdir():
        file.write_bytes(file.read_bytes()[:200])
    assert opened(tmp_path).rows[2].input_ids == first.rows[2].input_ids
    assert len(made) == 2


def test_what_it_took_is_kept_and_unknown_of_a_file_without_it(tmp_path):
    made, found = opened(tmp_path), opened(tmp_path)
    assert found.seconds == round(made.seconds, 3) > 0
    (path,) = (tmp_path / "anchor").glob("*.safetensors")
    save_file(load_file(path), path, {"settings": "{}"})  # as an older version wrote it
    older = opened(tmp_path)
    assert older.seconds is None and [row.input_ids for row in older.rows] == [row.input_ids for row in made.rows]


def test_prompts_of_the_task_and_of_a_data_file(tmp_path):
    file = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "One?", "completion": "1"}])
    assert settings(tmp_path, prompts=str(file)).read_prompts() == [[{"role": "user", "content": "One?"}]]
    assert settings(tmp_path, prompts="task").read_prompts(PROMPTS) == PROMPTS
    with pytest.raises(CofituneError, match=r"there are no training rows; set data\.train"):
        settings(tmp_path, prompts="task").read_prompts()


@pytest.mark.parametrize(("values", "sentence"), [
    ({"weight": -1.0}, r"anchor\.weight is -1\.0; it must be at least 0"),
    ({"weight": float("nan")}, r"anchor\.weight is nan"),
    ({"rows": 0}, r"anchor\.rows is 0; it must be at least 1"),
    ({"tokens": 1}, r"anchor\.tokens is 1; it must be at least 2"),
    ({"temperature": 0.0}, r"anchor\.temperature is 0\.0; it must be above 0"),
])
def test_bad_settings(values, sentence):
    with pytest.raises(CofituneError, match=sentence):
        AnchorSettings(**values)


@pytest.mark.parametrize(("content", "sentence"), [(None, "cannot be read"), (b"\n \n", "hold no line of text"),
                                                   (b"\xff\xfe\x00", "cannot be read")])
def test_bad_prompt_files(tmp_path, content, sentence):
    file = tmp_path / "p.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(CofituneError, match=sentence):
        AnchorSettings(prompts=str(file)).read_prompts()


# A training with it ---------------------------------------------------------------------------------------------------

REGIONS = {"region": Region.parse("ffn.up+ffn.down@50%-100%"), "all": Region.full()}


def task_rows():
    generator = random.Random(0)
    return [Encoded([generator.randrange(4, 260) for _ in range(length)], length // 2) for length in (9, 12, 7, 10)]


def disturbed():
    """A model that has left its base, so that there is a divergence to train away."""
    model = make_tiny_model()
    with torch.no_grad():
        model.model.layers[3].mlp.down_proj.weight.normal_(std=0.5, generator=torch.Generator().manual_seed(2))
    return model


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("packing", ["on", "off"])
@pytest.mark.parametrize("region", REGIONS)
def test_a_step_is_what_plain_torch_does(tmp_path, region, packing, accumulation):
    """CE of the task's response tokens plus the weight times the divergence on the anchor's rows, AdamW by the book,
    with an eps that does not blow up the last bits of small gradients."""
    from cofitune_fast.training import MemorySettings

    weight = 700.0  # the random model's distributions are nearly even, and divergences small
    anchor, data = opened(tmp_path, texts=ROWS, weight=weight), task_rows()
    expected, model = disturbed(), disturbed()
    params = [parameter for _, parameter in REGIONS[region].apply(expected)]

    def log_q(row):
        logits = expected(torch.tensor([row.input_ids])).logits[0].double()
        return torch.log_softmax(logits, -1)[row.response_start - 1 : -1]

    nll = torch.cat([-log_q(row).gather(1, torch.tensor(row.input_ids[row.response_start :])[:, None])
                     for row in data])
    kl = []
    for row in anchor.rows:
        p, log_top = row.log_p.double().exp(), log_q(row).gather(1, row.ids.long())
        tails = [1 - p.sum(-1), 1 - log_top.exp().sum(-1)]
        kl.append((p * (row.log_p - log_top)).sum(-1) + tails[0] * (tails[0] / tails[1]).log())
    kl = torch.cat(kl).mean()
    loss = nll.mean() + weight * kl
    loss.backward()
    torch.optim.AdamW(params, lr=1e-2, betas=(0.9, 0.95), eps=1e-2, weight_decay=0.0).step()
    result = train_region(
        model, REGIONS[region], data, tmp_path / "run",
        {"learning_rate": 1e-2, "per_device_train_batch_size": 4 // accumulation, "adam_epsilon": 1e-2, "seed": 3,
         "gradient_accumulation_steps": accumulation, "lr_scheduler_type": "constant", "warmup_steps": 0,
         "max_grad_norm": 0.0},
        TrainOptions(anchor=anchor, memory=MemorySettings(packing=packing)),
        base=BaseInfo.of(model, "tiny"), pad_token_id=0,
    )
    assert result.steps == 1
    assert result.anchor_kl == pytest.approx(kl.item(), rel=1e-4)
    assert weight * result.anchor_kl > 0.1
    assert result.loss == pytest.approx(loss.item(), rel=1e-4)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, dict(expected.named_parameters())[name], rtol=1e-4, atol=2e-6)


def test_each_batch_has_its_rows_of_the_anchor_in_turn():
    from cofitune_fast.training.batching import FixedBatches

    lengths, anchor = [5] * 12, range(12, 17)
    batches = FixedBatches(lengths, 4, 0, by_length=False, anchor=anchor, anchor_rows=2).batches
    assert all(len([index for index in batch if index < 12]) == 4 for batch in batches)
    companions = [[index for index in batch if index >= 12] for batch in batches]
    assert all(len(set(pair)) == 2 for pair in companions)
    assert sorted([*companions[0], *companions[1], companions[2][0]]) == list(anchor)  # all, before one comes again
    ranks = [FixedBatches(lengths, 2, 0, by_length=False, rank=rank, ranks=2, anchor=anchor, anchor_rows=2).batches
             for rank in (0, 1)]
    assert all(not {i for i in one if i >= 12} & {i for i in other if i >= 12}
               for one, other in zip(*ranks, strict=True))


def test_resume_is_the_run_without_a_break_bit_for_bit(tmp_path):
    anchor = opened(tmp_path)
    training = {"learning_rate": 1e-2, "per_device_train_batch_size": 2, "num_train_epochs": 2, "seed": 3,
                "save_strategy": "steps", "save_steps": 2, "logging_steps": 1}
    found = []
    for name, resume in (("whole", None), ("resumed", str(tmp_path / "whole" / "checkpoint-2"))):
        model = make_tiny_model()
        train_region(model, REGIONS["region"], task_rows(), tmp_path / name,
                     {**training, "resume_from_checkpoint": resume}, TrainOptions(anchor=anchor),
                     base=BaseInfo("tiny", "print", "float32"), pad_token_id=0)
        found.append(tensor_digests(model))
    assert found[0] == found[1]


def test_an_unknown_loss_is_refused():
    with pytest.raises(CofituneError, match=r"The loss is 'focal'; choose one of ce, dft, eaft\."):
        TrainOptions(loss="focal")


def test_a_runs_identity_has_the_prompts_content_and_not_their_path(tmp_path):
    here, there, other = (tmp_path / name / "prompts.txt" for name in ("here", "there", "other"))
    for file, text in ((here, "One?\nTwo?\n"), (there, "One?\nTwo?\n"), (other, "One?\nThree?\n")):
        file.parent.mkdir()
        file.write_text(text)
    of_here, of_there, of_other = (settings(tmp_path, prompts=str(file)).identity() for file in (here, there, other))
    assert of_here == of_there != of_other and str(tmp_path) not in str(of_here)
    assert settings(tmp_path, prompts="general").identity()["prompts"] == "general"
    assert settings(tmp_path, weight=0.0, prompts="no.txt").identity() == {"weight": 0.0}
