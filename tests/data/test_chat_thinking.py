"""What a chat template tells of thoughts."""

import pytest
from thinking_templates import CHANNELS, OFF, OPENED, SWITCH
from tiny import CHATML

from cofitune_fast.data import encode_prompt
from cofitune_fast.data.chat import thinking_of, with_options

USER = [{"role": "user", "content": "hi"}]
CHAT = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(("template", "close", "prompt"), [
    (SWITCH, "</think>", CHAT + "<think>\n\n</think>\n\n"),
    (OPENED, "</think>", CHAT + "<think>\n\n</think>\n\n"),
    (OPENED.replace("<think>", "[THINK]"), "[/THINK]", CHAT + "[THINK]\n\n[/THINK]\n\n"),
    (CHANNELS, "<|end|><|im_start|>assistant<|channel|>final<|message|>",
     "<|im_start|>user<|message|>hi<|end|><|im_start|>assistant<|channel|>final<|message|>"),
    # a switch, and no word of the thoughts of finished turns
    (SWITCH.replace("<think>\n{{ m.reasoning_content or '' }}\n</think>\n\n", ""), "</think>",
     CHAT + "<think>\n\n</think>\n\n"),
])
def test_how_a_thought_ends_and_a_prompt_with_an_empty_one(tiny_tokenizer, template, close, prompt):
    tiny_tokenizer.chat_template = template
    thinking = thinking_of(tiny_tokenizer)
    assert thinking.close == close
    assert tiny_tokenizer.decode(encode_prompt(with_options(tiny_tokenizer, thinking="empty"), USER)) == prompt


@pytest.mark.parametrize("template", [
    None, CHATML, OFF, "{{ raise_exception('no') }}",
    CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n\n</think>\n\n{% endif %}"),  # a thought that is over
])
def test_models_that_do_not_think_by_default(tiny_tokenizer, template):
    tiny_tokenizer.chat_template = template
    thinking = thinking_of(tiny_tokenizer)
    assert thinking is None or not thinking.by_default
