"""What a soft mask does to the update of each unit, on the gradient and on the update, on a real model.

python benchmarks/studies/mask_modes.py [--model PATH] [--steps 32] [--region ROLES@LAYERS] [--preset rank]
    [--json FILE]
python benchmarks/studies/mask_modes.py --simulate [--json FILE]

One region is trained three times from the same base, with the same seed and data: without a mask, with the masks in
`gradient` mode, with the masks in `update` mode. A unit is a row or column of a weight that has a mask factor of its
own. Its ratio is the norm of its whole change in the masked run over that in the run without a mask: a mask that damps
has ratios near the factor itself, one that does nothing has ratios near 1.
`--simulate` needs no model: it gives the op gradients of one size and compares the displacement with and without mask.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from cofitune_fast.demo.settings import demo_config
from cofitune_fast.models import load_model
from cofitune_fast.ops import masked_adamw_
from cofitune_fast.regions import Region
from cofitune_fast.training import TrainOptions
from cofitune_fast.trials import TrialData, Workbench

sys.path.insert(0, str(Path(__file__).parents[1]))
from provenance import save

EDGES = (0.1, 0.3, 0.5, 0.7, 0.9)  # of the bins of mask values; a bin holds its lower edge


class History(TrainerCallback):
    """Loss and gradient norm (before clipping) of every step, and the state of Adam after the last one."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.grad_norms: list[float] = []
        self.adam_root: dict[str, float] = {}

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
        if "grad_norm" in logs:
            self.losses.append(float(logs["loss"]))
            self.grad_norms.append(float(logs["grad_norm"]))

    def on_train_end(self, args: Any, state: Any, control: Any, optimizer: Any, **kwargs: Any) -> None:
        """Quantiles of sqrt(v / (1 - beta2^t)), beside which eps stands; over every 101st element, as torch's
        quantiles are limited in size."""
        some = [
            (optimizer.state[p]["exp_avg_sq"].flatten()[::101] / (1 - group["betas"][1] ** state.global_step)).sqrt()
            for group in optimizer.param_groups for p in group["params"] if p in optimizer.state
        ]
        values = torch.cat(some).cpu()
        self.adam_root = {f"q{q}": float(values.quantile(q / 100)) for q in (1, 10, 50, 90)}


def unit_changes(weights: dict[str, Any], base: dict[str, Any], masks: dict[str, torch.Tensor]) -> torch.Tensor:
    """L2 norm of the change of each masked row ([out, 1] masks) or column ([1, in]), all parameters in a row."""
    changes = {name: weights[name].detach().double() - base[name].double() for name in masks}
    return torch.cat([changes[name].norm(dim=1 if mask.shape[1] == 1 else 0) for name, mask in masks.items()]).cpu()


def study(arguments: argparse.Namespace) -> dict[str, Any]:
    """The three runs and the ratios of the two masked ones, as one JSON-able row."""
    given = {"model.path": arguments.model, "data.limit": arguments.limit}
    config = demo_config({key: value for key, value in given.items() if value is not None})
    bench = Workbench(
        load_model(config.model.path, dtype=arguments.dtype),
        TrialData(train=config.data.train, max_length=config.data.max_length, limit=config.data.limit),
    )
    region = Region.parse(arguments.region)
    importance = bench.importance(region, samples=arguments.samples)
    all_masks = bench.masks(importance, region, arguments.preset)
    masks = {name: mask for name, mask in all_masks.items() if mask.dim() == 2}  # a bias has no rows to measure
    factors = torch.cat([mask.flatten().cpu() for mask in masks.values()])
    training = {**config.training, "max_steps": arguments.steps, "logging_steps": 1}

    runs, changes = {}, {}
    for name in ("none", "gradient", "update"):
        with bench.trial(region), tempfile.TemporaryDirectory() as folder:
            weights = dict(region.parameters(bench.model))
            base = {parameter: weights[parameter].detach().clone() for parameter in masks}
            history = History()
            options = {} if name == "none" else {"masks": all_masks, "mask_mode": name}
            result = bench.train(region, folder, training, TrainOptions(**options), callbacks=[history])
            changes[name] = unit_changes(weights, base, masks)
        rms = [norm / result.trained_parameters**0.5 for norm in history.grad_norms]
        runs[name] = {
            "steps": result.steps, "losses": history.losses, "mean_loss": result.loss,
            "grad_norms": history.grad_norms, "median_raw_gradient_rms": float(torch.tensor(rms).median()),
            "adam_root": history.adam_root, "seconds": result.seconds,
        }
        print(describe_run(name, runs[name]), flush=True)
    if not all(math.isclose(run["losses"][0], runs["none"]["losses"][0], rel_tol=1e-5) for run in runs.values()):
        raise SystemExit("The first losses of the three runs differ: they did not begin alike, no ratio has a meaning.")

    moved = changes["none"] > 0  # a unit that no run moves has no ratio
    ratios = {name: changes[name][moved] / changes["none"][moved] for name in ("gradient", "update")}
    return {
        "model": Path(bench.source).name, "fingerprint": bench.base.fingerprint, "dtype": bench.base.dtype,
        "region": str(region), "trained_parameters": result.trained_parameters, "units": int(moved.sum()),
        "preset": arguments.preset, "importance_samples": importance.samples, "training": training, "runs": runs,
        "norm_of_change": {name: float(change.norm()) for name, change in changes.items()},
        "bins": bins(factors[moved], ratios),
    }


