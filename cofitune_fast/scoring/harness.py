"""Run EleutherAI's lm-eval on the live model: its own tasks by name, and local data files as its tasks."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from ..errors import CofituneError
from ..models.mode import left_as_found
from ..progress import progress
from .ifeval import known_instructions
from .tasks import ContinuationItem, InstructionItem, Task, read_task


def harness_scores(
    model: nn.Module, tokenizer: Any, tasks: Sequence[str | Path | Task], *, limit: int | None = None,
    batch_size: int = 8, chat: bool = False, max_new_tokens: int | None = None, items: bool = False,
) -> dict[str, dict[str, Any]]:
    """Score `model` as it is now by lm-eval: {task: {"metric": value, "metric_stderr": ..., "n": items}}.

    tasks: names of lm-eval's tasks, groups and tags, whose data lm-eval loads from the hub; paths of local data files
        of the kinds choice, continuation and instruction (IFEval); or such tasks, already read.
    limit: use only the first items of each task.
    chat: render prompts through the chat template (lm-eval's apply_chat_template).
    max_new_tokens: replaces that of tasks that generate.
    items: add "items", lm-eval's samples as plain values.

    Choice: query and answer are joined by a space, or by the newline that ends the query, as in our own scores. acc is
    by summed log-likelihood, acc_norm by log-likelihood per character. Continuation: acc is exact match under greedy
    decoding, and perplexity is per item, not per token. Instruction: lm-eval's ifeval on the file's prompts.

    The model is restored, see `left_as_found`. Raises CofituneError if lm-eval is missing or a task cannot be loaded.
    """
    try:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
    except ImportError as error:
        raise CofituneError(f"lm-eval's scores need {error.name}: pip install 'cofitune-fast[eval]'.") from None
    if limit is not None and limit < 1:
        raise CofituneError(f"The limit of lm-eval's items is {limit}; it must be at least 1.")
    read = [_read(task, limit) for task in tasks]
    level = logging.getLogger("lm_eval").level
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns about live models, and logs every task
    try:
        with left_as_found(model, tokenizer), progress("Scoring with lm-eval"):
            loaded = _load(read)
            found = simple_evaluate(
                HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size), tasks=loaded, limit=limit,
                apply_chat_template=chat, bootstrap_iters=1000, log_samples=items,
                gen_kwargs={"max_gen_toks": max_new_tokens} if max_new_tokens else None,
            )
    finally:
        logging.getLogger("lm_eval").setLevel(level)
    return {name: _figures(name, found, items) for name in found["results"]}


def _read(task: str | Path | Task, limit: int | None) -> str | Task:
    """Read a file as a task. A name of an lm-eval task is returned as it is."""
    if isinstance(task, Task):
        return task
    if Path(task).suffix or Path(task).exists():
        return read_task(task, limit=limit, generate=True)
    return str(task)


def _load(tasks: Sequence[str | Task]) -> list[Any]:
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks import TaskManager

    manager = TaskManager() if any(isinstance(task, str) for task in tasks) else None
    loaded: list[Any] = []
    for task in tasks:
        if isinstance(task, Task):
            loaded.append(ConfigurableTask(config=_config(task)))
            continue
        if task not in manager.all_tasks:
            raise CofituneError(f"lm-eval knows no task {task!r}, and there is no such file; `lm-eval ls tasks` lists "
                                "its names.")
        try:
            loaded.extend(manager.load([task])["tasks"].values())
        except Exception as error:  # any error of the hub, its client or a task's own code
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            raise CofituneError(f"lm-eval cannot load the task {task!r}, whose data come from the hub ({reason}); "
                                "without a network name local data files.") from None
    return loaded


def _config(task: Task) -> dict[str, Any]:
    """lm-eval's configuration for a task whose rows are in memory."""
    if any(getattr(item, "chat", task.chat) for item in task.items):
        raise CofituneError(f"The task {task.name} asks for the chat template row by row; with lm-eval it is all or "
                            "nothing: leave `chat` out of the rows and score with chat=True.")
    if task.kind not in _CONFIGS:
        raise CofituneError(f"The task {task.name} is of the kind {task.kind}, which lm-eval is not given here; its "
                            f"kinds are {', '.join(_CONFIGS)}.")
    rows, config = _CONFIGS[task.kind](task)
    return {"task": task.name, "dataset_path": task.name, "test_split": "test", "num_fewshot": 0,
            "custom_dataset": lambda **_: _in_memory(rows), **config}


def _in_memory(rows: list[dict[str, Any]]) -> dict[str, Any]:
    from datasets import Dataset

    return {"test": Dataset.from_list(rows)}


def _choice(task: Task) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    texts = [item.query.rstrip(" ") for item in task.items]
    spaces = ["" if text[-1:].isspace() else " " for text in texts]
    # acc_norm counts an answer's characters without the delimiter. If rows differ, it must be part of the answers.
    delimiter = spaces[0] if len(set(spaces)) == 1 else ""
    rows = [{"text": text, "choices": [space.removeprefix(delimiter) + choice for choice in item.choices],
             "gold": item.gold} for item, text, space in zip(task.items, texts, spaces, strict=True)]
    return rows, {"output_type": "multiple_choice", "doc_to_text": "{{text}}", "doc_to_target": "gold",
                  "doc_to_choice": "choices", "target_delimiter": delimiter,
                  "metric_list": [{"metric": name, "aggregation": "mean", "higher_is_better": True}
                                  for name in ("acc", "acc_norm")]}


def _continuation(task: Task) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    rows = [_continuation_row(item) for item in task.items]
    return rows, {"output_type": "loglikelihood", "doc_to_text": "{{text}}", "doc_to_target": "{{target}}",
                  "target_delimiter": "",
                  "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True},
                                  {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False}]}


def _continuation_row(item: ContinuationItem) -> dict[str, Any]:
    text = item.context.rstrip(" ")
    return {"text": text, "target": item.continuation if text[-1:].isspace() else f" {item.continuation}"}


def _instruction(task: Task) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    from lm_eval.tasks.ifeval import utils

    rows = [_instruction_row(number, item) for number, item in enumerate(known_instructions(task.items))]
    mean = {"aggregation": "mean", "higher_is_better": True}
    return rows, {"output_type": "generate_until", "doc_to_text": "prompt", "doc_to_target": 0,
                  "process_results": utils.process_results,
                  "generation_kwargs": {"until": [], "do_sample": False, "temperature": 0.0, "max_gen_toks": 1280},
                  "metric_list": [
                      {**mean, "metric": f"{kind}_{how}_acc",
                       **({"aggregation": utils.agg_inst_level_acc} if kind == "inst_level" else {})}
                      for how in ("strict", "loose") for kind in ("prompt_level", "inst_level")]}


def _instruction_row(key: int, item: InstructionItem) -> dict[str, Any]:
    return {"key": key, "prompt": item.prompt, "instruction_id_list": list(item.instructions),
            "kwargs": list(map(dict, item.arguments))}


_CONFIGS = {"choice": _choice, "continuation": _continuation, "instruction": _instruction}


def _figures(name: str, found: Mapping[str, Any], items: bool) -> dict[str, Any]:
    figures = {}
    for key, value in found["results"][name].items():
        metric, comma, _ = key.partition(",")  # in "acc,none" the second word is the filter of answers
        if comma and isinstance(value, int | float):
            figures[metric] = float(value)
    counted = found.get("n-samples", {}).get(name)
    figures |= {"n": counted["effective"]} if counted else {}
    if items:
        figures["items"] = [
            {"doc_id": sample["doc_id"], "responses": sample["filtered_resps"]} for sample in found["samples"][name]
        ]
    return figures
