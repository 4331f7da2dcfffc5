from __future__ import annotations

import warnings

import pytest
from tiny import CHATML

from cofitune_fast.data import Example, encode_example, encode_examples, encode_prompt, pad_token_id
from cofitune_fast.data.encode import encode_continuation, encode_text
from cofitune_fast.errors import CofituneError

USER = [{"role": "user", "content": "hi"}]
CHAT = [
    {"role": "system", "content": "s"},
    *USER,
    {"role": "assistant", "content": "yo"},
    {"role": "user", "content": "?"},
]
IM_END = 2


def parts(tokenizer, encoded):
    """Every token of the prompt and of the response as text, one by one."""
    texts = [tokenizer.decode([token]) for token in encoded.input_ids]
    return texts[: encoded.response_start], texts[encoded.response_start :]


@pytest.mark.parametrize("messages", [USER, CHAT])
def test_the_prompt_is_what_generation_sees(tiny_tokenizer, messages):
    expected = tiny_tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert encode_prompt(tiny_tokenizer, messages) == expected
    encoded = encode_example(Example(messages, "an answer"), tiny_tokenizer)
    assert encoded.input_ids[: encoded.response_start] == expected


def test_the_response_is_right_token_by_token(tiny_tokenizer):
    prompt, response = parts(tiny_tokenizer, encode_example(Example(USER, "ok!"), tiny_tokenizer))
    assert prompt == ["<|im_start|>", *"user\nhi", "<|im_end|>", "\n", "<|im_start|>", *"assistant\n"]
    assert response == ["o", "k", "!", "<|im_end|>"]


@pytest.mark.parametrize("text", ["|>", ">", " spaced ", "two\nlines\n", "<|im_end|", "assistant\n", "é"])
def test_a_response_like_the_end_of_turn_is_ended_once(tiny_tokenizer, text):
    encoded = encode_example(Example(USER, text), tiny_tokenizer)
    assert encoded.input_ids[encoded.response_start :] == [*tiny_tokenizer(text)["input_ids"], IM_END]


def test_a_template_without_end_of_turn_gets_the_end_of_sequence(tiny_tokenizer):
    tiny_tokenizer.chat_template = CHATML.replace("{{ message['content'] }}<|im_end|>\n", "{{ message['content'] }}\n")
    prompt, response = parts(tiny_tokenizer, encode_example(Example(USER, "ok"), tiny_tokenizer))
    assert "".join(prompt) == "<|im_start|>user\nhi\n<|im_start|>assistant\n"
    assert response == ["o", "k", "<|im_end|>"]


def test_a_generation_prompt_that_finished_turns_lack(tiny_tokenizer):
    tiny_tokenizer.chat_template = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>{% endif %}")
    prompt, response = parts(tiny_tokenizer, encode_example(Example(USER, "end"), tiny_tokenizer))
    assert "".join(prompt).endswith("assistant\n<think>")
    assert "".join(response) == "\n</think>\n\nend<|im_end|>"
    tiny_tokenizer.chat_template = CHATML.replace("assistant\n{% endif %}", "assistant: {% endif %}")
    prompt, response = parts(tiny_tokenizer, encode_example(Example(USER, "end"), tiny_tokenizer))
    assert ("".join(prompt)[-11:], "".join(response)) == ("assistant: ", "end<|im_end|>")


def test_what_a_template_writes_before_the_content_belongs_to_the_response(tiny_tokenizer):
    tiny_tokenizer.chat_template = CHATML.replace("{{ message['content'] }}", "<t>{{ message['content'] | trim }}")
    _, response = parts(tiny_tokenizer, encode_example(Example(USER, " ok\n"), tiny_tokenizer))
    assert "".join(response) == "<t>ok<|im_end|>"


def test_without_template_plain_text_and_end_of_sequence(tiny_tokenizer):
    tiny_tokenizer.chat_template = None
    prompt, response = parts(tiny_tokenizer, encode_example(Example(CHAT, "ok"), tiny_tokenizer))
    assert "".join(prompt) == "s\nhi\nyo\n?\n"
    assert response == ["o", "k", "<|im_end|>"]
    assert encode_prompt(tiny_tokenizer, USER) == tiny_tokenizer("hi\n")["input_ids"]


