"""Uses an installed cofitune_fast as its user does: import, ops, a training, the merged folder, the command line.

    python tests/packaging/use_installed.py [cpu | reference]     the backend that the ops must choose; cpu by default

The tests run it in a fresh environment, cibuildwheel on each wheel it makes. It needs the extra `cli`, nothing of a
checkout, and no network. It stops at the first thing that is wrong.
"""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import cofitune_fast as cf
from cofitune_fast.ops import native

backend = sys.argv[1] if len(sys.argv) > 1 else "cpu"
home = Path(cf.__file__).resolve()
assert home.is_relative_to(Path(sys.prefix).resolve()), f"{home} is not what is installed in {sys.prefix}"
assert importlib.metadata.version("cofitune-fast") == cf.__version__
assert (home.parent / "py.typed").is_file() and (home.parent / "kernels" / "masked_adamw.py").is_file()

assert (native.load_error() is None) == (backend == "cpu"), native.load_error()
student, teacher, weight = torch.randn(8, 16), torch.randn(8, 16), torch.randn(50, 16)
torch.testing.assert_close(cf.ops.linear_kl(student, teacher, weight, backend=backend),
                           cf.ops.linear_kl(student, teacher, weight, backend="reference"))

words = ["<pad>", "<s>", "</s>", *"abcdefghijklmnopqrstuvwxyz:? "]
tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="?"))
tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
torch.manual_seed(0)
config = LlamaConfig(vocab_size=len(words), hidden_size=32, intermediate_size=48, num_hidden_layers=4,
                     num_attention_heads=4, num_key_value_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=2)

with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    LlamaForCausalLM(config).save_pretrained(folder / "base")
    fast.save_pretrained(folder / "base")
    rows = "\n".join(f'{{"prompt": "say {letter}", "completion": "{letter * 3}"}}' for letter in "abcdefgh")
    (folder / "train.jsonl").write_text(rows, encoding="utf-8")

    model = cf.load_model(folder / "base").model
    base = cf.BaseInfo.of(model, folder / "base")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    encoded = cf.encode_examples(cf.read_examples(folder / "train.jsonl"), fast, max_length=32)
    region = cf.Region.parse("ffn@50%-100%")
    arguments = {"num_train_epochs": 1, "learning_rate": 1e-2, "warmup_steps": 0}
    cf.train_region(model, region, encoded, folder / "run", arguments, base=base, pad_token_id=0)
    cf.save_delta(model, region, folder / "delta", base=base)
    cf.merge(folder / "base", folder / "delta", folder / "merged")
    merged = LlamaForCausalLM.from_pretrained(folder / "merged").state_dict()
    changed = {key for key, value in merged.items() if not torch.equal(value, before[key])}
    wanted = {f"model.layers.{layer}.mlp.{part}_proj.weight" for layer in (2, 3) for part in ("gate", "up", "down")}
    assert changed == wanted, changed

    script = Path(sysconfig.get_path("scripts"), "cofitune")
    said = subprocess.run([script, "--version"], cwd=folder, check=True, capture_output=True, text=True).stdout
    assert cf.__version__ in said, said
    said = subprocess.run([script, "env"], cwd=folder, check=True, capture_output=True, text=True).stdout
    assert cf.__version__ in said, said
print(f"cofitune-fast {cf.__version__}, Python {sys.version.split()[0]}, torch {torch.__version__}, ops: {backend}")
