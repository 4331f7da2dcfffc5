"""Scores of generated text: greedy decoding, then metrics against references or instructions."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn
from transformers import GenerationConfig

from ..data import Example, encode_prompt, pad_token_id, plan_batches
from ..data.chat import TurnEnd, answer_of, content_of, turn_end
from ..data.formats import Message
from ..errors import CofituneError
from ..models.generate import continue_prompts, wrote
from ..models.mode import left_as_found
from ..progress import progress
from .ifeval import followed_instructions, known_instructions
from .numbers import marked_answer
from .results import Score, score_of
from .tasks import METRICS, Task
from .text_metrics import limits_of_metrics, text_scorer

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

    What is scored is the answer: thoughts, and what the chat template writes before an answer, are cut from texts and
    references. All metrics lie in [0, 1]. The value is the task's metric if it is one of these, else the first of them.
    A metric that has no meaning for these references is left out, and the score's notes say why, see
    `limits_of_metrics`. max_new_tokens replaces that of the task. The items keep the texts. Model and tokenizer are
    restored, see `left_as_found`. Raises CofituneError for other kinds, a missing package, a prompt that leaves no
    room, an unknown instruction, and before anything is generated for a metric without meaning.
    """
    if task.kind not in _MAX_NEW_TOKENS:
        raise CofituneError(f"The task {task.name} is of the kind {task.kind}, for which no text is generated.")
    instructions = task.kind == "instruction"
    items: Sequence[Any] = known_instructions(task.items) if instructions else task.items
    measure = None if instructions else _measure(task, tokenizer)
    texts = generate_texts(
        model, tokenizer, [_prompt(item) for item in items], max_new_tokens=max_new_tokens or most_new_tokens(task),
        max_tokens_per_batch=max_tokens_per_batch, where=[item.where for item in items],
        tools=[getattr(item, "tools", ()) for item in items],
    )
    if measure is None:
        return score_of(followed_instructions(items, texts), task.primary, METRICS["instruction"])
    return measure(texts)


def _measure(task: Task, tokenizer: Any) -> Callable[[Sequence[str]], Score]:
    """Make a function that scores the generated texts of a response task."""
    score = text_scorer()
    references = [item.references or (content_of(tokenizer, item),) for item in task.items]
    answers = all(marked_answer(text) is not None for texts in references for text in texts)
    none, some = limits_of_metrics(references)
    names = [name for name in ("bleu", "chrf", "rouge_l") if name not in none]
    names += ["exact_answer", "last_number"] if answers else []
    metric = task.primary if task.is_generated else next(iter(names), "chrf")
    if metric not in names:
        reason = none.get(metric, "not every response has a number after ####")
        raise CofituneError(f"The task {task.name} asks for {metric}, but {reason}.")

    def measure(texts: Sequence[str]) -> Score:
        scored = [score(text.strip(), wanted, answers) for text, wanted in zip(texts, references, strict=True)]
        notes = {**{name: f"not given: {reason}" for name, reason in none.items()}, **some}
        return replace(score_of(scored, metric, names), notes=notes)

    return measure


def generate_texts(
    model: nn.Module, tokenizer: Any, prompts: Sequence[list[Message]], *, max_new_tokens: int,
    max_tokens_per_batch: int = GENERATION_TOKENS, where: Sequence[str] = (),
    tools: Sequence[Sequence[Mapping[str, Any]]] = (),
) -> list[str]:
    """Generate the greedy answer to each prompt, without thought, end of turn and special tokens.

    A response ends as `data.chat.turn_end` says, after `max_new_tokens`, or at the model's maximum length. A response
    whose thought has not ended by then has no answer: its text is empty, and a warning counts such responses. Prompts
    of similar length are decoded together, padded on the left. The model's own generation settings (penalties,
    temperature) are not used.

    Args:
        tools: definitions of the tools of each prompt; none by default.
    """
    encoded = [encode_prompt(tokenizer, messages, tools[number] if tools else ())
               for number, messages in enumerate(prompts)]
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    for number, ids in enumerate(encoded):
        if longest is not None and len(ids) >= longest:
            name = where[number] if where and where[number] else f"Prompt {number + 1}"
            raise CofituneError(f"{name} has {len(ids)} tokens, which leaves the model no room to answer in {longest}.")
    end = turn_end(tokenizer, getattr(model, "generation_config", None))
    texts: list[str | None] = [None] * len(encoded)
    with left_as_found(model, tokenizer), progress("Writing responses", len(encoded), "responses") as task:
        for indices in plan_batches([len(ids) + max_new_tokens for ids in encoded], max_tokens=max_tokens_per_batch):
            batch = [encoded[index] for index in indices]
            room = max_new_tokens if longest is None else min(max_new_tokens, longest - max(map(len, batch)))
            config = GenerationConfig(
                do_sample=False, max_new_tokens=room, eos_token_id=sorted(end.tokens) or None,
                pad_token_id=pad_token_id(tokenizer), use_cache=True,
            )
            options = {} if end.text is None else {
                "stopping_criteria": [wrote(tokenizer, end.text, max(map(len, batch)))]}
            for index, ids in zip(indices, continue_prompts(model, batch, config, **options), strict=True):
                texts[index] = answer_text(tokenizer, end, ids)
            task.advance(len(indices))
    unfinished = texts.count(None)
    if unfinished:
        warnings.warn(
            f"{unfinished} of {len(texts)} generated texts hold a thought that does not end within {max_new_tokens} "
            "tokens, and so no answer; raise max_new_tokens, or set data.thinking to empty.", stacklevel=2,
        )
    return [text or "" for text in texts]


def answer_text(tokenizer: Any, end: TurnEnd, ids: Sequence[int]) -> str | None:
    """Read the answer in the ids of a response, without special tokens; None if its thought does not end."""
    whole = end.text_before(tokenizer, ids)
    answer = answer_of(tokenizer, whole)
    if end.text is not None:
        return answer
    if answer == whole:
        return tokenizer.decode(ids[: end.places(tokenizer, ids)[0]], skip_special_tokens=True)
    for token in tokenizer.all_special_tokens if answer else ():
        answer = answer.replace(token, "")
    return answer


def most_new_tokens(task: Task) -> int:
    """Maximum number of tokens of a response of the task."""
    return task.max_new_tokens or _MAX_NEW_TOKENS[task.kind]


def generation_tokens(task: Task, tokenizer: Any) -> tuple[int, int]:
    """Count (tokens of prompts and responses, tokens of responses), with responses of maximum length."""
    responses = len(task.items) * most_new_tokens(task)
    prompts = sum(len(encode_prompt(tokenizer, _prompt(item), getattr(item, "tools", ()))) for item in task.items)
    return responses + prompts, responses


def _prompt(item: Any) -> list[Message]:
    return item.prompt if isinstance(item, Example) else [{"role": "user", "content": item.prompt}]
