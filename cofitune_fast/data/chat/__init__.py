"""Conversations as text: one rendering for training, anchor, generation, scoring, lm-eval and choices.

options      what a run wants of thoughts and of the date; it travels with the tokenizer
template     messages through the chat template, in the form that the template takes
thinking     how the template writes thoughts, and thoughts in texts
conversation the prompt, the response after it, and the answer in a generated text
turns        where a turn ends
control      tokens that a text of a row must not hold
proof        what a template leaves out of a row
"""

from .control import check_texts
from .conversation import (
    PLAIN_FORMAT,
    answer_of,
    content_of,
    generated_thought,
    lead,
    prompt_opens_thought,
    prompt_text,
    response_text,
)
from .options import ChatOptions, ThinkingChoice, options_of, with_options
from .proof import check_shown
from .template import GREETING, TemplateRefusal, date_of, render, writes_date
from .thinking import Thinking, split_thought, thinking_of
from .turns import TurnEnd, configured_ends, end_of_turn, tokens_with, turn_end

__all__ = [
    "GREETING",
    "PLAIN_FORMAT",
    "ChatOptions",
    "TemplateRefusal",
    "Thinking",
    "ThinkingChoice",
    "TurnEnd",
    "answer_of",
    "check_shown",
    "check_texts",
    "configured_ends",
    "content_of",
    "date_of",
    "end_of_turn",
    "generated_thought",
    "lead",
    "options_of",
    "prompt_opens_thought",
    "prompt_text",
    "render",
    "response_text",
    "split_thought",
    "thinking_of",
    "tokens_with",
    "turn_end",
    "with_options",
    "writes_date",
]