def bins(factors: torch.Tensor, ratios: dict[str, torch.Tensor]) -> list[dict[str, Any]]:
    """Per bin that has units, and per mode: mean, median, 10 and 90 % quantiles of the ratio over the units."""
    rows = []
    index = torch.bucketize(factors, torch.tensor(EDGES), right=True)
    for number, bounds in enumerate(itertools.pairwise((0.0, *EDGES, 1.0))):
        inside = index == number
        if not inside.any():
            continue
        row = {"from": bounds[0], "to": bounds[1], "units": int(inside.sum()),
               "mean_mask": float(factors[inside].double().mean())}
        for mode, ratio in ratios.items():
            quantiles = {f"q{q}": float(ratio[inside].quantile(q / 100)) for q in (10, 50, 90)}
            row[mode] = {"mean": float(ratio[inside].mean()), **quantiles}
        rows.append(row)
    return rows


def describe_run(name: str, run: dict[str, Any]) -> str:
    root = ", ".join(f"{key} {value:.1e}" for key, value in run["adam_root"].items())
    return (
        f"{name:8}: loss first {run['losses'][0]:.4f}, last {run['losses'][-1]:.4f}, mean {run['mean_loss']:.4f}; "
        f"raw gradient RMS {run['median_raw_gradient_rms']:.2e} (median over steps); sqrt(v) per element: {root}"
    )


def describe(row: dict[str, Any]) -> str:
    """Ratios as a Markdown table."""
    norms = ", ".join(f"{name} {norm:.4f}" for name, norm in row["norm_of_change"].items())
    lines = [
        f"{row['model']} in {row['dtype']}, {row['region']}: {row['trained_parameters']} parameters, {row['units']} "
        f"masked units, preset {row['preset']}. Norm of the change of all masked weights: {norms}.", "",
        "| mask | units | mean mask | gradient: mean | median | 10-90 % | update: mean | median | 10-90 % |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for part in row["bins"]:
        cells = ["{mean:.3f} | {q50:.3f} | {q10:.3f}-{q90:.3f}".format(**part[mode]) for mode in ("gradient", "update")]
        lines.append(f"| {part['from']}-{part['to']} | {part['units']} | {part['mean_mask']:.3f} | "
                     f"{' | '.join(cells)} |")
    return "\n".join(lines)


def simulate(steps: int = 200, size: int = 64, eps: float = 1e-8) -> list[dict[str, Any]]:
    """Displacement of size x size weights under a constant mask over that without, by the op's reference in float32.

    An element's gradient is scale * (mean + noise), the mean drawn once and the noise at each step, both standard
    normal. The weights begin at 0, where float32 resolves every step.
    """
    factors, rows = (None, 0.5, 0.1, 0.01), []
    for mode, scale in itertools.product(("gradient", "update"), (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8)):
        generator = torch.Generator().manual_seed(0)
        mean = torch.randn(size, size, generator=generator)
        p, m, v = ([torch.zeros(size, size) for _ in factors] for _ in range(3))
        masks = [None if factor is None else torch.full((size, 1), factor) for factor in factors]
        for step in range(1, steps + 1):
            g = scale * (mean + torch.randn(size, size, generator=generator))
            masked_adamw_(p, [g] * len(factors), m, v, masks, lr=1e-5, betas=(0.9, 0.95), eps=eps, weight_decay=0.0,
                          step=step, mask_mode=mode, backend="reference")
        norms = [float(weight.double().norm()) for weight in p]
        ratios = {str(factor): norm / norms[0] for factor, norm in zip(factors[1:], norms[1:], strict=True)}
        rows.append({"mode": mode, "gradient": scale, "steps": steps, "eps": eps, "ratios": ratios})
    return rows


def describe_simulation(rows: list[dict[str, Any]]) -> str:
    lines = ["| mode | gradient size | mask 0.5 | mask 0.1 | mask 0.01 |", "|---|---|---|---|---|"]
    for row in rows:
        ratios = " | ".join(f"{ratio:.4f}" for ratio in row["ratios"].values())
        lines.append(f"| {row['mode']} | {row['gradient']:.0e} | {ratios} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="folder, hub id or GGUF file (default: the demo's SmolLM2-135M-Instruct)")
    parser.add_argument("--limit", type=int, help="take only the first training rows")
    parser.add_argument("--region", default="ffn.up+ffn.down@25%-50%")
    parser.add_argument("--preset", default="rank", choices=("rank", "paper"))
    parser.add_argument("--samples", type=int, default=64, help="training rows the importance is measured on")
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--dtype", default="float32", help="bfloat16 adds the noise of stochastic rounding")
    parser.add_argument("--simulate", action="store_true", help="no model: the op alone, on made-up gradients")
    parser.add_argument("--json", help="file for the results with their provenance")
    arguments = parser.parse_args()
    rows = simulate() if arguments.simulate else [study(arguments)]
    print(describe_simulation(rows) if arguments.simulate else describe(rows[0]))
    if arguments.json:
        save(arguments.json, "mask_modes_simulation" if arguments.simulate else "mask_modes", rows)


if __name__ == "__main__":
    main()
