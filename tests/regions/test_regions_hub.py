"""The hub: the real client against a stand-in on this machine, and what is said where there is no hub."""

from __future__ import annotations

import json

import pytest
from fake_hub import READ_ONLY, TOKEN, FakeHub
from huggingface_hub import ModelCard, constants
from test_regions_delta import tune
from tiny import make_tiny_model
from typer.testing import CliRunner

import cofitune_fast as cf
from cofitune_fast.cli import app
from cofitune_fast.models.fingerprint import tensor_digests
from cofitune_fast.regions import read_delta

FILE = "/{repo_id}/resolve/{revision}/{filename}"
SCORES = {"base": {"spec": 0.25, "spec_se": 0.05}, "fine | <b>": {"spec": 0.75, "spec_se": 0.01}}


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with FakeHub() as server:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + FILE)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield server
        server.shutdown()


@pytest.fixture
def base(tmp_path, tiny_tokenizer):
    """A base in a folder whose card says its licence."""
    make_tiny_model().save_pretrained(tmp_path / "home" / "base")
    tiny_tokenizer.save_pretrained(tmp_path / "home" / "base")
    (tmp_path / "home" / "base" / "README.md").write_text(
        "---\nlicense: other\nlicense_name: tiny\nlicense_link: https://example.org/tiny\nlanguage: [en, de]\n---\n")
    return tmp_path / "home" / "base"


@pytest.fixture
def delta(tmp_path, base):
    """A delta beside the things that a training leaves, and the tuned model's digests."""
    model = make_tiny_model()
    info = cf.BaseInfo.of(model, str(base))
    region, folder = tune(model), tmp_path / "home" / "run" / "delta"
    cf.save_delta(model, region, folder, base=info, scores=SCORES, settings={
        "command": f"cofitune train --model {base} --data '{tmp_path}/my data/rows.jsonl'", "note": "a ``` fence"})
    (folder / "optimizer.safetensors").write_bytes(b"0")
    (folder / "checkpoint-1").mkdir()
    return folder, tensor_digests(model)


def test_a_delta_goes_to_the_hub_and_comes_back(hub, delta, base, tmp_path, monkeypatch, caplog):
    folder, tuned = delta
    monkeypatch.chdir(tmp_path)
    hub.add("org/tiny", card={"license": "apache-2.0", "language": "en"})
    commit = cf.push_to_hub(folder, "me/tiny-delta", base_model="org/tiny", datasets="org/rows", private=True)
    files = hub.files("me/tiny-delta")
    assert set(files) == {"delta.safetensors", "cofitune.json", "README.md"}
    assert hub.repositories["me/tiny-delta"]["private"]
    assert hub.messages == [f"Upload the delta {read_delta(folder).region}"]
    assert not [name for name, content in files.items() if str(tmp_path).encode() in content]  # nobody's folders
    assert str(tmp_path) not in caplog.text and commit.oid == hub.repositories["me/tiny-delta"]["branches"]["main"]
    card = ModelCard(files["README.md"].decode())
    assert card.data.to_dict() == {
        "base_model": "org/tiny", "base_model_relation": "adapter", "library_name": "cofitune-fast",
        "tags": ["cofitune"], "license": "other", "license_name": "tiny", "license_link": "https://example.org/tiny",
        "language": ["en", "de"], "datasets": "org/rows"}
    assert 'cf.merge("org/tiny", "me/tiny-delta", "merged")' in card.text
    assert "cofitune train --model base --data rows.jsonl" in card.text
    assert json.loads(files["cofitune.json"])["base"]["model"] == "org/tiny"

    cf.load_delta(model := make_tiny_model(), "me/tiny-delta")
    assert tensor_digests(model) == tuned and read_delta("me/tiny-delta").base.model == "org/tiny"
    pinned = f"me/tiny-delta@{commit.oid}"
    merged = CliRunner().invoke(app, ["merge", "--model", str(base), "--delta", pinned, "--output", "merged"])
    assert merged.exit_code == 0, merged.output
    assert tensor_digests(cf.load_model(tmp_path / "merged", device="cpu").model) == tuned
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # from the cache
    cf.load_delta(model := make_tiny_model(), "me/tiny-delta")
    assert tensor_digests(model) == tuned
    with pytest.raises(cf.CofituneError, match=r"belongs to the base org/tiny \([0-9a-f]{12}, float32\)"):
        cf.load_delta(make_tiny_model(seed=1), "me/tiny-delta")
    asked = len(hub.asked)
    cf.save_delta(make_tiny_model(), "mha@1", "me/tiny-delta")  # a folder of that name goes before
    assert read_delta("me/tiny-delta").region == "mha@1" and len(hub.asked) == asked


def test_a_card_that_was_edited_keeps_its_text(hub, delta, monkeypatch):
    folder, _ = delta
    card = folder / "README.md"
    card.write_text(card.read_text().replace("license: other\n", "license: mit\n") + "\nMy own words.\n")
    cf.push_to_hub(folder, "mine", revision="trial", language="fr", license="cc0-1.0")
    pushed = ModelCard(hub.files("me/mine", "trial")["README.md"].decode())
    assert pushed.text.endswith("\nMy own words.\n") and not hub.files("me/mine")
    assert pushed.data.language == "fr" and pushed.data.license == "cc0-1.0" and pushed.data.license_name is None
    assert pushed.data.base_model is None  # the base is a folder here
    cf.load_delta(make_tiny_model(), "me/mine@trial")


