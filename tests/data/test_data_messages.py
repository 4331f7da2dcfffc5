from __future__ import annotations

import json

import pytest

from cofitune_fast.data import parse_examples
from cofitune_fast.data.row import Row
from cofitune_fast.errors import CofituneError


def turn(role, content, **also):
    return {"role": role, "content": content, **also}


HI, YO = turn("user", "hi"), turn("assistant", "yo")
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
RESULT = turn("tool", "2")


def read(on_bad_row="stop", **fields):
    return parse_examples([Row(fields, "x:1")], on_bad_row)


@pytest.mark.parametrize(
    ("turns", "expected"),
    [
        ([turn(" User ", "hi"), turn("ASSISTANT", "yo")], [([HI], YO)]),
        ([{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}], [([HI], YO)]),
        ([turn("user", [{"type": "text", "text": "h", "image_url": None}, "i"]), YO], [([HI], YO)]),
        ([turn("user", 5), turn("assistant", 6.5)], [([turn("user", "5")], turn("assistant", "6.5"))]),
        # a turn that is not learnt stays in the prompt of the next
        ([HI, turn("assistant", "yo", weight=0), HI, turn("assistant", "yo", weight=1)],
         [([HI, YO, HI], YO)]),
        ([turn("user", "hi", train=False), turn("assistant", "no", loss=False), HI,
          turn("assistant", "yo", training=True)],
         [([HI, turn("assistant", "no"), HI], YO)]),
        # thoughts
        ([HI, turn("assistant", "yo", thinking="hm")], [([HI], {**YO, "reasoning_content": "hm"})]),
        ([HI, turn("assistant", [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "yo"}])],
         [([HI], {**YO, "reasoning_content": "hm"})]),
        # calls of tools
        ([HI, turn("assistant", None, tool_calls=[{"id": "1", **CALL}]), {**RESULT, "tool_call_id": "1"}, YO],
         [([HI], turn("assistant", "", tool_calls=[{"id": "1", **CALL}])),
          ([HI, turn("assistant", "", tool_calls=[{"id": "1", **CALL}]), {**RESULT, "tool_call_id": "1"}], YO)]),
        ([HI, {"role": "assistant", "function_call": {"name": "add", "arguments": '{"a": 1}'}},
          turn("function", "2", name="add"), YO],
         [([HI], turn("assistant", "", tool_calls=[CALL])),
          ([HI, turn("assistant", "", tool_calls=[CALL]), {**RESULT, "name": "add"}], YO)]),
        ([{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"},
          {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 1}}'},
          {"from": "observation", "value": {"sum": 2}}],
         [([HI], {**YO, "tool_calls": [CALL]})]),
        ([HI, YO, turn("tool", [1, 2]), YO, turn("tool", {"a": "é"}), YO],
         [([HI], YO), ([HI, YO, turn("tool", "[1, 2]")], YO),
          ([HI, YO, turn("tool", "[1, 2]"), YO, turn("tool", '{"a": "é"}')], YO)]),
        # what says nothing about training
        ([turn("user", "hi", id=3, images=[]), turn("assistant", "yo", name=None, weight=None, refusal=None)],
         [([HI], YO)]),
        # nobody has spoken before the first answer
        ([turn("assistant", "hello"), HI, YO], [([HI], YO)]),
    ],
)
def test_turns_of_all_tools(turns, expected):
    for name in ("messages", "conversations"):
        assert [(row.prompt, row.answer) for row in read(**{name: turns})] == expected
        assert [(row.prompt, row.answer) for row in read(**{name: json.dumps(turns)})] == expected


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (turn("user", [{"type": "image_url", "image_url": {"url": "x"}}]), "turn 2, a part of the type 'image_url'"),
        (turn("assistant", [{"type": "tool_use", "id": "x"}]), "turn 2, a part of the type 'tool_use'; write calls as"),
        (turn("user", [{"text": "x", "image": "y"}]), "turn 2, a part of the type 'image'; only text is trained"),
        (turn("assistant", "x", audio={"id": "y"}), "turn 2, the key 'audio', which is not understood; only text"),
        (turn("assistant", "x", weight=0.5), "turn 2, 0.5 as 'weight'"),
        (turn("user", "x", train=True), "turn 2, True as 'train' in a turn of the user"),
        (turn("assistant", "x", train_detail=[{"begin": 0}]), "turn 2, the key 'train_detail', which is"),
        (turn("assistant", "x", lossScale=2), "turn 2, the key 'lossScale', which is not understood"),
        (turn("assistant", "x", refusal="no"), "turn 2, the key 'refusal', which is not understood"),
        (turn("assistant", "x", thinking="a", reasoning="b"), "turn 2, two different thoughts"),
        (turn("user", "x", tool_calls=[CALL]), "turn 2, 'tool_calls' in a turn of the user"),
        (turn("assistant", "", tool_calls=[{"function": {"name": "f", "arguments": "{"}}]), "turn 2, a call of 'f' wh"),
        ({"from": "function_call", "value": "f(1)"}, "turn 2, a tool call that is no object"),
        (turn("assistant", True), "turn 2, a truth value as 'content'"),
        (turn("user", "\udc00"), "turn 2, half of a character"),
    ],
)  # fmt: skip
def test_what_is_refused_is_named_with_its_turn(extra, words):
    with pytest.raises(CofituneError, match=f"^x:1 has in 'messages', {words}"):
        read(messages=[HI, extra, HI, YO])


@pytest.mark.parametrize("tools", [
    [{"type": "function", "function": {"name": "add"}}], [{"name": "add"}], '[{"name": "add"}]', {"name": "add"},
])
@pytest.mark.parametrize("key", ["tools", "functions"])
def test_tools_of_a_row(key, tools):
    (example,) = read(messages=[HI, YO], **{key: tools})
    assert example.tools == ({"type": "function", "function": {"name": "add"}},)


def test_changes_are_recorded():
    examples = read(messages=[YO, HI, turn("assistant", "yo", emotion="joy")])
    assert examples.faults.changed == {
        "the key 'emotion' of turns left out": ["x:1"],
        "the assistant's first turn left out, as nobody speaks before it": ["x:1"],
    }


def test_nothing_to_learn_is_told():
    with pytest.raises(CofituneError, match="x:1 has no assistant turn that is to be learnt"):
        read(messages=[HI, turn("assistant", "yo", weight=0)])
