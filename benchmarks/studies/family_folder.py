"""A random model of another family, with a tokenizer, to time training on: for train_region.py.

python benchmarks/studies/family_folder.py FAMILY FOLDER [--layers 12] [--hidden 512]

FAMILY: a name of tests/families.py. The model has that family's structure at the size asked for: 8 heads, an FFN of
three times the width (half of the width per expert, 8 experts), and the tests' tokenizer of bytes.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from families import tiny_config
from tiny import make_tiny_tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--hidden", type=int, default=512)
    options = parser.parse_args()
    width, config = options.hidden, tiny_config(options.family)
    sizes = {"hidden_size": width, "num_hidden_layers": options.layers, "intermediate_size": 3 * width,
             "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": width // 8,
             "moe_intermediate_size": width // 2, "num_experts": 8, "linear_num_key_heads": 4,
             "linear_num_value_heads": 8, "linear_key_head_dim": width // 8, "linear_value_head_dim": width // 8}
    for name, size in sizes.items():
        if name in config.to_dict():
            setattr(config, name, size)
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[layer % len(config.layer_types)] for layer in range(options.layers)]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(options.folder)
    make_tiny_tokenizer().save_pretrained(options.folder)
    print(f"{options.family}: {sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters in {options.folder}")


if __name__ == "__main__":
    main()
