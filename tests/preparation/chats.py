"""Chat templates and a tokenizer for tests of conversations.

The templates have the structures of published ones, in a few lines of their own. Where « and » stand, a template that
marks answers has `{% generation %}` and `{% endgeneration %}`.
"""

import json
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from tests.texts import save_tokenizer

SPECIAL = ["<eos>", "<bos>", "<|head|>", "<|head_end|>", "<|turn_end|>", "[ASK]", "[/ASK]", "<unused>"]

# As Llama-3's: BOS before the first message, a header of control tokens, contents trimmed.
HEADERS = """
{%- for m in messages -%}
    {%- if loop.first %}{{ bos_token }}{% endif -%}
    {{- '<|head|>' + m.role + '<|head_end|>\\n\\n' -}}
    {%- if m.role == 'assistant' -%}«{{- m.content | trim + '<|turn_end|>' -}}»
    {%- else -%}{{- m.content | trim + '<|turn_end|>' -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|head|>assistant<|head_end|>\\n\\n' -}}{%- endif -%}
"""

# As Qwen3's: the last answer has its thinking, or empty thinking; earlier ones lose theirs. Tools are told first, what
# they answer stands in a user's turn.
THINKING = """
{%- if tools -%}
    {{- '<|head|>system\\nTools:' -}}
    {%- for tool in tools -%}{{- '\\n' + (tool | tojson) -}}{%- endfor -%}
    {{- '<|turn_end|>\\n' -}}
{%- endif -%}
{%- set last = namespace(question=0) -%}
{%- for m in messages -%}{%- if m.role == 'user' -%}{%- set last.question = loop.index0 -%}{%- endif -%}{%- endfor -%}
{%- for m in messages -%}
    {%- if m.role == 'tool' -%}
        {{- '<|head|>user\\n<result>' + m.content + '</result><|turn_end|>\\n' -}}
    {%- elif m.role != 'assistant' -%}
        {{- '<|head|>' + m.role + '\\n' + m.content + '<|turn_end|>\\n' -}}
    {%- else -%}
        {{- '<|head|>assistant\\n' -}}
        «
        {%- set said = m.content or '' -%}
        {%- set thought = said.split('</think>')[0].split('<think>')[-1].strip() if '</think>' in said else '' -%}
        {%- set said = said.split('</think>')[-1].lstrip('\\n') -%}
        {%- if loop.index0 > last.question and (loop.last or thought) -%}
            {{- '<think>\\n' + thought + '\\n</think>\\n\\n' -}}
        {%- endif -%}
        {{- said -}}
        {%- for call in m.tool_calls or [] -%}{{- '<call>' + (call.function | tojson) + '</call>' -}}{%- endfor -%}
        {{- '<|turn_end|>\\n' -}}
        »
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|head|>assistant\\n' -}}{%- endif -%}
"""

# As Mistral's: no header before answers, no generation prompt, EOS after each answer. `SYSTEM` says whose question has
# the system message in it.
_BRACKETS = """
{%- set system = messages[0].content if messages[0].role == 'system' else '' -%}
{{- bos_token -}}
{%- for m in (messages[1:] if system else messages) -%}
    {%- if m.role == 'user' -%}
        {{- '[ASK] ' + (system + '\\n\\n' if system and SYSTEM else '') + m.content + '[/ASK]' -}}
    {%- elif m.role == 'assistant' -%}«{{- ' ' + m.content.strip() + eos_token -}}»
    {%- endif -%}
{%- endfor -%}
"""
BRACKETS = _BRACKETS.replace("SYSTEM", "loop.first")
SYSTEM_LAST = _BRACKETS.replace("SYSTEM", "m == (messages | selectattr('role', 'equalto', 'user') | list)[-1]")
# Where an answer follows the last question, it has none.
SYSTEM_LOST = _BRACKETS.replace("SYSTEM", "loop.last")

# As Gemma's: no system message, another name for the assistant, turns that alternate.
ALTERNATING = """
{{- bos_token -}}
{%- if messages[0].role == 'system' -%}{{- raise_exception('no system message is known') -}}{%- endif -%}
{%- for m in messages -%}
    {%- if (m.role == 'user') != (loop.index0 % 2 == 0) -%}{{- raise_exception('turns must alternate') -}}{%- endif -%}
    {%- if m.role == 'assistant' -%}
        {{- '<|head|>model\\n' -}}«{{- m.content | trim + '<|turn_end|>\\n' -}}»
    {%- else -%}{{- '<|head|>' + m.role + '\\n' + m.content | trim + '<|turn_end|>\\n' -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|head|>model\\n' -}}{%- endif -%}
"""

# As Qwen2.5's: a system message where there is none.
DEFAULT_SYSTEM = """
{%- if messages[0].role != 'system' -%}{{- '<|head|>system\\nBe of help.<|turn_end|>\\n' -}}{%- endif -%}
{%- for m in messages -%}
    {{- '<|head|>' + m.role + '\\n' -}}
    {%- if m.role == 'assistant' -%}«{{- m.content + '<|turn_end|>\\n' -}}»
    {%- else -%}{{- m.content + '<|turn_end|>\\n' -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|head|>assistant\\n' -}}{%- endif -%}
"""

TEMPLATES = {
    "headers": HEADERS,
    "thinking": THINKING,
    "brackets": BRACKETS,
    "alternating": ALTERNATING,
    "default system": DEFAULT_SYSTEM,
}


def marked(template: str) -> str:
    """The template with its marks."""
    return template.replace("«", "{%- generation -%}").replace("»", "{%- endgeneration -%}")


def unmarked(template: str) -> str:
    """The template without marks."""
    return template.replace("«", "").replace("»", "")


def write_chat_tokenizer(folder: Path, texts: list[str], template: str | None) -> Path:
    """A folder with a byte-level BPE of 600 tokens that keeps runs of line ends apart from words, and a template."""
    backend = tokenizers.Tokenizer(models.BPE())
    words = tokenizers.Regex(r"\s*[\r\n]+| ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s+")
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(words, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts[:20], trainer)
    save_tokenizer(folder, backend, {"eos_token": "<eos>", "bos_token": "<bos>"})
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return folder


def write_conversations(path: Path, values: list[object]) -> Path:
    """JSON lines."""
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return path


def said(*contents: str, system: str | None = None) -> dict[str, object]:
    """A conversation in which user and assistant take turns."""
    roles = ("user", "assistant")
    first = [] if system is None else [{"role": "system", "content": system}]
    return {"messages": first + [{"role": roles[n % 2], "content": text} for n, text in enumerate(contents)]}
