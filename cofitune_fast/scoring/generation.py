"""Scores of generated text: greedy decoding, then metrics against references or instructions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers import GenerationConfig

from ..data import Example, encode_prompt, pad_token_id, plan_batches
from ..data.formats import Message
from ..data.turns import turn_end
from ..errors import CofituneError
from ..models.generate import continue_prompts, wrote
from ..models.mode import left_as_found
from ..progress import progress
from .ifeval import followed_instructions, known_instructions
from .results import Score, score_of
from .tasks import METRICS, Task
from .text_metrics import marked_answer, text_scorer

GENERATION_TOKENS = 16384
"""Bound on the tokens of a batch in generation, including prompts, responses and padding."""
_MAX_NEW_TOKENS = {"response": 256, "instruction": 1280}  # 1280 as in lm-eval's ifeval


def generation_score(
    model: nn.Module, tokenizer: Any, task: Task, *, max_new_tokens: int | None = None,
    max_tokens_per_batch: int = GENERATION_TOKENS,
) -> Score:
    """Score a task of kind response or instruction by greedy decoding from its prompts.

    - response: bleu, chrf and rouge_l against the references, or against the response of a row without references. If
      every response has an answer after ####, as in GSM8K, there are two more: exact_answer is the fraction of texts
      whose number after the first #### is that answer, and last_number the fraction whose last number is.
    - instruction (IFEval): prompt_level_strict_acc is the fraction of prompts whose instructions are all followed, and
      inst_level_strict_acc the fraction of instructions that are followed, by lm-eval's checkers; the two of the name
      loose_acc forgive asterisks, a first and a last line. Prompts that cannot be checked here are left out, see
      `ifeval.known_instructions`; the score's n counts the others.

    All metrics lie in [0, 1]. The value is the task's metric if it is one of these, else bleu. max_new_tokens replaces
    that of the task. The items keep the texts. Model and tokenizer are restored, see `left_as_found`.
    Raises CofituneError for other kinds, a missing package, a prompt that leaves no room, an unknown instruction.
    """
    if task.kind not in _MAX_NEW_TOKENS:
        raise CofituneError(f"The task {task.name} is of the kind {task.kind}, for which no text is generated.")
    items: Sequence[Any] = task.items
    if task.kind == "instruction":
        items = known_instructions(items)
    else:
        score = text_scorer()
    texts = generate_texts(
        model, tokenizer, [_prompt(item) for item in items], max_new_tokens=max_new_tokens or most_new_tokens(task),
        max_tokens_per_batch=max_tokens_per_batch, where=[item.where for item in items],
    )
    if task.kind == "instruction":
        return score_of(followed_instructions(items, texts), task.primary, METRICS["instruction"])
    references = [item.references or (item.response,) for item in items]
    answers = all(marked_answer(text) is not None for texts in references for text in texts)
    scored = [score(text.strip(), wanted, answers) for text, wanted in zip(texts, references, strict=True)]
    names = ("bleu", "chrf", "rouge_l", *(("exact_answer", "last_number") if answers else ()))
    metric = task.primary if task.is_generated else "bleu"
    if metric not in names:
        raise CofituneError(f"The task {task.name} asks for {metric}, but not every response has a number after ####.")
    return score_of(scored, metric, names)


def generate_texts(
    model: nn.Module, tokenizer: Any, prompts: Sequence[list[Message]], *, max_new_tokens: int,
    max_tokens_per_batch: int = GENERATION_TOKENS, where: Sequence[str] = (),
) -> list[str]:
    """Generate the greedy response to each prompt, without end of turn and special tokens.

    A response ends as `data.turns.turn_end` says, after `max_new_tokens`, or at the model's maximum length. Prompts of
    similar length are decoded together, padded on the left. The model's own generation settings (penalties,
    temperature) are not used.
    """
    encoded = [encode_prompt(tokenizer, messages) for messages in prompts]
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    for number, ids in enumerate(encoded):
        if longest is not None and len(ids) >= longest:
            name = where[number] if where and where[number] else f"Prompt {number + 1}"
            raise CofituneError(f"{name} has {len(ids)} tokens, which leaves the model no room to answer in {longest}.")
    ends, end = turn_end(tokenizer, getattr(model, "generation_config", None))
    texts = [""] * len(encoded)
    with left_as_found(model, tokenizer), progress("Writing responses", len(encoded), "responses") as task:
        for indices in plan_batches([len(ids) + max_new_tokens for ids in encoded], max_tokens=max_tokens_per_batch):
            batch = [encoded[index] for index in indices]
            room = max_new_tokens if longest is None else min(max_new_tokens, longest - max(map(len, batch)))
            config = GenerationConfig(
                do_sample=False, max_new_tokens=room, eos_token_id=sorted(ends) or None,
                pad_token_id=pad_token_id(tokenizer), use_cache=True,
            )
            options = {} if end is None else {"stopping_criteria": [wrote(tokenizer, end, max(map(len, batch)))]}
            for index, ids in zip(indices, continue_prompts(model, batch, config, **options), strict=True):
                stop = next((place for place, token in enumerate(ids) if token in ends), len(ids))
                text = tokenizer.decode(ids[:stop], skip_special_tokens=end is None)
                texts[index] = text if end is None else text.partition(end)[0]
            task.advance(len(indices))
    return texts


def most_new_tokens(task: Task) -> int:
    """Maximum number of tokens of a response of the task."""
    return task.max_new_tokens or _MAX_NEW_TOKENS[task.kind]


def generation_tokens(task: Task, tokenizer: Any) -> tuple[int, int]:
    """Count (tokens of prompts and responses, tokens of responses), with responses of maximum length."""
    responses = len(task.items) * most_new_tokens(task)
    return responses + sum(len(encode_prompt(tokenizer, _prompt(item))) for item in task.items), responses


def _prompt(item: Any) -> list[Message]:
    return item.prompt if isinstance(item, Example) else [{"role": "user", "content": item.prompt}]
