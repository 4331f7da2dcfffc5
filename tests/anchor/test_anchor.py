"""The anchor: what the base writes, what it thought, where it is kept; and a training step with it."""

import itertools

import pytest
import torch
from anchor.anchor_cases import (
    REGIONS,
    assert_same_weights,
    log_q,
    merged_kl,
    nll,
    response_places,
    step_by_the_book,
    step_of_ours,
    task_data,
)
from tiny import make_tiny_model, make_tiny_tokenizer, write_jsonl

from cofitune_fast.anchor import AnchorSettings, open_anchor
from cofitune_fast.anchor.settings import _SHIPPED
from cofitune_fast.anchor.writing import repeats, start_token, write_texts
from cofitune_fast.data import encode_example, encode_prompt, read_examples
from cofitune_fast.errors import CofituneError
from cofitune_fast.models.fingerprint import tensor_digests
from cofitune_fast.regions import BaseInfo
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


def test_prompts_of_the_task_and_of_a_data_file(tmp_path):
    file = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "One?", "completion": "1"}])
    assert settings(tmp_path, prompts=str(file)).read_prompts() == [[{"role": "user", "content": "One?"}]]
    assert settings(tmp_path, prompts="task").read_prompts(PROMPTS) == PROMPTS
    with pytest.raises(CofituneError, match=r"there are no training rows; set data\.train"):
        settings(tmp_path, prompts="task").read_prompts()


# Other texts ----------------------------------------------------------------------------------------------------------


def general_file(tmp_path, count=3):
    rows = [{"prompt": f"Count to {i}.", "completion": "one two three" * (i + 1)} for i in range(count)]
    return write_jsonl(tmp_path / "general.jsonl", rows)


def test_rows_of_a_file_are_the_texts_cut_and_used_in_turn(tmp_path):
    file = general_file(tmp_path)
    encoded = [encode_example(example, make_tiny_tokenizer()) for example in read_examples(file)]
    anchor = opened(tmp_path, source="rows", prompts=str(file), texts=7, tokens=20)
    allowed = [row.input_ids[: row.response_start + 20] for row in encoded]
    found = [row.input_ids for row in anchor.rows]
    assert sorted(found[:3]) == sorted(allowed) and found[3:] == [*found[:3], found[0]]
    assert {len(row.ids) for row in anchor.rows} == {14, 20} and anchor.note is None
    other = opened(tmp_path, source="rows", prompts=str(general_file(tmp_path, 4)), texts=2, tokens=20)
    assert len(list((tmp_path / "anchor").iterdir())) == 2 and len(other.rows) == 2
    identity = settings(tmp_path, source="rows", prompts=str(file)).identity()
    assert identity["source"] == "rows" and str(tmp_path) not in str(identity)
    general_file(tmp_path, 3)
    assert settings(tmp_path, source="rows", prompts=str(file)).identity() != identity
    with pytest.raises(CofituneError, match=r"anchor\.prompts must name a data file, whose responses are the texts\."):
        opened(tmp_path, source="rows", prompts="general")


def test_texts_without_a_prompt_begin_a_text_and_go_on_over_the_ends_of_turns(tmp_path):
    model = make_tiny_model()
    forced(model, {2: 3.0})  # the end of turn is likely
    rows = opened(tmp_path, model, source="free", texts=40, tokens=12).rows
    assert all(row.input_ids[0] == 1 and row.response_start == 1 and len(row.input_ids) == 13 for row in rows)
    assert any(2 in row.input_ids[:-1] for row in rows)
    plain = make_tiny_tokenizer()
    plain.chat_template = None  # now token 2 ends a text
    written = write_texts(model, plain, None, texts=40, tokens=12, temperature=1.0, seed=0)
    assert any(row.input_ids[-1] == 2 for row in written) and not any(2 in row.input_ids[:-1] for row in written)


def test_the_start_token_of_a_tokenizer_without_one_is_the_models_the_templates_or_the_end():
    model, tokenizer = make_tiny_model(), make_tiny_tokenizer()
    assert start_token(model, tokenizer) == 1
    tokenizer.bos_token = None
    model.generation_config.bos_token_id = None
    model.config.bos_token_id = 7
    assert start_token(model, tokenizer) == 7
    model.config.bos_token_id = None
    assert start_token(model, tokenizer) == 3
    tokenizer.chat_template = None
    assert start_token(model, tokenizer) == 2
    tokenizer.eos_token = None
    with pytest.raises(CofituneError, match="no token that a text begins with"):
        start_token(model, tokenizer)


def test_other_losses_take_the_same_file_and_later_fields_stay_out_of_identities(tmp_path):
    first = opened(tmp_path)
    for loss in ("ce", "reverse_kl"):
        assert opened(tmp_path, loss=loss).rows[3].input_ids == first.rows[3].input_ids
    assert len(list((tmp_path / "anchor").iterdir())) == 1
    identity = settings(tmp_path).identity()
    assert "loss" not in identity and "source" not in identity
    assert settings(tmp_path, loss="ce").identity() == {**identity, "loss": "ce"}


