"""Search on one base: nodes go to an executor, and finished rungs are kept in the journal.

    journal.jsonl             settings, then the base, priors and rungs in the order they were finished
    scores/NODE-RUNG.json     per-item values, for paired comparisons
    nodes/NODE/               a node's last checkpoint while it races; the chosen node's delta at the end
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..errors import CofituneError
from ..json_text import read_json, write_json
from ..regions import DEFAULT_REGION, Region
from ..scoring import suite_resolution
from ..training import decisive
from ..trials import TrialSetup, Workbench, clean_node
from ..trials.priors import PriorName
from ..validation import check_choices
from .budget import Budget
from .choice import choose
from .executors import Executor
from .journal import Journal
from .ledger import BASE, Ledger
from .limits import Limits, Need, fitting, nothing_fits
from .nodes import Node, Rung, short_label
from .observer import Observer, Silent
from .pace import Operations
from .preview import level_work, likely_walk, lowest_layer, predict_need, trained_cells
from .race import OutOfBudget, tree_search
from .results import SearchResult
from .space import Candidate, Level, check_space
from .strategy import STRATEGIES, Strategy
from .uncertainty import Estimate
from .work import final_work, search_work, token_weights

RateRule = Literal["size", "fixed"]
Prior = Callable[[Sequence[Region], Sequence[float]], list[float]]


@dataclass(frozen=True)
class SearchSettings:
    """Settings of a search.

    Attributes:
        levels, space: the space and its name.
        learning_rate: "fixed" gives every node the configured rate; "size" scales it by the region's size, see
            `node_rate`.
        rate_factors: multiples of the rate at which the first level tries each region; descendants inherit the factor.
        prior: a name in `trials.priors`, which orders the children of a level.
        prior_keep: share of the children, in the prior's order, that is tried.
        limits: what the training of a region may need; regions beyond are not tried.
        final_training: training arguments with which the chosen region will be trained, which the limits are about; by
            default those of the nodes.
        full_training: training arguments of a full fine-tuning, the unit of the costs.

    Raises:
        CofituneError: a value is out of range.
    """

    levels: tuple[Level, ...]
    space: str = "sizes"
    strategy: Strategy = STRATEGIES["racing"]
    learning_rate: RateRule = "size"
    rate_factors: tuple[float, ...] = (1.0,)
    prior: Literal["none", PriorName] = "none"
    prior_keep: float = 1.0
    budget: Budget | None = None
    limits: Limits = Limits()  # noqa: RUF009  (frozen)
    final_training: Mapping[str, Any] = field(default_factory=dict)
    full_training: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_choices(self, "search")
        if not self.rate_factors or min(self.rate_factors) <= 0:
            raise CofituneError("search.rate_factors must be a list of numbers above 0, such as [0.5, 1, 2].")
        if not 0 < self.prior_keep <= 1:
            raise CofituneError(f"search.prior_keep is {self.prior_keep}; it must be above 0 and at most 1.")

    def identity(self) -> dict[str, Any]:
        """Return what the nodes depend on.

        The space's name is left out, because the levels count. Budget and limits are left out, because they may be
        raised later.
        """
        return {**asdict(self), "budget": None, "limits": None, "final_training": None, "space": None}


def node_rate(rate: float, trained: int, reference: int) -> float:
    """Scale the learning rate to a region of `trained` parameters; `rate` is that of `reference` parameters.

    The rule rate * sqrt(reference / trained) is our own. Adam moves every parameter by about the rate, so the length of
    a step is about the rate times the root of their number. The rule keeps that length equal for all regions.
    """
    return rate * math.sqrt(reference / trained)


class Search:
    """One search on one base; `run` does all of it. It is also the `Laboratory` of `race.tree_search`.

    Args:
        bench: the base, used for its layout and rows; the executor does all training and scoring.
        memory_need: returns the peak bytes of training a region; needed for a limit of memory.
    """

    def __init__(
        self, bench: Workbench, setup: TrialSetup, settings: SearchSettings, executor: Executor,
        observer: Observer | None = None, prior: Prior | None = None,
        memory_need: Callable[[Region], int | None] | None = None,
    ):
        check_space(settings.levels, bench.layout)
        self.bench, self.setup, self.settings = bench, setup, settings
        self.executor, self.observer, self.prior = executor, observer or Silent(), prior
        self.memory_need = memory_need
        self.output = Path(setup.output)
        self.nodes: dict[str, Node] = {}
        self.work = search_work(bench, setup, settings.full_training)
        self.schedule = bench.schedule(setup.training)
        self._final_work = final_work(bench, self.work, settings.final_training)
        self._reference = self.reference_size(bench)
        self._regions: set[Any] = set()
        self._needs: dict[Region, Need] = {}
        self.later = Operations()  # that follow the search, for the prediction of the time left
        self._seen: dict[int, float] = {}  # {lowest layer of a region: share of the rows whose states there are cached}
        walk = list(likely_walk(settings.levels, bench.layout, settings.strategy))
        self.likely = walk[-1][0].region if walk else Region.full()  # about as large as the region to be chosen
        self._left = {  # what each level may still take, for the prediction of the time left
            found[0].level: level_work(found, settings.strategy, self.work, bench.layout) for found in walk
        }

    @staticmethod
    def reference_size(bench: Workbench) -> int:
        """Return the number of parameters to which the configured learning rate belongs: that of the default region, or
        of all roles in its layers where a model has none of its roles there."""
        region = Region.parse(DEFAULT_REGION)
        layers = {layer for _, at in region.layers for layer in at.indices(bench.layout.num_layers, str(region))}
        lacking = not any(cell.layer in layers and cell.role in dict(region.layers) for cell in bench.layout.cells)
        if lacking:
            region = Region(tuple((role, region.layers[0][1]) for role in bench.layout.roles))
        return region.count(bench.model)

    def _count(self, candidate: Candidate) -> int:
        return candidate.region.count(self.bench.model)

    @property
    def left(self) -> Operations:
        """Estimated operations that are still to come."""
        return sum(self._left.values(), Operations())

    def run(self, journal: Journal, *, finish: bool = True) -> SearchResult:
        """Search, or resume the search that `journal` holds.

        Args:
            finish: train the chosen node to the end even if nothing is left to decide, and keep its delta.

        Raises:
            CofituneError: the search ended before its first node was scored, or the space has no node for this model.
        """
        self.ledger = Ledger(journal, self.settings.strategy.resamples)
        base = self._score_base()
        stopped = None
        try:
            tree_search(self.settings.levels, self.bench.layout, self.settings.strategy, self,
                        finish=finish)
        except OutOfBudget as reason:
            stopped = str(reason)
            self.observer.note(stopped)
        tried = [node for node in self.nodes.values() if node.rungs]
        if not tried and stopped:
            raise CofituneError(f"The search ended before its first node: {stopped}")
        if not tried:
            raise CofituneError("The search space has no node for this model; give levels with layers and roles.")
        choice = choose({node.id: node for node in tried}, self.estimate, self.settings.strategy.confidence,
                        stopped=stopped is not None)
        result = SearchResult(self.settings.space, self.settings.strategy.name, tried, choice, base["scores"],
                              self.ledger.estimate, base["cost"], stopped)
        if stopped is None:
            for folder in (self.output / "nodes").glob("*"):
                if folder.name != choice.chosen:
                    clean_node(self.setup, folder.name, delta=True)
        self._left = {}
        self.observer.chosen(result.chosen, choice.sentence)
        self.observer.remaining(self.ledger.pace.seconds(self.later))
        return result

    def test(self, result: SearchResult) -> dict[str, dict[str, float]]:
        """Return the scores of the base and the chosen node on the test part, computed once and kept in test.json."""
        path = self.output / "test.json"
        known = read_json(path, "test scores", {"base": dict, "chosen": dict}) if path.is_file() else {}
        if known.get("node") != result.choice.chosen:
            node = result.chosen
            job = {**self._job(node, node.fraction), "split": "test", "measure": ["uni"]}
            jobs = [{**job, "id": BASE, "region": None}, job]
            known = {"node": node.id, **{"base" if job["id"] == BASE else "chosen": answer["scores"]
                                         for job, answer in self.executor.run(jobs)}}
            write_json(path, known)
        result.test = {key: known[key] for key in ("base", "chosen")}
        return result.test

    def identity(self) -> dict[str, Any]:
        """Return what the nodes depend on, besides the base and the data."""
        training = {**decisive(self.setup.training), "learning_rate": self.schedule.learning_rate}
        strategy = self.settings.strategy
        early = any(strategy.measure(rung) == "signal" for rung in strategy.rungs)
        return {**self.settings.identity(), "training": training, "loss": self.setup.loss,
                "anchor": self.setup.anchor.identity(), "reference": self._reference,
                **({"drift_rows": self.setup.drift_rows} if early else {}),
                **self.bench.row_settings,
                **({"roles": self.bench.roles} if self.bench.roles else {})}

    # Laboratory ------------------------------------------------------------------------------------------------------

    def admit(self, level: Level, candidates: Sequence[Candidate]) -> list[str]:
        """Create nodes for regions that no other node trains, in the order of the prior."""
        layout, new = self.bench.layout, []
        for candidate in candidates:
            try:
                cells = trained_cells(candidate.region, layout)
            except CofituneError as error:  # a part of a range without any layer, or a role that the model lacks
                self.observer.note(str(error))
                continue
            if cells not in self._regions:
                self._regions.add(cells)
                new.append(candidate)
        new = self._by_prior(level, self._within_limits(new))
        if new and new[0].parent is None:
            new = [Candidate(one.level, one.roles, one.layers, None, factor)
                   for one in new for factor in self.settings.rate_factors]
        for candidate in new:
            self.nodes[candidate.id] = self._node(level, candidate)
        if new:
            number, strategy = new[0].level, self.settings.strategy
            self._left = {key: value for key, value in self._left.items() if key > number}
            self._left[number] = level_work(new, strategy, self.work, layout)
            self.observer.level(level, new)
        return [candidate.id for candidate in new]

    def train(self, nodes: Sequence[str], end: float) -> None:
        if not nodes:
            return
        self.observer.rung(end, [self.nodes[node].candidate for node in nodes])
        jobs = []
        for node in nodes:
            if record := self.ledger.rung(node, end):
                self._finish(record, from_journal=True)
            else:
                jobs.append(self._job(self.nodes[node], end))
        while jobs:
            batch = self._affordable(jobs)
            started = 0
            for job in batch[: self.executor.slots]:
                self._announce(job)
                started += 1
            for job, answer in self.executor.run(batch):
                self.ledger.keep_rung(job, answer, self._predicted(job))
                self._finish(self.ledger.rung(job["id"], end), from_journal=False)
                if started < len(batch):
                    self._announce(batch[started])
                    started += 1
            jobs = jobs[len(batch):]

    def _announce(self, job: Mapping[str, Any]) -> None:
        self.observer.start(self.nodes[job["id"]].candidate, job["end"])

    def estimate(self, node: str, fraction: float) -> Estimate | None:
        """Return what the node is judged by after `fraction` of its training; None if it was not scored there."""
        if all(rung.fraction != fraction for rung in self.nodes[node].rungs):
            return None
        return self.ledger.estimate(node, fraction, self.settings.strategy.measure(fraction))

    def drop(self, node: str, reason: str) -> None:
        self.nodes[node].dropped = reason
        clean_node(self.setup, node, delta=True)
        self.observer.drop(self.nodes[node])

    # Bookkeeping -----------------------------------------------------------------------------------------------------

    def _score_base(self) -> dict[str, Any]:
        if self.ledger.base is None:
            anchored = self.setup.anchor.weight > 0
            self.observer.note(f"{'writing the anchor and ' if anchored else ''}scoring the base (valid)")
            strategy = self.settings.strategy
            measures = sorted({strategy.measure(rung) for rung in strategy.rungs})
            job = {"id": BASE, "region": None, "split": "valid", "measure": measures, "anchor": anchored}
            ((_, answer),) = self.executor.run([job])
            flops = sum(self.work.measuring(measure) for measure in measures)
            self.ledger.keep_base(answer, {"tokens": 0, "flops": flops, "scoring_flops": flops,
                                           "full_sft": flops / self.work.full_sft})
        scores = self.ledger.base["scores"]
        self.observer.note(f"base on valid: Spec {scores['spec']:.3f}  Vers {scores['vers']:.3f}  "
                           f"Uni {scores['uni']:.3f}")
        self.observer.note(str(suite_resolution(self.ledger.base_scores(),
                                                confidence=self.settings.strategy.confidence)))
        return self.ledger.base

    def need(self, region: Region) -> Need:
        """Predict what the whole training of a region needs, with nothing cached before."""
        if region not in self._needs:
            self._needs[region] = predict_need(self._final_work, region, self.bench.layout, self.memory_need)
        return self._needs[region]

    def _within_limits(self, candidates: list[Candidate]) -> list[Candidate]:
        """Return the candidates whose training fits the limits.

        Raises:
            CofituneError: none of the first level fits.
        """
        limits = self.settings.limits
        if limits == Limits():
            return candidates
        needs = {candidate: self.need(candidate.region) for candidate in candidates}
        kept = fitting(limits, needs)
        for candidate in candidates:
            if candidate not in kept:
                self.observer.note(f"{candidate.region} is not tried: it needs {limits.describe(needs[candidate])}")
        if candidates and not kept and not self.nodes:
            raise nothing_fits(limits, [(str(candidate.region), need) for candidate, need in needs.items()])
        return kept

    def _by_prior(self, level: Level, candidates: list[Candidate]) -> list[Candidate]:
        if self.prior is None or len(candidates) < 2:
            return candidates
        values = self.ledger.prior(level.name)
        if values is None:
            rates = [self._node(level, candidate).learning_rate for candidate in candidates]
            found = self.prior([candidate.region for candidate in candidates], rates)
            values = {str(candidate.region): value for candidate, value in zip(candidates, found, strict=True)}
            self.ledger.keep_prior(level.name, values)
        order = sorted(candidates, key=lambda candidate: -values[str(candidate.region)])
        kept = order[: math.ceil(self.settings.prior_keep * len(order))]
        for candidate in order[len(kept):]:
            self.observer.note(f"{candidate.region} is not tried: last in the prior ({self.settings.prior})")
        return kept

    def _node(self, level: Level, candidate: Candidate) -> Node:
        trained = self._count(candidate)
        factor = f" ×{candidate.rate_factor:g}" if candidate.rate_factor != 1 else ""
        return Node(
            candidate.id, candidate.parent, candidate.level, level.name,
            short_label(candidate.roles, candidate.layers) + factor, str(candidate.region), candidate.roles,
            candidate.layers, self.rate(candidate, self.schedule.learning_rate), candidate.rate_factor, trained,
            self.need(candidate.region),
        )

    def rate(self, candidate: Candidate, rate: float) -> float:
        """Return the learning rate of a node, given the rate of a region of the reference size; see `SearchSettings`.
        """
        if self.settings.learning_rate == "size":
            rate = node_rate(rate, self._count(candidate), self._reference)
        return rate * candidate.rate_factor

    def _job(self, node: Node, end: float) -> dict[str, Any]:
        return {"id": node.id, "region": node.region, "split": "valid",
                "measure": [self.settings.strategy.measure(end)], "learning_rate": node.learning_rate,
                "seed": node.candidate.seed(self.schedule.seed), "begin": node.fraction, "end": end, "last": end == 1.0}

    def operations(self, job: Mapping[str, Any], seen: Mapping[int, float]) -> Operations:
        """Return the operations of a job.

        Args:
            seen: {lowest layer of a region: share of the rows whose states there are cached}.
        """
        region, layout = Region.parse(job["region"]), self.bench.layout
        lowest = lowest_layer(region, layout)
        return Operations(
            self.work.training(lowest, token_weights(region.cells(layout), layout), job["begin"], job["end"],
                               seen=seen.get(lowest, 0.0)),
            sum(self.work.measuring(measure, lowest, first=lowest not in seen) for measure in job["measure"]), 1,
        )

    def note_seen(self, job: Mapping[str, Any], seen: dict[int, float]) -> None:
        """Add to `seen` the rows whose states the job leaves in the cache."""
        lowest = lowest_layer(Region.parse(job["region"]), self.bench.layout)
        seen[lowest] = max(seen.get(lowest, 0.0), self.work.rows_seen(job["end"]))

    def _predicted(self, job: Mapping[str, Any]) -> dict[str, float]:
        """Predict tokens, flops, those of its scoring, and full_sft of a job."""
        operations = self.operations(job, self._seen)
        flops = operations.total
        tokens = round(self.work.tokens * self.work.epochs * (job["end"] - job["begin"]))
        return {"tokens": tokens, "flops": flops, "scoring_flops": operations.scoring,
                "full_sft": flops / self.work.full_sft}

    def _affordable(self, jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the first jobs that the budget covers.

        A budget in hours is checked after every round of jobs, because times cannot be predicted exactly.

        Raises:
            OutOfBudget: the budget does not cover even the first job.
        """
        budget = self.settings.budget
        if budget is None:
            return jobs
        spent = self.ledger.spent()
        total = budget.used(**{key: spent[key] for key in ("seconds", "tokens", "full_sft")})
        paid: list[dict[str, Any]] = []
        for job in jobs[: self.executor.slots] if budget.unit == "hours" else jobs:
            predicted = self._predicted(job)
            total += budget.used(self.ledger.pace_of_all * predicted["flops"], predicted["tokens"],
                                 predicted["full_sft"])
            if total > budget.amount:
                break
            paid.append(job)
        if not paid:
            need = f"; {self.nodes[jobs[0]['id']].region} would need {total:.3g}" if budget.unit != "hours" else ""
            raise OutOfBudget(f"the budget of {budget} is spent{need}.")
        return paid

    def _finish(self, record: Mapping[str, Any], *, from_journal: bool) -> None:
        node = self.nodes[record["id"]]
        self.note_seen(record, self._seen)
        node.rungs.append(Rung(record["end"], record["scores"], record["cost"]))
        if record["last"]:
            clean_node(self.setup, node.id)
        rivals = [other for other in self.nodes.values() if other.fraction == node.fraction]
        self.observer.finish(node, max(rivals, key=lambda other: other.figure), from_journal)
        self._left[node.level] = self._left.get(node.level, Operations()).less(self.ledger.operations(record))
        self.observer.remaining(self.ledger.pace.seconds(self.left + self.later))
