"""What holds for all tests: the environment, set before torch and triton are imported, and tiny models as fixtures."""

from __future__ import annotations

import gc
import os
import signal
from pathlib import Path

import cofitune_fast  # noqa: F401  (before transformers, which would take the folder kernels/ for another package)

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # on tensors this small a second thread only waits

import pytest
import torch
from tiny import make_tiny_model, make_tiny_tokenizer, write_jsonl

for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    if signal.getsignal(number) == signal.SIG_IGN:  # as a shell starts what runs in its background
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
os.fsync = lambda handle: None  # a test's folder need not survive a power cut, and each wait takes milliseconds
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # heeded only if set before triton is first imported


# COFITUNE_TEST says how much is run: "check" the cheap part of everything, "full" all, else all but what follows.
SCOPE = os.environ.get("COFITUNE_TEST", "")
FULL_ALONE = {  # cases that are slow, and whose property another test has wholly or for the most part
    # Ray is tested in tests/search, and that a comparison's runs may be shared out, with processes.
    "test_two_workers_make_the_runs_that_one_process_makes[ray]",
    # That a killed worker's job is made again is tested with processes; that Ray does it, in test-full alone.
    "test_search_executors_ray.py::test_two_workers_give_what_this_process_gives_though_one_is_killed_in_the_middle",
    "test_a_wheel_is_installed_in_a_clean_environment_and_used[1-cpu]",  # compiles the kernels; there is a case without
    "test_a_missing_run_away_from_the_target_leaves_the_verdict_as_it_is",  # runs missing at the target have tests
    "test_a_budget_that_a_shorter_length_would_meet",  # test_a_budget_that_nothing_fits
    "test_the_least_loss_then_the_least_time[1.5]",  # has other cases
    # That a search goes on anywhere is tested with stubs, and a kill in its middle with worker processes.
    "test_a_search_killed_in_the_middle_resumes_to_the_same_choice",
    "test_two_workers_make_the_runs_that_one_process_makes[processes]",  # worker processes are tested in tests/search
    "test_evaluations_belong_to_the_final_runs_and_not_to_the_nodes",
    "test_search_alone_shares_the_journal_with_the_whole_run",  # test_after_a_search_alone_nothing_is_left
    "test_the_checks_hold_under_the_load_options_of_the_run",
    "test_scoring_harness.py::test_what_cannot_be_scored",  # reads lm-eval's index of tasks
    *(f"test_resume_is_the_run_without_a_break_bit_for_bit[bf16{form}]" for form in ("", "_sr", "_split")),
    "test_a_stop_between_evaluations_chooses_the_same_weights[epoch]",
    "test_a_damaged_cache_is_rebuilt[states.bin]",
    "test_the_final_runs_have_the_chosen_nodes_learning_rate",  # test_finished_methods_and_nodes_are_kept...
    "test_a_trained_region_is_scored_through_its_cached_prefix_to_the_same_bits[off]",
    "test_the_cache_does_not_change_a_bit_in_its_first_run_nor_in_later_ones[on-{'gradient_accumulation_steps': 2}]",
    *(f"test_a_job_broken_off_goes_on_from_its_last_checkpoint[{step}]" for step in (1, 7)),
}
WHOLE_IN_CHECK = {"test_imports.py", "test_end_to_end.py"}  # files
SLOW_TESTS = set(Path(__file__).with_name("slow_tests.txt").read_text(encoding="utf-8").split())  # see slow_tests.py


def pytest_collection_modifyitems(config, items):
    """Leave out what is not of the scope. A check has the first case of each test that is not slow."""
    chosen, left_out, seen = [], [], set()
    for item in items:
        name = getattr(item, "originalname", item.name)
        slow = name in SLOW_TESTS or any(item.get_closest_marker(mark) for mark in ("slow", "model", "gpu"))
        if SCOPE == "check" and item.path.name not in WHOLE_IN_CHECK:
            wanted = not slow and (item.path, name) not in seen
            if not slow:  # a first case may be for a GPU alone
                seen.add((item.path, name))
        else:
            wanted = SCOPE == "full" or not FULL_ALONE & {item.name, f"{item.path.name}::{item.name}"}
        (chosen if wanted else left_out).append(item)
    items[:] = chosen
    config.hook.pytest_deselected(items=left_out)


@pytest.fixture(autouse=True, scope="module")
def short_collections():
    """Leave what is imported out of garbage collections: each training makes two, of half a second each otherwise."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def own_prefix_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("COFITUNE_PREFIX_CACHE", str(tmp_path / "prefix-cache"))


@pytest.fixture
def tiny_model():
    return make_tiny_model()


@pytest.fixture
def tiny_tokenizer():
    return make_tiny_tokenizer()


@pytest.fixture
def tiny_model_folder(tmp_path, tiny_model, tiny_tokenizer):
    folder = tmp_path / "tiny-base"
    tiny_model.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def tiny_run(tmp_path, tiny_model_folder):
    """The settings of a whole run on the tiny model: {"section.key": value}, with its data written to tmp_path."""
    def letters(start, count):
        return [{"prompt": f"say {chr(97 + i % 26)}", "completion": chr(65 + i % 26) * 2}
                for i in range(start, start + count)]

    for part, start, count in (("train", 0, 16), ("valid", 3, 4), ("test", 7, 4)):
        write_jsonl(tmp_path / f"{part}.jsonl", letters(start, count))
    for part in ("valid", "test"):
        for group in ("knowledge", "reasoning"):
            write_jsonl(tmp_path / part / group / f"{group}-{part}.jsonl", [
                {"query": f"{group} {i} is", "choices": ["yes", "no"], "gold": i % 2} for i in range(4)])
        write_jsonl(tmp_path / part / "instruction" / f"do-{part}.jsonl", [
            {"instruction": f"repeat {i}", "input": "", "output": f"{i}"} for i in range(4)])
    return {
        "model": str(tiny_model_folder),
        **{f"data.{part}": str(tmp_path / f"{part}.jsonl") for part in ("train", "valid", "test")},
        **{f"versatility.{part}": str(tmp_path / part) for part in ("valid", "test")},
        "importance.samples": 8,
        "anchor.texts": 8,
        "anchor.tokens": 6,
        "training.learning_rate": 1e-2,
        "training.warmup_steps": 0,  # the first rung of a search is one step, which must move the weights
        "training.per_device_train_batch_size": 8,
        "output": str(tmp_path / "run"),
    }
