"""`cofitune import-config`."""

from __future__ import annotations

import json

from cofitune_fast.config import load_config


def test_import_config_writes_a_configuration_and_says_what_became_of_each_key(command_line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "their.yml").write_text('base_model: OWNER/m\nmicro_batch_size: 2\nfp16: true\n"new\\e[2J": 1\n')
    status, out, err = command_line("import-config", "their.yml")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "taken          base_model: OWNER/m -> model.path"
    assert "not known      new?[2J: 1" in lines
    assert "changed        fp16: true -> model.dtype: bfloat16 (float16 needs scaled gradients)" in lines
    assert lines[-1].startswith("run.yaml: from Axolotl; 2 taken, 1 changed")
    assert load_config("run.yaml").training["per_device_train_batch_size"] == 2
    assert "cofitune train --config run.yaml" in (tmp_path / "run.yaml").read_text().splitlines()[1]

    status, out, err = command_line("import-config", "their.yml")
    assert status == 2 and err == ("cofitune: run.yaml exists; choose another --output, or replace it by --overwrite.")
    status, out, _ = command_line("import-config", "their.yml", "--overwrite", "--json", "--from", "axolotl")
    content = json.loads(out)
    assert status == 0 and content["settings"]["model.dtype"] == "bfloat16"
    assert {"kind": "taken", "key": "micro_batch_size", "value": 2, "text": "",
            "ours": "training.per_device_train_batch_size"} in content["notes"]
    assert command_line("import-config", "their.yml", "--from", "soup", "--overwrite")[2] == (
        "cofitune: --from is 'soup'; choose one of axolotl, llama-factory, ms-swift.")
