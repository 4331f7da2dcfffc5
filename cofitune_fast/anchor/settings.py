"""Settings of the anchor, the section `anchor:` of the configuration."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from ..data import read_examples
from ..data.formats import Example, Message
from ..errors import CofituneError
from ..validation import check_choices

AnchorLoss = Literal["kl", "reverse_kl", "ce"]
AnchorSource = Literal["answers", "rows", "free"]
AnchorThinking = Literal["mixed", "template", "empty", "answer"]
LATER_DEFAULTS = {"loss": "kl", "source": "answers", "thinking": "mixed", "thought_tokens": 512}
"""Fields that came later, with their defaults. Identities leave these out, so that earlier runs go on."""

_SHIPPED = Path(__file__).with_name("prompts.txt")


@dataclass(frozen=True)
class AnchorSettings:
    """Settings of the anchor, the section `anchor:` of the configuration.

    The loss becomes mean NLL + weight * mean KL(base || model), with the KL on texts that the base wrote itself. It
    was published by Marek et al., 2026, arXiv 2605.26097; docs/anchor.md says what differs. `loss` and `source` give
    other losses and other texts, to compare with.

    Attributes:
        weight: weight of the mean loss per anchor token, relative to the mean loss per response token; 0: no anchor.
        rows: number of anchor texts added to each batch of a step.
        texts: number of texts that the base writes.
        tokens: maximum number of tokens of each text.
        prompts: "general" (shipped with the package), "task" (those of the training rows), or a file: text with one
            prompt per line, or training data in any format, of which only the prompts are used.
        temperature: sampling temperature of the base.
        top_k: number of the base's most probable tokens that are stored at each position; all others count as one.
        seed: seed of the sampling and of the order.
        loss: loss of a text's token: "kl" is KL(base || model), "reverse_kl" KL(model || base), "ce" the cross entropy
            (after SA-SFT, arXiv 2602.20162). It can change without writing the texts anew.
        source: the texts are "answers" (of the base to the prompts), "rows" (the responses that the data file `prompts`
            gives, cut to `tokens`) or "free" (what the base writes after the beginning of a text, without a prompt).
        thinking: where the answers of a model begin that thinks by its template's default: where the "template" lets
            them, so that they are the first tokens of a thought; after an "empty" thought; "mixed" is both in turn; or
            around the beginning of the "answer", after a whole thought of the base. No matter for other models.
        thought_tokens: maximum number of tokens of a thought, with the thinking "answer".

    Raises:
        CofituneError: a value is out of range.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    weight: float = 1.0
    rows: int = 2
    texts: int = 192
    tokens: int = 48
    prompts: str = "general"
    temperature: float = 1.0
    top_k: int = 64
    seed: int = 0
    loss: AnchorLoss = "kl"
    source: AnchorSource = "answers"
    thinking: AnchorThinking = "mixed"
    thought_tokens: int = 512

    def __post_init__(self) -> None:
        check_choices(self, "anchor")
        if self.source == "rows" and self.prompts == "task":
            raise CofituneError("anchor.source is rows and anchor.prompts is task: the task's own rows are no anchor; "
                                "set anchor.prompts to a data file of general rows.")
        least = {"weight": 0.0, "rows": 1, "texts": 1, "tokens": 2, "top_k": 1, "thought_tokens": 1}
        for name, bound in least.items():
            if not getattr(self, name) >= bound:
                raise CofituneError(f"anchor.{name} is {getattr(self, name)}; it must be at least {bound:g}.")
        if not self.temperature > 0:
            raise CofituneError(f"anchor.temperature is {self.temperature}; it must be above 0.")
        if not 0 <= self.seed < 2**32:
            raise CofituneError(f"anchor.seed is {self.seed}; it must be at least 0 and below 2**32.")

    def identity(self) -> dict[str, Any]:
        """Return the settings that a run's results depend on; a file counts by its content, not its path."""
        if self.weight == 0:
            return {"weight": 0.0}
        prompts = self.prompts
        if prompts not in ("general", "task"):
            content = ([[row.prompt, row.response] for row in self.read_rows()] if self.source == "rows"
                       else self.read_prompts())
            prompts = hashlib.sha256(json.dumps(content).encode()).hexdigest()
        return without_later_defaults({**asdict(self), "prompts": prompts})

    def read_rows(self) -> list[Example]:
        """Read the data file whose responses are the texts, for the source "rows".

        Raises:
            CofituneError: `prompts` names no data file, or the file is unusable.
        """
        if self.prompts == "general":
            raise CofituneError("anchor.source is rows, so anchor.prompts must name a data file, whose responses are "
                                "the texts.")
        return read_examples(Path(self.prompts))

    def read_prompts(self, task: Sequence[list[Message]] | None = None) -> list[list[Message]]:
        """Read the prompts as messages.

        Args:
            task: prompts of the training rows, used if `prompts` is "task".

        Raises:
            CofituneError: the file of prompts is unusable, or there are no training rows.
        """
        if self.prompts == "task":
            if not task:
                raise CofituneError("anchor.prompts is task, but there are no training rows; set data.train.")
            return list(task)
        path = _SHIPPED if self.prompts == "general" else Path(self.prompts)
        if path.suffix.lower() not in (".txt", ""):
            return [example.prompt for example in read_examples(path)]
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise CofituneError(
                f"The anchor's prompts {path} cannot be read ({error}); set anchor.prompts to general, task, a text "
                "file with a prompt per line, or a data file."
            ) from None
        prompts = [[{"role": "user", "content": line.strip()}] for line in lines if line.strip()]
        if not prompts:
            raise CofituneError(f"The anchor's prompts {path} hold no line of text; give at least one prompt.")
        return prompts


def without_later_defaults(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the given fields of AnchorSettings without those of LATER_DEFAULTS that have their default."""
    return {name: value for name, value in fields.items() if LATER_DEFAULTS.get(name) != value}


NO_ANCHOR = AnchorSettings(weight=0.0)
