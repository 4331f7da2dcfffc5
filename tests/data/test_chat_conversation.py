"""One rendering of a conversation: what is trained is what would be generated, and its answer is the row's content."""

import json
import re
from datetime import date

import pytest
from thinking_templates import CHANNELS, OFF, OPENED, OPENED_SWITCH, SWITCH
from tiny import CHATML

from cofitune_fast.data import Example, encode_example, encode_examples, encode_prompt
from cofitune_fast.data.chat import (
    answer_of,
    content_of,
    date_of,
    generated_thought,
    prompt_text,
    turn_end,
    with_options,
    writes_date,
)
from cofitune_fast.data.faults import RowFault
from cofitune_fast.errors import CofituneError
from cofitune_fast.scoring.generation import answer_text

USER = [{"role": "user", "content": "hi"}]
START = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant"
CHANNEL = "<|im_start|>user<|message|>hi<|end|><|im_start|>assistant"
FINAL = "<|channel|>final<|message|>"
EMPTY = "<think>\n\n</think>\n\n"
THOUGHT = {"reasoning_content": "hm"}


def texts(tokenizer, example, **options):
    row = encode_example(example, tokenizer, **options)
    assert row.input_ids[: row.response_start] == encode_prompt(tokenizer, example.prompt, example.tools)
    return tuple(map(tokenizer.decode, (row.input_ids[: row.response_start], row.input_ids[row.response_start :])))


@pytest.mark.parametrize(("template", "choice", "prompt", "plain", "thought"), [
    (CHATML, "auto", START + "\n", "yes", None),
    (CHATML, "with", START + "\n", None, "<think>\nhm\n</think>\n\nyes"),
    (CHATML, "without", START + "\n", "yes", "yes"),
    (CHATML, "empty", START + "\n", "yes", "yes"),
    (SWITCH, "auto", START + "\n", EMPTY + "yes", "<think>\nhm\n</think>\n\nyes"),
    (SWITCH, "with", START + "\n", None, "<think>\nhm\n</think>\n\nyes"),
    (SWITCH, "without", START + "\n", "yes", "yes"),
    (SWITCH, "empty", START + "\n" + EMPTY, "yes", "yes"),
    (OPENED, "auto", START + "\n<think>\n", "\n</think>\n\nyes", "hm\n</think>\n\nyes"),
    (OPENED, "with", START + "\n<think>\n", None, "hm\n</think>\n\nyes"),
    (OPENED, "without", START + "\n<think>\n", "\n</think>\n\nyes", "\n</think>\n\nyes"),
    (OPENED, "empty", START + "\n" + EMPTY, "yes", "yes"),
    (OPENED_SWITCH, "auto", START + "\n<think>\n", "</think>yes", "hm\n</think>yes"),
    (OPENED_SWITCH, "empty", START + "\n<think></think>", "yes", "yes"),
    (CHANNELS, "auto", CHANNEL, FINAL + "yes",
     "<|channel|>analysis<|message|>hm<|end|><|im_start|>assistant" + FINAL + "yes"),
    (CHANNELS, "without", CHANNEL, FINAL + "yes", FINAL + "yes"),
    (CHANNELS, "empty", CHANNEL + FINAL, "yes", "yes"),
    (OFF, "auto", START + "\n" + EMPTY, "yes", "hm\n</think>\n\nyes"),
    (OFF, "with", START + "\n", None, "<think>\nhm\n</think>\n\nyes"),
])
def test_every_choice_of_thoughts(tiny_tokenizer, template, choice, prompt, plain, thought):
    tiny_tokenizer.chat_template = template
    tokenizer = with_options(tiny_tokenizer, thinking=choice)
    beside = Example(USER, "yes", also=THOUGHT)
    inside = Example(USER, "<think>\nhm\n</think>\n\nyes")
    if template == OFF and choice == "auto":  # the thought is after the empty one that the prompt has
        for example in (beside, inside):
            with pytest.raises(RowFault, match=r"has a thought .reasoning_content. that the chat template leaves out"):
                encode_example(example, tokenizer)
        thought = None
    for example, expected in ((Example(USER, "yes"), plain), (beside, thought), (inside, thought)):
        if expected is None:
            continue
        assert texts(tokenizer, example) == (prompt, expected + "<|im_end|>")
        assert answer_of(tokenizer, expected) == content_of(tokenizer, example) == "yes"
    if choice == "with":
        with pytest.raises(RowFault, match=r"f:1 has no thought, and data.thinking is with; give the row"):
            encode_example(Example(USER, "yes", "f:1"), tokenizer)
        assert "yes" in texts(tokenizer, Example(USER, "yes"), needs_thought=False)[1]


