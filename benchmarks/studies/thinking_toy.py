"""Where the anchor's texts of a model that thinks are to begin: every choice of `anchor.thinking` on a toy.

python benchmarks/studies/thinking_toy.py [--steps 300] [--seed 0] [--modes none template empty mixed answer]
    [--json FILE]

The base is a Llama of 144 thousand parameters with the tests' tokenizer of bytes. It learns for `--steps` steps to sort
letters, with a thought before the answer (in Qwen3's form) or after an empty one. Then the FFN of its upper layers is
trained to code numbers, on rows without thoughts, once per mode; `none` is without an anchor. What is kept of the base
is KL(base || model) on what the base wrote to prompts held out. `--seed` is that of the anchor and of this second
training; the base, the prompts and the rows are the same under all seeds. It takes a few minutes; set
OMP_NUM_THREADS=1, as more threads only cost time on so small a model.
"""

from __future__ import annotations

import argparse
import copy
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from transformers import GenerationConfig

from cofitune_fast.anchor import AnchorSettings, open_anchor
from cofitune_fast.data import Encoded, Example, collate, encode_examples, encode_prompt
from cofitune_fast.data.chat import thinking_of, with_options
from cofitune_fast.models.generate import continue_prompts
from cofitune_fast.ops.linear_kl import reference as kl_of_logits
from cofitune_fast.regions import BaseInfo, Region
from cofitune_fast.training import TrainOptions, train_region

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from provenance import save
from thinking_templates import SWITCH
from tiny import make_tiny_model, make_tiny_tokenizer

MODES = ("none", "template", "empty", "mixed", "answer")
REGION = "ffn@25%-100%"
FIRST = 12  # tokens at the beginning of a response that are looked at on their own
PAD, END = 0, 2  # token ids of the tests' tokenizer
WORDS = [
    "well", "now", "first", "then", "maybe", "so", "the", "a", "of", "it", "this", "that", "order", "letters", "look",
    "sort", "check", "again", "yes", "right", "take", "each", "one",
]


def user(text: str) -> list[dict[str, str]]:
    """A conversation of one message."""
    return [{"role": "user", "content": text}]


def sorting(draw: random.Random) -> tuple[str, str, str]:
    """A prompt to sort letters, a thought of random words about it, and the answer."""
    letters = "".join(draw.choice("abcdefgh") for _ in range(draw.randint(3, 5)))
    ordered = "".join(sorted(letters))
    words = " ".join(draw.choice(WORDS) for _ in range(draw.randint(9, 14)))
    answer = f"{ordered.upper()} {draw.choice(['ok', 'done', 'bye', 'there you go'])}"
    return f"sort {letters}", f"want {letters} : {words} : {ordered}", answer


def coding(draw: random.Random) -> Example:
    """A row of the task that is trained on the base: digits reversed and spelt, without a thought."""
    digits = "".join(draw.choice("0123456789") for _ in range(4))
    return Example(user(f"code {digits}"), f"#{digits[::-1]} {'-'.join(digits)}")