def test_plain_text_begins_as_the_tokenizer_would_begin_it(tiny_tokenizer):
    from tokenizers.processors import TemplateProcessing

    tiny_tokenizer.chat_template = None
    tiny_tokenizer._tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    bare = tiny_tokenizer("ab", add_special_tokens=False)["input_ids"]
    assert encode_text(tiny_tokenizer, "ab") == [1, *bare]
    assert encode_text(tiny_tokenizer, "<s>ab") == [1, *bare]
    encoded = encode_example(Example([{"role": "user", "content": "ab"}], "c"), tiny_tokenizer)
    assert encoded.input_ids[:3] == [1, *bare]
    assert encoded.input_ids.count(1) == 1


def test_a_token_across_the_border_does_not_change_the_prompt(tiny_tokenizer):
    class Merging:
        """Writes "ab" as one token, 9, and each other letter as its code."""

        def __call__(self, text, add_special_tokens=True):
            return {"input_ids": [9 if c == "#" else ord(c) for c in text.replace("ab", "#")]}

    assert encode_continuation(Merging(), "xa", "bc") == [ord("b"), ord("c")]
    assert encode_continuation(Merging(), "x", "abc") == [9, ord("c")]


def test_length_limit_cuts_drops_and_tells(tiny_tokenizer):
    prompt_length = len(encode_prompt(tiny_tokenizer, USER))
    long_prompt = [{"role": "user", "content": "long" * 20}]
    examples = [Example(USER, "abc", "f:1"), Example(long_prompt, "a", "f:2"), Example(USER, "abcdef", "f:3")]
    limit = prompt_length + 4
    with pytest.warns(UserWarning, match=r"1 of 3 responses were cut and 1 .* dropped.*f:2 has \d+ tokens"):
        encoded = encode_examples(examples, tiny_tokenizer, limit)
    assert encoded.truncated == ["f:3"]
    assert encoded.dropped == ["f:2"]
    assert encoded.indices == [0, 2]
    assert [row.where for row in encoded] == ["f:1", "f:3"]
    assert [len(row.input_ids) for row in encoded] == [limit, limit]
    assert parts(tiny_tokenizer, encoded[1])[1] == ["a", "b", "c", "d"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(encode_examples(examples, tiny_tokenizer)) == 3


def test_a_prompt_that_leaves_room_for_one_token_is_kept(tiny_tokenizer):
    length = len(encode_prompt(tiny_tokenizer, USER))
    with pytest.warns(UserWarning, match="1 of 1 responses were cut"):
        assert len(encode_examples([Example(USER, "abc")], tiny_tokenizer, length + 1)) == 1
    with pytest.raises(
        CofituneError, match=rf"within max_length {length}: the prompt at f:7 has {length} tokens; raise"
    ):
        encode_examples([Example(USER, "abc", "f:7")], tiny_tokenizer, length)


def test_bad_settings_and_templates_are_told(tiny_tokenizer):
    with pytest.raises(CofituneError, match="no examples to encode"):
        encode_examples([], tiny_tokenizer)
    with pytest.raises(CofituneError, match="max_length is 1; a prompt and a response need at least 2"):
        encode_examples([Example(USER, "a")], tiny_tokenizer, 1)
    tiny_tokenizer.chat_template = "{{ raise_exception('System role not supported') }}"
    with pytest.raises(CofituneError, match=r"f:3: the tokenizer's chat template refuses .*System role not supported"):
        encode_examples([Example(CHAT, "a", "f:3")], tiny_tokenizer)
    tiny_tokenizer.chat_template = None
    tiny_tokenizer.eos_token = None
    with pytest.raises(CofituneError, match="f:3: the tokenizer has no end-of-sequence token"):
        encode_examples([Example(USER, "a", "f:3")], tiny_tokenizer)


def test_pad_token(tiny_tokenizer):
    assert pad_token_id(tiny_tokenizer) == 0
    tiny_tokenizer.pad_token = None
    assert pad_token_id(tiny_tokenizer) == IM_END