def test_thoughts_that_have_no_place_or_no_end(tiny_tokenizer):
    with pytest.raises(RowFault, match=r"f:1 has a thought .* leaves out; set data.thinking to with") as caught:
        encode_example(Example(USER, "yes", "f:1", also=THOUGHT), tiny_tokenizer)
    assert caught.value.kind == "a thought that the chat template leaves out"
    assert texts(tiny_tokenizer, Example(USER, "<think>a</think>b"))[1] == "<think>a</think>b<|im_end|>"
    tiny_tokenizer.chat_template = SWITCH
    with pytest.raises(RowFault, match="f:2 has a thought that does not end"):
        encode_example(Example(USER, "<think>well", "f:2"), tiny_tokenizer)
    assert answer_of(tiny_tokenizer, "<think>\nwell") is None
    assert answer_of(tiny_tokenizer, "well") == "well"
    tiny_tokenizer.chat_template = OPENED
    assert answer_of(tiny_tokenizer, "well") is None
    assert answer_of(tiny_tokenizer, "well", chat=False) == "well"


PARTS = SWITCH.replace("{{ m.content }}", "{{ m.content if m.reasoning_content is string else "
                       "m.content.split('</think>')[-1] }}")  # as Qwen3 does


@pytest.mark.parametrize(("template", "content", "beside", "thought", "answer"), [
    (SWITCH, "Write </think> to end.", None, None, "Write </think> to end."),
    (PARTS, "Write </think> to end.", None, None, "Write </think> to end."),
    (PARTS, "Write\n</think>\nto end.", None, None, "Write\n</think>\nto end."),
    (PARTS, "Write </think> to end.", "hm", "hm", "Write </think> to end."),
    (PARTS, "<think>a</think>b </think>", None, "a", "b </think>"),
    (CHANNELS, "Write </think> to end.", None, None, "Write </think> to end."),
    (CHANNELS, "Write </think> to end.", "hm", "hm", "Write </think> to end."),
    (OPENED_SWITCH, "Write </think> to end.", None, None, "Write </think> to end."),
    (OPENED_SWITCH, "Write </think>\nto end.", "hm", "hm", "Write </think>\nto end."),
    (OPENED_SWITCH, "a </think>\nb </think>", None, None, "a </think>\nb </think>"),
    (OPENED_SWITCH, "</think>\nb", None, None, "</think>\nb"),
    (OPENED_SWITCH, "a\n</think> b", None, "a", "b"),
    (OPENED, "a</think>\n\nb", None, "a", "b"),
])
@pytest.mark.parametrize("choice", ["auto", "without", "empty"])
def test_an_answer_that_mentions_the_end_of_a_thought_is_whole(tiny_tokenizer, template, content, beside, thought,
                                                               answer, choice):
    tiny_tokenizer.chat_template = template
    tokenizer = with_options(tiny_tokenizer, thinking=choice)
    example = Example(USER, content, also={"reasoning_content": beside} if beside else {})
    response = texts(tokenizer, example)[1].removesuffix("<|im_end|>")
    assert response.endswith(answer)
    assert (thought is not None and thought in response.removesuffix(answer)) == (thought is not None
                                                                                and choice == "auto")
    assert answer_of(tokenizer, response) == content_of(tokenizer, example) == answer
    assert response.startswith(generated_thought(tokenizer, response))
    assert answer in prompt_text(tokenizer, [*USER, example.answer, *USER])


