"""Where the texts of a model that thinks begin, and that nothing changes for others."""

import pytest
from thinking_templates import CHANNELS, OPENED, SWITCH
from tiny import CHATML, make_tiny_model, make_tiny_tokenizer

from cofitune_fast.anchor import AnchorSettings, open_anchor, writing
from cofitune_fast.data.chat import with_options
from cofitune_fast.errors import CofituneError

CHAT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
CHANNEL = "<|im_start|>user<|message|>{}<|end|><|im_start|>assistant"
THOUGHT, EMPTY = "<think>\n", "<think>\n\n</think>\n\n"


def opened(tmp_path, template=None, options=None, **values):
    file = tmp_path / "prompts.txt"
    file.write_text("Hello\nWhy?\n", encoding="utf-8")
    tokenizer = make_tiny_tokenizer()
    tokenizer.chat_template = template or tokenizer.chat_template
    tokenizer = with_options(tokenizer, **(options or {}))
    settings = AnchorSettings(**{"texts": 3, "tokens": 4, "prompts": str(file), "top_k": 8, **values})
    return open_anchor(make_tiny_model(), tokenizer, settings, "print", folder=tmp_path / "anchor")


def begins(anchor):
    return [make_tiny_tokenizer().decode(row.input_ids[: row.response_start]) for row in anchor.rows]


@pytest.mark.parametrize(("template", "plain", "empty"), [
    (SWITCH, CHAT, CHAT + EMPTY), (OPENED, CHAT + THOUGHT, CHAT + EMPTY),
    (CHANNELS, CHANNEL, CHANNEL + "<|channel|>final<|message|>"),
])
def test_texts_begin_as_the_template_lets_them_or_after_an_empty_thought(tmp_path, template, plain, empty):
    expected = {"template": (plain, plain, plain), "empty": (empty, empty, empty), "mixed": (plain, empty, plain)}
    for thinking, (first, second, third) in expected.items():
        found = begins(opened(tmp_path, template, thinking=thinking))
        assert found == [first.format("Hello"), second.format("Why?"), third.format("Hello")]
    assert begins(opened(tmp_path, template)) == found  # the default is mixed
    assert len(list((tmp_path / "anchor").iterdir())) == 3


def test_other_models_texts_stay_in_the_file_where_earlier_versions_wrote_them(tmp_path):
    for thinking in ("mixed", "template", "empty", "answer"):
        anchor = opened(tmp_path, thinking=thinking)
        assert begins(anchor) == [CHAT.format(text) for text in ("Hello", "Why?", "Hello")] and anchor.note is None
    (file,) = (tmp_path / "anchor").iterdir()
    assert file.name == "8252e2d142705c98f8664764.safetensors"  # as of the version before `thinking`
    plain = AnchorSettings().identity()
    assert not {"thinking", "thought_tokens"} & set(plain)
    assert AnchorSettings(thinking="answer").identity() == {**plain, "thinking": "answer"}


def test_a_file_is_for_one_day_where_the_template_writes_it_and_for_any_choice_of_thoughts(tmp_path):
    def first_prompt(template, **options):
        anchor = opened(tmp_path, template, options, texts=1)
        return begins(anchor)[0]

    dated = "{{ strftime_now('%d.%m.') }}" + CHATML
    assert [first_prompt(dated, date=f"2026-01-0{day}")[:6] for day in (1, 2, 1)] == ["01.01.", "02.01.", "01.01."]
    assert len(list((tmp_path / "anchor").iterdir())) == 2
    for thinking in ("auto", "with", "without", "empty"):
        assert first_prompt(SWITCH, thinking=thinking, date="2026-01-01") == CHAT.format("Hello")
    assert len(list((tmp_path / "anchor").iterdir())) == 3


@pytest.mark.parametrize(("written", "thought", "kept"), [
    ("a long thought</think>answer<|im_end|>", "a lo", "ng thought</think>answer<|im_end|>"),
    ("a very long thought</think>an answer without an end", "a very long th", "ought</think>an answer wi"),
    ("oh</think>well<|im_end|>", "", "oh</think>well<|im_end|>"),
    ("a thought that is cut before it ends", "a thought t", "hat is cut before it ends"),
])
def test_texts_around_the_beginning_of_the_answer(tmp_path, monkeypatch, written, thought, kept):
    tokenizer, asked = make_tiny_tokenizer(), []

    def scripted(model, prompts, config, **options):
        asked.append(config.max_new_tokens)
        return [tokenizer(written)["input_ids"] for _ in prompts]

    monkeypatch.setattr(writing, "continue_prompts", scripted)
    for _ in range(2):  # made, and read from the file
        anchor = opened(tmp_path, OPENED, thinking="answer", thought_tokens=40, tokens=25, texts=1)
        (row,) = anchor.rows
        assert begins(anchor) == [CHAT.format("Hello") + THOUGHT + thought]
        assert tokenizer.decode(row.input_ids[row.response_start :]) == kept and len(row.ids) == len(
            row.input_ids) - row.response_start
        assert (anchor.note is None) == ("</think>" in written)
    assert asked == [52]
    if anchor.note:
        assert anchor.note == ("In 1 of the anchor's 1 texts the thought does not end within anchor.thought_tokens "
                               "(40); they hold no answer.")


def test_an_answer_is_refused_where_nobody_knows_the_end_of_a_thought(tmp_path):
    template = ("{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
                "{% if add_generation_prompt %}{{ 'quick:' if enable_thinking is false else 'slow:' }}{% endif %}")
    assert [text[-6:] for text in begins(opened(tmp_path, template))] == [">slow:", "quick:", ">slow:"]
    with pytest.raises(CofituneError, match="does not tell where a thought ends; choose mixed, template or empty"):
        opened(tmp_path, template, thinking="answer")