class Toy:
    """The tokenizer, the two kinds of prompts, and the base."""

    def __init__(self, steps: int) -> None:
        self.tokenizer = make_tiny_tokenizer()
        self.tokenizer.chat_template = SWITCH
        self.emptied = with_options(self.tokenizer, thinking="empty")
        self.model = make_tiny_model(hidden_size=64, intermediate_size=128, head_dim=16, num_hidden_layers=3,
                                     tie_word_embeddings=False)
        self.losses = self.train_base(steps)
        self.state = copy.deepcopy(self.model.state_dict())

    def ids(self, text: str) -> list[int]:
        """Token ids of a plain text."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def prompt(self, text: str, thinks: bool) -> list[int]:
        """Token ids of a prompt, up to where the model thinks, or with an empty thought up to where it answers."""
        return encode_prompt(self.tokenizer if thinks else self.emptied, user(text))

    def base_row(self, draw: random.Random) -> Encoded:
        """A training row of the base; six in ten hold a thought."""
        question, thought, answer = sorting(draw)
        thinks = draw.random() < 0.6
        prompt = self.prompt(question, thinks)
        written = f"<think>\n{thought}\n</think>\n\n" if thinks else ""
        return Encoded(prompt + self.ids(f"{written}{answer}<|im_end|>"), len(prompt))

    def train_base(self, steps: int, rows: int = 10, rate: float = 4e-3) -> list[float]:
        """Train all weights, with a warm-up of 50 steps and a linear decay; returns the loss of every step."""
        draw, losses = random.Random(0), []
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=rate, weight_decay=0.01)
        self.model.train()
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = rate * min(1, (step + 1) / 50) * (1 - step / steps)
            loss = self.model(**collate([self.base_row(draw) for _ in range(rows)], PAD)).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            optimizer.step()
            losses.append(loss.item())
            if step % 50 == 0 or step == steps - 1:
                print(f"base, step {step}: loss {losses[-1]:.3f}", flush=True)
        self.model.eval()
        return losses

    def write(self, prompts: list[list[int]], tokens: int) -> list[Encoded]:
        """What the model writes to the prompts, sampled from its whole distribution, up to the end of its turn."""
        config = GenerationConfig(do_sample=True, top_k=0, max_new_tokens=tokens, eos_token_id=END, pad_token_id=PAD)
        torch.manual_seed(1)
        with torch.no_grad():
            written = continue_prompts(self.model, prompts, config)
        cut = [ids[:ids.index(END) + 1] if END in ids else ids for ids in written]
        return [Encoded(prompt + ids, len(prompt)) for prompt, ids in zip(prompts, cut, strict=True)]

    def logits(self, row: Encoded) -> torch.Tensor:
        """Float64 logits [response tokens, vocabulary] before each token of the response."""
        with torch.no_grad():
            return self.model(torch.tensor([row.input_ids])).logits[0, row.response_start - 1:-1].double()

    def thought_length(self, row: Encoded) -> int:
        """Number of response tokens before the end of the thought; all of them if it does not end."""
        response, close = row.input_ids[row.response_start:], self.ids(thinking_of(self.tokenizer).close)
        places = (place for place in range(len(response)) if response[place:place + len(close)] == close)
        return next(places, len(response))


def kept(toy: Toy, thoughts: list[Encoded], answers: list[Encoded],
         before: tuple[list[torch.Tensor], list[torch.Tensor]]) -> dict[str, float]:
    """KL(base || model) in nats on the base's texts, of which `before` are the base's logits.

    first: sum over the first tokens, mean over the texts. thought, end, answer: means over the tokens of thoughts, over
    those from the end of a thought on, and over those of answers after an empty thought.
    """
    of_thoughts, of_answers = (
        [kl_of_logits(base, toy.logits(row), None, False) for base, row in zip(logits, rows, strict=True)]
        for logits, rows in zip(before, (thoughts, answers), strict=True)
    )
    lengths = [toy.thought_length(row) for row in thoughts]
    parts = list(zip(of_thoughts, lengths, strict=True))
    return {
        "first": torch.stack([kl[:FIRST].sum() for kl in of_thoughts]).mean().item(),
        "thought": torch.cat([kl[:length] for kl, length in parts]).mean().item(),
        "end": torch.cat([kl[length:] for kl, length in parts]).mean().item(),
        "answer": torch.cat(of_answers).mean().item(),
    }


def task_nll(toy: Toy, rows: list[Encoded]) -> float:
    """NLL per response token in nats, mean over the rows."""
    losses = [F.cross_entropy(toy.logits(row), torch.tensor(row.input_ids[row.response_start:])) for row in rows]
    return torch.stack(losses).mean().item()


def train(toy: Toy, mode: str, seed: int, rows: list[Encoded], prompts: list[str]) -> None:
    """Train the region from the base, with an anchor of this mode."""
    toy.model.load_state_dict(toy.state)
    base = BaseInfo.of(toy.model, "toy")
    with tempfile.TemporaryDirectory() as folder:
        anchor = None
        if mode != "none":
            file = Path(folder, "prompts.txt")
            file.write_text("\n".join(prompts), encoding="utf-8")
            settings = AnchorSettings(texts=64, tokens=48, prompts=str(file), thinking=mode, thought_tokens=140,
                                      seed=seed)
            anchor = open_anchor(toy.model, toy.tokenizer, settings, base.fingerprint, folder=folder)
        training = {"num_train_epochs": 3, "learning_rate": 1.5e-3, "per_device_train_batch_size": 8, "seed": seed,
                    "disable_tqdm": True, "logging_strategy": "no"}
        train_region(toy.model, Region.parse(REGION), rows, Path(folder, "run"), training, TrainOptions(anchor=anchor),
                     base=base, pad_token_id=PAD)
    toy.model.eval()


def study(steps: int, seed: int, modes: list[str]) -> list[dict[str, Any]]:
    """One row per mode, after the base's own."""
    toy = Toy(steps)
    draw = random.Random(99)
    held_out = [sorting(draw)[0] for _ in range(12)]
    thoughts = toy.write([toy.prompt(text, True) for text in held_out], 150)
    answers = toy.write([toy.prompt(text, False) for text in held_out], 60)
    ended = sum(toy.thought_length(row) < len(row.input_ids) - row.response_start for row in thoughts)
    if not ended:
        raise SystemExit("No thought of the base ends, so there is no answer to look at; give it more --steps.")
    for row in (thoughts[0], answers[0]):
        print("the base wrote:", repr(toy.tokenizer.decode(row.input_ids[row.response_start:])), flush=True)
    before = [toy.logits(row) for row in thoughts], [toy.logits(row) for row in answers]

    draw = random.Random(5)
    rows = encode_examples([coding(draw) for _ in range(96)], toy.tokenizer)
    test = encode_examples([coding(draw) for _ in range(12)], toy.tokenizer)
    draw = random.Random(7)
    prompts = [sorting(draw)[0] for _ in range(96)]
    results = [{"mode": "base", "parameters": sum(p.numel() for p in toy.model.parameters()), "steps": steps,
                "last_loss": toy.losses[-1], "texts": len(thoughts), "ended_thoughts": ended,
                "task_nll": task_nll(toy, test)}]
    for mode in modes:
        train(toy, mode, seed, rows, prompts)
        results.append({"mode": mode, "seed": seed, "task_nll": task_nll(toy, test),
                        "kl": kept(toy, thoughts, answers, before)})
        print(describe(results[-1:]), flush=True)
    return results


def describe(rows: list[dict[str, Any]]) -> str:
    """Lines of a Markdown table."""
    return "\n".join(
        f"| {row['mode']} | {row['kl']['first']:.2f} | {row['kl']['thought']:.3f} | {row['kl']['end']:.3f} | "
        f"{row['kl']['answer']:.3f} | {row['task_nll']:.3f} |" for row in rows
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300, help="training steps of the base")
    parser.add_argument("--seed", type=int, default=0, help="seed of the anchor and of the training of the region")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--json", help="file for the results with their provenance")
    options = parser.parse_args()
    rows = study(options.steps, options.seed, options.modes)
    base = rows[0]
    print(f"\nBase: {base['parameters']} parameters, loss {base['last_loss']:.3f} at the last step, NLL of the task "
          f"{base['task_nll']:.3f}; {base['ended_thoughts']} of {base['texts']} thoughts end.\n")
    print(f"| thinking | first {FIRST} tokens, sum | thought, a token | its end and the answer | answer after an empty "
          "thought | NLL of the task |\n|---|---|---|---|---|---|")
    print(describe(rows[1:]))
    if options.json:
        save(options.json, "thinking_toy", rows)


if __name__ == "__main__":
    main()