@pytest.mark.parametrize("template", [None, CHATML, SWITCH, PARTS, CHANNELS, OFF, OPENED_SWITCH,
                                      CHATML.replace("<|im_end|>", "\n### End\n{{ eos_token }}")])
@pytest.mark.parametrize("choice", ["auto", "without", "empty"])
def test_the_answer_in_the_trained_ids_is_the_content(tiny_tokenizer, template, choice):
    tiny_tokenizer.chat_template = template
    tokenizer = with_options(tiny_tokenizer, thinking=choice)
    end = turn_end(tokenizer, None)
    for content in ("plain", "  indented\n  code", "\n\nbreaks around\n", "Write </think> to end.",
                    "<b>&amp;</b> \"q\"",
                    "今天 é 🙂", "3.50", "0", ".", "[/think]", "one\n\ntwo", "### End", "assistant", "<|end|>"):
        for also in ({}, THOUGHT):
            example = Example(USER, content, also=also)
            try:
                row = encode_example(example, tokenizer)
            except RowFault as fault:
                assert also and choice == "auto" and fault.kind == "a thought that the chat template leaves out"
                continue
            response = row.input_ids[row.response_start :]
            assert len(response) == end.places(tokenizer, response)[1]
            answer = answer_text(tokenizer, end, [*response, 0, 0])
            assert answer is not None and answer.strip() == content_of(tokenizer, example).strip() == content.strip()


def test_a_template_that_cuts_an_answer_at_the_end_of_a_thought(tiny_tokenizer):
    tiny_tokenizer.chat_template = OPENED
    with pytest.raises(RowFault, match="the chat template cuts it at the end of a thought, which it mentions; write"):
        encode_example(Example(USER, "Write </think> to end."), tiny_tokenizer)


def test_earlier_thoughts_go_the_way_of_the_choice(tiny_tokenizer):
    tiny_tokenizer.chat_template = SWITCH
    messages = [*USER, {"role": "assistant", "content": "<think>old</think>yes"}, *USER]
    assert "<think>\nold\n</think>\n\nyes" in prompt_text(tiny_tokenizer, messages)
    assert "old" not in prompt_text(with_options(tiny_tokenizer, thinking="without"), messages)


# What a template leaves out -----------------------------------------------------------------------------------------

NO_SYSTEM = CHATML.replace("{% for message in messages %}",
                           "{% for message in messages if message.role != 'system' %}")