def test_a_merged_model_goes_to_the_hub_and_nothing_private(hub, delta, base, tmp_path, caplog):
    out = cf.merge(None, delta[0], tmp_path / "merged")  # the delta names its base
    (out / "optimizer.pt").write_bytes(b"0")
    (out / "checkpoint-2").mkdir()
    private = {"id_rsa", "credentials", "secrets.json", "notes.txt", "own.py"}
    for name in (*private, "modeling_mine.py", "LICENSE.txt", "qwen.tiktoken"):
        (out / name).write_text("x")
    config = json.loads((out / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "modeling_mine.Mine", "AutoConfig": "org/other--own.Config"}
    (out / "config.json").write_text(json.dumps(config))
    result = CliRunner().invoke(app, ["push", str(out), "me/tuned", "--json", "--license", "apache-2.0"])
    assert result.exit_code == 0, result.output
    files = hub.files("me/tuned")
    assert json.loads(result.stdout) == {"url": f"{hub.url}/me/tuned",
                                         "commit": hub.repositories["me/tuned"]["branches"]["main"]}
    assert set(files) == {file.name for file in out.iterdir()} - {"optimizer.pt", "checkpoint-2"} - private
    assert all(name in caplog.text for name in private)
    assert files["model.safetensors"] == (out / "model.safetensors").read_bytes()
    assert ModelCard(files["README.md"].decode()).data.license == "apache-2.0"


def test_what_is_refused(hub, delta, base, tmp_path, monkeypatch):
    folder, _ = delta

    def refused(match, *arguments, function=cf.push_to_hub, **options):
        with pytest.raises(cf.CofituneError, match=match) as raised:
            function(*arguments, **options)
        assert "\n" not in str(raised.value)

    monkeypatch.chdir(tmp_path)
    refused("is a model that cofitune merge did not write", base, "me/x")
    refused("is not a delta: .* did you mean", folder.parent, "me/x")
    (folder / "checkpoint.json").write_text("{}")
    refused("is a checkpoint of a training", folder, "me/x")
    (folder / "checkpoint.json").unlink()
    hub.add("me/public")
    refused("exists and is public", folder, "me/public", private=True)
    refused("has no model org/absent", folder, "me/x", base_model="org/absent")
    refused("the card's header .*license", folder, "me/x", license="nonsense")
    refused("name the repository OWNER/NAME", folder, "a/b/c")
    refused("does not know the token", folder, "me/x", token="hf_wrong")
    refused("may not do this", folder, "me/x", token=READ_ONLY)
    monkeypatch.delenv("HF_TOKEN")
    refused("no token of the hub is known here; log in", folder, "me/x")
    assert "me/x" not in hub.repositories or not hub.files("me/x")

    load = {"function": read_delta}
    hub.add("me/closed", private=True)
    refused("There is no folder me/none here, .* no such repository, or it is private", "me/none", **load)
    refused("no such repository, or it is private", "me/closed", **load)
    refused("no such revision", "me/public@v9", **load)
    refused("lacks delta.safetensors", "me/public", **load)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", constants.ENDPOINT + FILE)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)  # the client tries again
    refused("the hub cannot be reached, and its cache on this machine lacks it", "me/other", **load)
    refused("the hub cannot be reached: give the command anew", folder, "me/x", token=TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refused("HF_HUB_OFFLINE is set, so that the hub is not asked", "me/other", **load)
    refused("HF_HUB_OFFLINE is set", folder, "me/x", token=TOKEN)
    refused("no folder me/model here.*HF_HUB_OFFLINE is set", "me/model", function=cf.load_model)


def test_the_card_says_what_there_is_and_shows_what_a_user_wrote_as_it_is(delta, base):
    folder, _ = delta
    card = ModelCard((folder / "README.md").read_text(encoding="utf-8"))
    assert card.data.license == "other" and card.data.language == ["en", "de"] and card.data.base_model is None
    assert str(base.parent) not in card.content
    assert "layer     0\nattn.q    ·██·\nattn.k    ····\n" in card.text
    assert "ffn.gate  ····\nffn.up    ·██·\nffn.down  ·██·\n" in card.text
    assert "| base | 0.2500 [0.1520, 0.3480] |" in card.text
    assert "| fine \\| \\<b\\> | 0.7500 [0.7304, 0.7696] |" in card.text
    assert "````json\n" in card.text  # a fence longer than the one in the settings
    elements = sum(tensor.numel() for _, tensor in cf.Region.parse("ffn.up+ffn.down+attn.q@25%-75%").parameters(
        make_tiny_model()))
    assert f"(6 tensors, {elements:,} numbers)" in card.text and read_delta(folder).base.fingerprint in card.text


def test_without_a_network_the_cache_is_used_at_once_and_a_missing_model_is_told(hub, base, monkeypatch):
    hub.add("me/model")
    hub.commit("me/model", "main", {file.name: file.read_bytes() for file in base.iterdir()})
    expected = tensor_digests(cf.load_model("me/model", device="cpu").model)
    closed = "http://127.0.0.1:9"
    monkeypatch.setattr(constants, "ENDPOINT", closed)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", closed + FILE)
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail("the client tries again"))
    assert tensor_digests(cf.load_model("me/model", device="cpu").model) == expected
    with pytest.raises(cf.CofituneError, match=r"no folder me/other here.*the hub cannot be reached"):
        cf.load_model("me/other")
    with pytest.raises(cf.CofituneError, match=r"no folder runs/dleta here.*the hub cannot be reached"):
        cf.load_delta(make_tiny_model(), "runs/dleta")
