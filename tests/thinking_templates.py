"""Chat templates of models that think, in the manner of three families and in words of our own."""

_TURNS = "{% for m in messages %}<|im_start|>{{ m.role }}\n"

# Thinks unless it is told not to, and writes its thought itself.
SWITCH = (
    _TURNS + "{% if m.role == 'assistant' %}<think>\n{{ m.reasoning_content or '' }}\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
# Is inside a thought from the first token on. Finished turns hold no thought.
OPENED = (
    _TURNS + "{{ m.content.split('</think>')[-1] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
# Thinks in a channel of its own, and has no switch.
CHANNELS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}{% if m.role == 'assistant' %}{% if m.thinking %}"
    "<|channel|>analysis<|message|>{{ m.thinking }}<|end|><|im_start|>assistant{% endif %}"
    "<|channel|>final{% endif %}<|message|>{{ m.content }}"
    "{{ '<|im_end|>' if m.role == 'assistant' and loop.last else '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant{% endif %}"
)
# Has the switch, but does not think by default.
OFF = SWITCH.replace("is defined and not enable_thinking", "is not defined or not enable_thinking")
# Has the switch, is inside a thought from the first token on unless told not to, and closes it in finished turns.
OPENED_SWITCH = (
    _TURNS + "{% if m.role == 'assistant' %}<think>"
    "{{ '\n' + m.reasoning_content + '\n' if m.reasoning_content }}</think>{% endif %}{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{{ '<think></think>' if enable_thinking is defined and not enable_thinking else '<think>\n' }}{% endif %}"
)