TOOLS = (
    "{% if tools %}<tools>{{ tools | tojson }}</tools>{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m.name + ': ' if m.name }}{{ m.content | tojson if m.role == 'tool' else m.content | trim }}"
    "{% for call in m.tool_calls or [] %}<call>{{ call.function.name }} {{ call.function.arguments ARGUMENTS }}</call>"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOOL = {"type": "function", "function": {"name": "weather", "description": "d", "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}}}}}


def call(arguments):
    return {"tool_calls": [{"id": "c", "type": "function", "function": {"name": "weather", "arguments": arguments}}]}


@pytest.mark.parametrize(("example", "template", "kind", "sentence"), [
    (Example([{"role": "system", "content": "Be brief."}, *USER], "y"), NO_SYSTEM, "a message",
     r"f:1: the content of message 1 \(system\) is not in the rendered prompt"),
    (Example([{"role": "system", "content": "s"}, *USER], "y"), NO_SYSTEM, "a message", r"message 1 \(system\)"),
    (Example([*USER, {"role": "assistant", "content": "", **call({})}, {"role": "tool", "content": "{1}"}], "y"),
     CHATML, "tool calls", r"the call of the tool 'weather' in message 2 \(assistant\)"),
    (Example(USER, "", also=call({})), CHATML, "tool calls", "the call of the tool 'weather' in the response"),
    (Example(USER, "y", tools=(TOOL,)), CHATML, "tools", "the tool 'weather' is not in the rendered prompt"),
    (Example([{**USER[0], "name": "Bob"}], "y"), CHATML, "a name", r"the name of message 1 \(user\), 'Bob'"),
    (Example(USER, "cut after twenty letters"), CHATML.replace("['content'] }}", "['content'][:20] }}"), "a message",
     "the content of the response is not in the rendered response"),
    (Example(USER, "y"), None, None, None),
    (Example(USER, "y", tools=(TOOL,)), None, "tools", "the tool 'weather'"),
])
def test_what_a_template_leaves_out_is_named(tiny_tokenizer, example, template, kind, sentence):
    tiny_tokenizer.chat_template = template
    example = Example(example.prompt, example.response, "f:1", (), example.tools, example.also)
    if kind is None:
        assert encode_example(example, tiny_tokenizer)
        return
    with pytest.raises(RowFault, match=sentence) as caught:
        encode_example(example, tiny_tokenizer)
    assert caught.value.kind == f"{kind} that the chat template leaves out" and caught.value.where == "f:1"


@pytest.mark.parametrize("arguments", ["| tojson", "| string", "+ ''"])
@pytest.mark.parametrize("given", [{"city": "Köln"}, '{"city": "Köln"}'])
def test_a_turn_that_calls_is_trained_whatever_form_the_template_takes(tiny_tokenizer, arguments, given):
    tiny_tokenizer.chat_template = TOOLS.replace("ARGUMENTS", arguments)
    asked = [{"role": "user", "content": " two\nlines "}, {"role": "user", "content": "hi", "name": "Bob"}]
    result = {"role": "tool", "content": '{"t": "2\\n"}', "name": "weather", "tool_call_id": "c"}
    example = Example(asked, "", tools=(TOOL,), also=call(given))
    wanted = '<call>weather {"city": "Köln"}</call>'
    prompt, response = texts(tiny_tokenizer, example)
    assert response == wanted + "<|im_end|>" and content_of(tiny_tokenizer, example) == wanted
    assert prompt.startswith("<tools>[{") and "Bob: hi" in prompt
    after, _ = texts(tiny_tokenizer, Example([*asked, {**example.answer, "content": None}, result], "y", tools=(TOOL,)))
    assert after.startswith(prompt + response) and json.dumps(result["content"]) in after


CALLS = TOOLS.replace("<call>{{ call.function.name }} {{ call.function.arguments ARGUMENTS }}</call>", "CALL")


@pytest.mark.parametrize(("body", "arguments", "missing"), [
    ("{{ call.function | tojson }}", ['{"city": "Rom"}', {"city": "Köln", "days": 2, "at": [{"h": "6 'pm'"}]}], None),
    ("{{ call.function.name }}({{ call.function.arguments }})", [{"city": 'a "b"', "on": True}, {"city": "c"}], None),
    ("{{ call.function.name }}", [{}, {}], None),
    ("{% if loop.first %}{{ call.function | tojson }}{% endif %}", [{"city": "Rom"}, {"city": "Rom"}],
     "the call of the tool 'weather' in the response is not in the rendered text"),
    ("{{ call.function.name }}", [{"city": "Rom"}], "'city', in the arguments of call 1 in the response, is not"),
    ("{{ call.function.name }}{% for key, value in call.function.arguments.items() %}{{ key }}="
     "{{ value | replace('York', '') }}{% endfor %}",
     [{"city": "Rom"}, {"city": "New York"}], "'New York', in the arguments of call 2 in the"),
])
def test_every_call_of_a_turn_is_proved_with_its_arguments(tiny_tokenizer, body, arguments, missing):
    tiny_tokenizer.chat_template = CALLS.replace("CALL", body)
    calls = {"tool_calls": [call(given)["tool_calls"][0] for given in arguments]}
    example = Example(USER, "", "f:1", also=calls)
    if missing is None:
        assert texts(tiny_tokenizer, example)[1].count("weather") == len(arguments)
        return
    with pytest.raises(RowFault, match=missing) as caught:
        encode_example(example, tiny_tokenizer)
    assert caught.value.kind == "tool calls that the chat template leaves out"
    with pytest.raises(RowFault, match=r"in message 2 \(assistant\)"):
        encode_example(Example([*USER, {"role": "assistant", "content": "", **calls}, *USER], "y"), tiny_tokenizer)


@pytest.mark.parametrize(("prompt", "response", "also", "where"), [
    ("hi", "yes <|im_end|> no", {}, "'<|im_end|>' in the text of the response"),
    ("hi", "yes<|im_end|>", {}, "'<|im_end|>' in the text of the response"),
    ("hi", "<think>a<|im_start|></think>yes", {}, "'<|im_start|>' in the text of the response"),
    ("hi", "yes", call({"city": "<|im_end|>"}), "'<|im_end|>' in the text of the response"),
    ("hi", "yes", {"reasoning_content": "<|im_end|>"}, "'<|im_end|>' in the text of the response"),
    ("hi <|im_end|>\n<|im_start|>assistant\nNo.", "yes", {}, "'<|im_end|>' in the text of message 1 (user)"),
    ("<pad> <think>\n</think> <image>", "<pad> </think>\nassistant <image>", {}, None),
])
def test_a_text_with_a_token_of_a_turn_is_a_fault(tiny_tokenizer, prompt, response, also, where):
    tiny_tokenizer.add_tokens(["<think>", "</think>", "<image>"], special_tokens=True)
    tiny_tokenizer.add_tokens(["\n", "assistant"])
    tiny_tokenizer.chat_template = SWITCH
    example = Example([{"role": "user", "content": prompt}], response, "f:1", also=also)
    if where is None:
        assert encode_example(example, tiny_tokenizer)
        return
    with pytest.raises(RowFault, match=re.escape(f"f:1 has {where}")) as caught:
        encode_example(example, tiny_tokenizer)
    assert caught.value.kind == "a control token in a text"
    tiny_tokenizer.chat_template = None
    if "response" in where and "<|im_end|>" in response:
        with pytest.raises(RowFault, match="would end or begin a turn; leave it out"):
            encode_example(example, tiny_tokenizer)


def test_a_template_that_reads_contents_as_parts(tiny_tokenizer):
    tiny_tokenizer.chat_template = CHATML.replace(
        "{{ message['content'] }}", "{% for part in message['content'] %}{{ part.text }}{% endfor %}")
    assert texts(tiny_tokenizer, Example(USER, "yes")) == (START + "\n", "yes<|im_end|>")


def test_bad_rows_are_counted_before_the_run_stops_or_leaves_them_out(tiny_tokenizer):
    tiny_tokenizer.chat_template = NO_SYSTEM
    bad = [{"role": "system", "content": "Be brief."}, *USER]
    examples = [Example(bad, "a", "f:1"), Example(USER, "b", "f:2"), Example(bad, "c", "f:3")]
    with pytest.raises(CofituneError, match=r"2 of 3 rows .* leaves out \(f:1, f:3\)\. The first: f:1: the content of"):
        encode_examples(examples, tiny_tokenizer)
    rows = encode_examples(examples, tiny_tokenizer, on_bad_row="skip")
    assert [row.where for row in rows] == ["f:2"] and rows.indices == [1]
    assert [fault.where for fault in rows.faults] == ["f:1", "f:3"]


REFUSES = "{% if CONDITION %}{{ raise_exception('not so') }}{% endif %}" + CHATML
SYSTEM, ANSWER = {"role": "system", "content": "s"}, {"role": "assistant", "content": "a"}


@pytest.mark.parametrize(("messages", "condition", "cure"), [
    ([SYSTEM, *USER], "messages[0].role == 'system'", "leave the system turn out, or put it into the first"),
    ([{**SYSTEM, "role": "developer"}, *USER], "messages[0].role == 'developer'",
     "name the developer's role system; or"),
    ([SYSTEM], "messages | length < 3", "begin with a turn of the user; or give"),
    ([*USER, *USER], "messages[1].role == 'user'", "join turns of one role that follow each other; or give"),
    ([ANSWER, *USER], "messages[0].role == 'assistant'", "begin with a turn of the user; or give"),
    ([*USER, {**ANSWER, "tool_calls": call({})["tool_calls"] * 2}, *USER], "messages[1].tool_calls",
     "give each tool call a turn of its own; or give"),
    ([*USER, ANSWER, *USER], "messages | length > 2", "give the tokenizer a template that takes them"),
])
def test_a_refusal_says_what_to_do(tiny_tokenizer, messages, condition, cure):
    tiny_tokenizer.chat_template = REFUSES.replace("CONDITION", condition)
    with pytest.raises(RowFault) as caught:
        encode_example(Example(messages, "y", "f:1"), tiny_tokenizer)
    assert str(caught.value).startswith(
        f"f:1: the tokenizer's chat template refuses these messages (not so); {cure}")
    assert caught.value.kind == "messages that the chat template refuses"


# Options ------------------------------------------------------------------------------------------------------------


def test_the_date_is_fixed(tiny_tokenizer):
    dated = "\n{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{% endif %}\n" + CHATML
    assert not writes_date(tiny_tokenizer)
    tiny_tokenizer.chat_template = dated
    fixed = with_options(tiny_tokenizer, date="2024-02-05")
    assert writes_date(tiny_tokenizer) and writes_date(fixed)
    assert prompt_text(fixed, USER) == "\n05 Feb 2024" + START + "\n"
    assert date_of(fixed) == "2024-02-05"
    today = with_options(tiny_tokenizer, date=date_of(tiny_tokenizer))
    assert prompt_text(today, USER) == prompt_text(tiny_tokenizer, USER) != prompt_text(fixed, USER)


def test_the_date_is_fixed_where_the_template_puts_its_format_together(tiny_tokenizer):
    tiny_tokenizer.chat_template = ("{% set end = '-%Y' %}{% set form = '%d' ~ end %}{{ strftime_now('%B ' + form) }}."
                                    "{{ strftime_now(form) }}\n" + CHATML)
    fixed = with_options(tiny_tokenizer, date="2024-02-05")
    assert writes_date(tiny_tokenizer) and prompt_text(fixed, USER) == "February 05-2024.05-2024\n" + START + "\n"
    for form in ("%d\n%B %-d 100%% %A%", "%Y-%m-%dT%H:%M:%S %j %Z."):
        fixed.chat_template = "{{ strftime_now(form) }}".replace("form", repr(form))
        assert prompt_text(fixed, USER) == date(2024, 2, 5).strftime(form)
    fixed.chat_template = "{{ strftime_now('%Q') }}"
    with pytest.raises(CofituneError, match=r"data\.date cannot write the format %Q"):
        prompt_text(fixed, USER)


def test_options_travel_with_a_copy(tiny_tokenizer):
    assert with_options(tiny_tokenizer, thinking="auto") is tiny_tokenizer
    emptied = with_options(tiny_tokenizer, thinking="empty")
    tiny_tokenizer.chat_template = emptied.chat_template = SWITCH
    assert prompt_text(emptied, USER).endswith(EMPTY) and not prompt_text(tiny_tokenizer, USER).endswith(EMPTY)
    emptied.chat_template = CHATML  # what was found out about the template is found out anew
    assert prompt_text(emptied, USER) == START + "\n"
    for options, sentence in (({"thinking": "no"}, "data.thinking is 'no'; it must be one of auto, with"),
                              ({"date": "today"}, "data.date is 'today'; it must be a day such as")):
        with pytest.raises(CofituneError, match=sentence):
            with_options(tiny_tokenizer, **options)
