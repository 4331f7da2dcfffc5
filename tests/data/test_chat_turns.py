"""What ends a turn is one answer, for whoever writes, generates and trains."""

import pytest
from tiny import CHATML, make_tiny_model, make_tiny_tokenizer

from cofitune_fast.anchor import writing
from cofitune_fast.data import Example, encode_example
from cofitune_fast.data.chat import TurnEnd, template, tokens_with, turn_end
from cofitune_fast.data.look import segments
from cofitune_fast.errors import CofituneError
from cofitune_fast.scoring import generate_texts, generation

USER = [{"role": "user", "content": "hi"}]
IM_END, CONFIGURED, EOS = 2, 7, 0


@pytest.fixture
def parted(tiny_tokenizer):
    """A model whose template, generation configuration and tokenizer each name another end."""
    model = make_tiny_model()
    model.generation_config.eos_token_id = CONFIGURED
    tiny_tokenizer.eos_token = "<pad>"
    return model, tiny_tokenizer


def test_all_three_ends_stop_the_anchor_and_generation_and_training_ends_with_one(parted, monkeypatch):
    model, tokenizer = parted
    assert turn_end(tokenizer, model.generation_config) == TurnEnd(frozenset({IM_END, CONFIGURED, EOS}))
    assert encode_example(Example(USER, "a"), tokenizer).input_ids[-1] == IM_END
    a, asked = tokenizer("a")["input_ids"], []
    responses = [[*a, end, *a, EOS] for end in (IM_END, CONFIGURED, EOS)]

    def scripted(model, prompts, config, **options):
        asked.append(config.eos_token_id)
        return responses

    for module in (writing, generation):
        monkeypatch.setattr(module, "continue_prompts", scripted)
    written = writing.write_texts(model, tokenizer, [USER], texts=3, tokens=5, temperature=1.0, seed=0)
    assert [row.input_ids[row.response_start :] for row in written] == [response[:2] for response in responses]
    assert generate_texts(model, tokenizer, [USER] * 3, max_new_tokens=5) == ["a"] * 3
    assert asked == [sorted({IM_END, CONFIGURED, EOS})] * 2


def test_an_end_of_several_tokens_ends_an_anchors_text(parted):
    model, tokenizer = parted
    tokenizer.chat_template = CHATML.replace("<|im_end|>", ":::").replace("assistant\n", "assistant:")
    end = turn_end(tokenizer, model.generation_config)
    assert end == TurnEnd(frozenset({CONFIGURED, EOS}), ":::")
    # the tiny model with its tied head repeats the last token of the prompt
    (row,) = writing.write_texts(model, tokenizer, [USER], texts=1, tokens=40, temperature=0.01, seed=0)
    assert tokenizer.decode(row.input_ids[row.response_start :]) == ":::"
    assert writing.count_flaws([row], end, tokenizer) == (1, 0)
    assert end.places(tokenizer, tokenizer("ab::: c")["input_ids"]) == (2, 5)
    assert end.places(tokenizer, tokenizer("ab:: c")["input_ids"]) == (6, 6)


def test_a_token_that_is_no_text_begins_the_end(parted):
    _, tokenizer = parted
    tokenizer.chat_template = CHATML.replace("<|im_end|>\n{% endfor %}", "<|im_end|>\n{% endfor %}{{ eos_token }}")
    assert turn_end(tokenizer, None) == TurnEnd(frozenset({IM_END, EOS}))


@pytest.mark.parametrize("written", ["\n### End\n<|im_end|>", "<|end|>\n<|im_end|>"])  # the latter as in Phi-3
def test_a_text_with_the_end_of_sequence_after_it_is_one_end(tiny_tokenizer, written):
    tiny_tokenizer.chat_template = CHATML.replace("<|im_end|>\n{% endfor %}", written.replace("<|im_end|>", "{{ end }}")
                                                  + "{% endfor %}").replace(
        "{{ end }}", "{{ eos_token if message.role == 'assistant' }}")
    row = encode_example(Example(USER, "Sunny.\n"), tiny_tokenizer)
    end, response = turn_end(tiny_tokenizer, None), row.input_ids[row.response_start :]
    assert end == TurnEnd(frozenset({IM_END}), written) and response[-1] == IM_END
    length = len(tiny_tokenizer("Sunny.\n")["input_ids"])
    assert end.places(tiny_tokenizer, [*response, EOS]) == (length, len(response))
    assert generation.answer_text(tiny_tokenizer, end, [*response, EOS]) == "Sunny.\n"
    assert generation.answer_text(tiny_tokenizer, end, [*response[:length], IM_END, EOS]) == "Sunny.\n"
    assert [(part.kind, part.text) for part in segments(row, tiny_tokenizer)[-2:]] == [
        ("trained", "Sunny.\n"), ("end", written)]


def test_without_a_template_and_with_one_that_drops_answers(parted):
    model, tokenizer = parted
    tokenizer.chat_template = CHATML.replace("{{ message['content'] }}", "")
    with pytest.raises(CofituneError, match="chat template leaves out the text of the assistant's turn; give"):
        turn_end(tokenizer, None)
    tokenizer.chat_template = None
    assert turn_end(tokenizer, model.generation_config) == TurnEnd(frozenset({CONFIGURED, EOS}))


def test_how_many_tokens_hold_a_text(tiny_tokenizer):
    ids = tiny_tokenizer("xé</a>b</a>")["input_ids"]  # é is two tokens
    assert tokens_with(tiny_tokenizer, ids, "</a>") == 7
    assert tokens_with(tiny_tokenizer, ids, "</b>") is None


def test_a_template_without_an_end_is_a_sentence_and_its_thread_goes_on(monkeypatch):
    monkeypatch.setattr(template, "SECONDS", 0.2)
    tokenizer = make_tiny_tokenizer()
    whole = template.render(tokenizer, template.GREETING)
    ordinary, endless = tokenizer.chat_template, "{% for a in range(99999) %}" * 3 + "{% endfor %}" * 3
    tokenizer.chat_template = endless
    with pytest.raises(CofituneError, match=r"has not ended after 0\.2 s for a conversation of 1 turns") as failed:
        template.render(tokenizer, template.GREETING)
    assert not isinstance(failed.value, template.TemplateRefusal)  # which the probes of a template take for an answer
    tokenizer.chat_template = ordinary
    assert template.render(tokenizer, template.GREETING) == whole
