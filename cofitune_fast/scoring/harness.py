"""Run EleutherAI's lm-eval on the live model: its own tasks by name, and local data files as its tasks."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..data import pad_token_id
from ..data.chat import answer_of, prompt_text, thinking_of, turn_end
from ..data.encode import encode_continuation, text_ids
from ..errors import CofituneError
from ..models.mode import left_as_found
from ..progress import progress
from .ifeval import known_instructions
from .score import in_turns, up_to_answer
from .tasks import InstructionItem, Task, join, read_task

Join = Callable[[str, Sequence[str]], tuple[str, list[str]]]
"""How a query and its answers stand together, see `tasks.join` and `score.in_turns`."""


def harness_scores(
    model: nn.Module, tokenizer: Any, tasks: Sequence[str | Path | Task], *, limit: int | None = None,
    batch_size: int = 8, chat: bool = False, max_new_tokens: int | None = None, items: bool = False,
) -> dict[str, dict[str, Any]]:
    """Score `model` as it is now by lm-eval: {task: {"metric": value, "metric_stderr": ..., "n": items}}.

    tasks: names of lm-eval's tasks, groups and tags, whose data lm-eval loads from the hub; paths of local data files
        of the kinds choice, continuation and instruction (IFEval); or such tasks, already read.
    limit: use only the first items of each task.
    chat: render prompts through the chat template, as in training and in our own scores (in place of lm-eval's
        apply_chat_template); an answer stands where the template puts the content of the assistant's turn.
    max_new_tokens: replaces that of tasks that generate.
    items: add "items", lm-eval's samples as plain values.

    Choice: query and answer are joined as in our own scores, see `tasks.join`. acc is by summed log-likelihood, and
    acc_norm by log-likelihood per character. Continuation: acc is exact match under greedy decoding, and perplexity is
    per item, not per token. Instruction: lm-eval's ifeval on the file's prompts. Thoughts are cut from generated
    texts; a text whose thought does not end is empty, and a warning counts such texts.

    The model is restored, see `left_as_found`. Raises CofituneError if lm-eval is missing or a task cannot be loaded.
    """
    try:
        from lm_eval import simple_evaluate
    except ImportError as error:
        raise CofituneError(f"lm-eval's scores need {error.name}: pip install 'cofitune-fast[eval]'.") from None
    if limit is not None and limit < 1:
        raise CofituneError(f"The limit of lm-eval's items is {limit}; it must be at least 1.")
    read = [_read(task, limit) for task in tasks]
    level = logging.getLogger("lm_eval").level
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns about live models, and logs every task
    try:
        with left_as_found(model, tokenizer), progress("Scoring with lm-eval"):
            loaded = _load(read, in_turns if chat else join)
            live = _live_model(model, tokenizer, batch_size, chat)
            found = simple_evaluate(
                live, tasks=loaded, limit=limit,
                apply_chat_template=chat, bootstrap_iters=1000, log_samples=items,
                gen_kwargs={"max_gen_toks": max_new_tokens} if max_new_tokens else None,
            )
    finally:
        logging.getLogger("lm_eval").setLevel(level)
    if live.unfinished:
        warnings.warn(f"{live.unfinished} of {live.texts} texts generated for lm-eval hold a thought that does not "
                      "end, and so no answer; raise max_new_tokens, or set data.thinking to empty.", stacklevel=2)
    return {name: _figures(name, found, items) for name in found["results"]}


def _live_model(model: nn.Module, tokenizer: Any, batch_size: int, chat: bool) -> Any:
    """lm-eval's view of the model, with our rendering of conversations and our reading of what is generated."""
    from lm_eval.models.huggingface import HFLM

    end = turn_end(tokenizer, getattr(model, "generation_config", None)) if chat else None

    class LiveModel(HFLM):
        def apply_chat_template(self, chat_history: list[dict[str, Any]], add_generation_prompt: bool = True) -> str:
            if not add_generation_prompt:  # the last message is to be continued
                return super().apply_chat_template(chat_history, False)
            return prompt_text(tokenizer, chat_history)

        def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
            if not chat:
                return super()._encode_pair(context, continuation)
            text, blank = up_to_answer(tokenizer, context)
            return text_ids(tokenizer, text), encode_continuation(tokenizer, text, blank + continuation)

        def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **settings: Any) -> Tensor:
            if end is not None:
                settings["eos_token_id"] = sorted(end.tokens) or None
                # A thought may hold what ends an answer, which lm-eval cuts once more when the thought is gone.
                stop = [*([] if thinking_of(tokenizer) else stop), *filter(None, [end.text])]
            output = super()._model_generate(context, max_length, stop, **settings)
            start = context.shape[1]
            answers = [self._answer(ids) for ids in output[:, start:].tolist()]
            new = torch.full((len(answers), max(map(len, answers))), pad_token_id(tokenizer))
            for number, ids in enumerate(answers):
                new[number, : len(ids)] = torch.tensor(ids, dtype=new.dtype)
            return torch.cat([output[:, :start], new.to(output)], dim=1)

        def _answer(self, ids: list[int]) -> list[int]:
            """The ids of the answer in what was generated; those of a text without a thought as they are."""
            if end is not None:
                ids = ids[: end.places(tokenizer, ids)[0]]
            text = tokenizer.decode(ids)
            answer = answer_of(tokenizer, text, chat=chat)
            self.texts, self.unfinished = self.texts + 1, self.unfinished + (answer is None)
            return ids if answer == text else tokenizer(answer or "", add_special_tokens=False)["input_ids"]

    live = LiveModel(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
    live.texts = live.unfinished = 0
    return live


def _read(task: str | Path | Task, limit: int | None) -> str | Task:
    """Read a file as a task. A name of an lm-eval task is returned as it is."""
    if isinstance(task, Task):
        return task
    if Path(task).suffix or Path(task).exists():
        return read_task(task, limit=limit, generate=True)
    return str(task)


def _load(tasks: Sequence[str | Task], joined: Join) -> list[Any]:
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks import TaskManager

    manager = TaskManager() if any(isinstance(task, str) for task in tasks) else None
    loaded: list[Any] = []
    for task in tasks:
        if isinstance(task, Task):
            loaded.append(ConfigurableTask(config=_config(task, joined)))
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


def _config(task: Task, joined: Join) -> dict[str, Any]:
    """lm-eval's configuration for a task whose rows are in memory."""
    if any(getattr(item, "chat", task.chat) for item in task.items):
        raise CofituneError(f"The task {task.name} asks for the chat template row by row; with lm-eval it is all or "
                            "nothing: leave `chat` out of the rows and score with chat=True.")
    if task.kind not in _CONFIGS:
        raise CofituneError(f"The task {task.name} is of the kind {task.kind}, which lm-eval is not given here; its "
                            f"kinds are {', '.join(_CONFIGS)}.")
    rows, config = _CONFIGS[task.kind](task, joined)
    return {"task": task.name, "dataset_path": task.name, "test_split": "test", "num_fewshot": 0,
            "custom_dataset": lambda **_: _in_memory(rows), **config}


def _in_memory(rows: list[dict[str, Any]]) -> dict[str, Any]:
    from datasets import Dataset

    return {"test": Dataset.from_list(rows)}


def _choice(task: Task, joined: Join) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    texts = [joined(item.query, item.choices) for item in task.items]
    # acc_norm counts an answer's characters without the delimiter. If rows differ, it must be part of the answers.
    delimiter = " " if all(answer.startswith(" ") for _, answers in texts for answer in answers) else ""
    rows = [{"text": text, "choices": [answer.removeprefix(delimiter) for answer in answers], "gold": item.gold}
            for item, (text, answers) in zip(task.items, texts, strict=True)]
    return rows, {"output_type": "multiple_choice", "doc_to_text": "{{text}}", "doc_to_target": "gold",
                  "doc_to_choice": "choices", "target_delimiter": delimiter,
                  "metric_list": [{"metric": name, "aggregation": "mean", "higher_is_better": True}
                                  for name in ("acc", "acc_norm")]}


def _continuation(task: Task, joined: Join) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    texts = [joined(item.context, [item.continuation]) for item in task.items]
    rows = [{"text": text, "target": target} for text, (target,) in texts]
    return rows, {"output_type": "loglikelihood", "doc_to_text": "{{text}}", "doc_to_target": "{{target}}",
                  "target_delimiter": "",
                  "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True},
                                  {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False}]}


def _instruction(task: Task, joined: Join) -> tuple[list[dict[str, Any]], dict[str, Any]]:
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