# Texts of no use ------------------------------------------------------------------------------------------------------


def forced(model, more):
    """Make the model write certain tokens: {token: what is added to its logit}."""
    def add(head, inputs, output):
        for token, value in more.items():
            output[..., token] += value
        return output

    model.lm_head.register_forward_hook(add)


@pytest.mark.parametrize(("tokens", "expected"), [
    ("aaaaaaaa", True), ("abababab", True), ("abcdefghabcdefghabcdefghabcdefgh", True), ("xyzaaaaaaa", True),
    ("", False), ("a", False), ("aaa", False), ("no, no", False), ("abcdefghijklm", False),
    ("the cat and the dog saw the bird aaaa", False),  # a part of it only
    ("abcdefghiabcdefghiabcdefghiabcdefghi", False),  # the cycle is longer than 8
])
def test_which_texts_repeat_themselves(tokens, expected):
    assert repeats([ord(letter) for letter in tokens]) is expected


@pytest.mark.parametrize(("more", "empty", "repetitive"), [({2: 50.0}, 5, 0), ({65: 50.0}, 0, 5)])
def test_a_base_that_writes_nothing_of_use_is_refused(tmp_path, more, empty, repetitive):
    model = make_tiny_model()
    forced(model, more)
    for _ in range(2):  # written now, and read from the file
        with pytest.raises(CofituneError, match=(
            rf"Of the 5 anchor texts that the base wrote {empty} are empty and {repetitive} repeat themselves, so "
            r"there is too little to hold the model to; give anchor\.prompts that the base answers, set "
            r"anchor\.source to rows, or anchor\.weight to 0\.")):
            opened(tmp_path, model)


def test_some_texts_of_no_use_are_reported_with_the_training(tmp_path):
    model = make_tiny_model()
    forced(model, {2: 4.0})  # it ends at once now and then
    anchor = opened(tmp_path, model, texts=30, weight=1.0)
    empty = sum(len(row.ids) == 1 and row.input_ids[-1] == 2 for row in anchor.rows)
    assert 0 < empty < 15 and anchor.flaws == (empty, 0)
    _, result = step_of_ours(tmp_path / "run", task_data(), "region", anchor=anchor)
    assert result.notes == [f"Of the anchor's 30 texts {empty} are empty and 0 repeat themselves; they hold little of "
                            "the base's behaviour."]
    assert opened(tmp_path).note is None


@pytest.mark.parametrize(("values", "sentence"), [
    ({"loss": "jsd"}, r"anchor\.loss is 'jsd'; choose one of kl, reverse_kl, ce\."),
    ({"source": "rows", "prompts": "task"}, "the task's own rows are no anchor"),
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

@pytest.mark.parametrize(("loss", "region", "packing", "accumulation"), [
    *(("kl", *case) for case in itertools.product(REGIONS, ("on", "off"), (1, 2))),
    ("reverse_kl", "region", "on", 1), ("reverse_kl", "all", "off", 2), ("ce", "region", "off", 2),
    ("ce", "all", "on", 1),
])
def test_a_step_is_what_plain_torch_does(tmp_path, loss, region, packing, accumulation):
    """CE of the task's response tokens plus the weight times the loss on the anchor's rows, AdamW by the book."""
    weight = 1.5 if loss == "ce" else 700.0  # the random model's distributions are nearly even, and divergences small
    anchor, data, extra = opened(tmp_path, texts=ROWS, weight=weight, loss=loss), task_data(), []

    def on_a_text(model, row):
        if loss == "ce":
            return nll(model, row)
        unknown = torch.full((len(row.ids), 260), -100.0, dtype=torch.float64)
        one = unknown.scatter(1, row.ids.long(), row.log_p.double())
        other = log_q(model, row.input_ids, response_places(row))
        return merged_kl(*((one, other) if loss == "kl" else (other, one)), row.ids.long())

    def whole(model):
        extra.append(torch.cat([on_a_text(model, row) for row in anchor.rows]).mean())
        return torch.cat([nll(model, row) for row in data]).mean() + weight * extra[0]

    expected, value = step_by_the_book(whole, region)
    model, result = step_of_ours(tmp_path / "run", data, region, packing=packing, accumulation=accumulation,
                                 anchor=anchor)
    if loss == "ce":
        assert result.anchor_kl is None
    else:
        assert result.anchor_kl == pytest.approx(extra[0].item(), rel=1e-4)
        assert weight * result.anchor_kl > 0.1
    assert result.loss == pytest.approx(value, rel=1e-4)
    assert_same_weights(model, expected)


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
        train_region(model, REGIONS["region"], task_data(), tmp_path / name,
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
