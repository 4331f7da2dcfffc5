"""What is said when the base of a command is loaded."""

from cofitune_fast.commands.setup import make_workbench
from cofitune_fast.config import Config


def test_a_base_without_a_chat_template_is_said_in_one_line(tiny_model_folder, capsys):
    make_workbench(Config(model=str(tiny_model_folder)))
    assert capsys.readouterr().err == ""
    (tiny_model_folder / "chat_template.jinja").unlink()
    make_workbench(Config(model=str(tiny_model_folder)))
    assert " ".join(capsys.readouterr().err.split()) == (
        "The tokenizer has no chat template: a prompt is the texts of its messages, each followed by a line break, and "
        "a response ends with the end-of-sequence token.")
