"""Names as people write them, and results on consoles and pipes of any encoding."""

import io
import json

import pytest
from rich.console import Console

from cofitune_fast import cli
from cofitune_fast.commands.app import emit
from cofitune_fast.commands.evaluate import _names
from cofitune_fast.errors import CofituneError


def test_names_for_the_harness_are_written_as_people_write_them(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    assert _names(" piqa, arc_easy ,~/a.jsonl,") == ["piqa", "arc_easy", "/home/somebody/a.jsonl"]
    assert _names(None) == []
    with pytest.raises(CofituneError, match="--harness is ' , ', which names no task"):
        _names(" , ")


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_results_are_printed_where_the_encoding_lacks_a_character(monkeypatch, encoding):
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2))
    monkeypatch.setattr("sys.stdout", out)
    monkeypatch.setattr("sys.stderr", err)

    def app(**_):
        emit({"text": "±你"}, False, lambda: print("0.5 ± 0.1 你好"))
        emit({"text": "±你"}, True, lambda: None)
        Console(stderr=True).print("━━ 你好")

    monkeypatch.setattr(cli, "app", app)
    cli.main()
    for stream in (out, err):
        stream.flush()
    shown, as_json = out.buffer.getvalue().decode(encoding).splitlines()
    assert shown == f"0.5 {'±' if encoding == 'cp1252' else '?'} 0.1 ??"
    assert json.loads(as_json) == {"text": "±你"}
    assert err.buffer.getvalue().decode(encoding).strip() == "?? ??"
