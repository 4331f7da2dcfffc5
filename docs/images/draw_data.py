"""Draw what `cofitune data` shows of E2E, GSM8K and a deliberately dirty file, as docs/images/data_*.svg.

    python docs/images/draw_data.py FOLDER

FOLDER holds e2e/ and gsm8k/, each with train.jsonl, valid.jsonl and test.jsonl. The model is the demo's.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console

from cofitune_fast.commands.data import look_at
from cofitune_fast.config import load_config
from cofitune_fast.demo.settings import demo_model
from cofitune_fast.display.data import DataView
from cofitune_fast.models.loading import plain_folder

IMAGES = Path(__file__).parent.absolute()
MODEL = "SmolLM2-135M-Instruct"
PLAIN_FORMAT = re.sub(r"@font-face \{\{.*?\}\}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)  # no fonts from elsewhere


def write_dirty(folder: Path) -> None:
    """Write train and test rows with what people's files have: holes, repetitions, overlaps and rows too long."""
    def rows(*numbers):
        return [{"instruction": f"Translate to French: {number} apples", "output": f"{number} pommes"}
                for number in numbers]

    train = rows(*range(2, 60), 2, 3)
    train[4]["output"] = ""
    train[11]["output"] = "  "
    train[17] = {"instruction": "Translate to French: a pear"}
    train[23]["output"] = {"text": "25 pommes"}
    train[25]["output"] = "27 pommes \ud83d"
    train[29]["output"] = "31 pommes et " * 60
    train[41]["instruction"] = "Translate this letter to French: " + "Dear Madam, many apples. " * 60
    folder.mkdir()
    for name, content in (("train", train), ("test", rows(*range(55, 65)))):
        lines = [json.dumps(row) for row in content]
        if name == "train":
            lines[37] = '{"instruction": "Translate to French: 40 apples", "output": "40 pommes'
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def draw(name: str, settings: dict[str, object]) -> None:
    content = look_at(load_config(None, settings), rows=2)
    console = Console(file=io.StringIO(), record=True, width=112, force_terminal=True, color_system="truecolor")
    console.print(DataView(content))
    svg = console.export_svg(title=f"cofitune data --config {name}.yaml", code_format=PLAIN_FORMAT, unique_id=name)
    (IMAGES / f"data_{name}.svg").write_text(svg, encoding="utf-8")


def main(speciality: Path) -> None:
    speciality, model = speciality.absolute(), Path(plain_folder(demo_model())).absolute()
    with tempfile.TemporaryDirectory() as folder:  # so that the pictures show short paths
        os.chdir(folder)
        Path(MODEL).symlink_to(model)
        write_dirty(Path("dirty"))
        for name in ("e2e", "gsm8k"):
            shutil.copytree(speciality / name, name)
        for name in ("e2e", "gsm8k", "dirty"):
            files = {f"data.{part}": f"{name}/{part}.jsonl" for part in ("train", "valid", "test")
                     if Path(name, f"{part}.jsonl").is_file()}
            draw(name, {"model": MODEL, "data.max_length": 256 if name == "dirty" else 512, **files})
        os.chdir(IMAGES)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
