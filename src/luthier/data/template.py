"""Chat templates rendered as transformers renders them, without importing it (that costs seconds, and torch).

The rules are those of transformers 5.23, `utils/chat_template_utils.py`: an immutable sandbox, `trim_blocks`,
`lstrip_blocks`, loop controls, `tojson` that keeps non-ASCII and does not escape HTML, `raise_exception`, and the
`generation` block, which marks answers for transformers' own mask and writes its body. Left out on purpose:
`strftime_now`. A prompt must not change from one day to the next; templates that ask whether it is there (Llama 3) then
take the date that they carry, others are refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from luthier.errors import ModelError

PLAIN_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] + '\\n\\n' }}"
    "{% elif message['role'] == 'user' %}{{ message['content'] + '\\n' }}"
    "{% else %}{{ message['content'] }}{{ eos_token }}{% endif %}"
    "{% endfor %}"
)
"""For base models without a template of their own: system, blank line, user, newline, answer, end of sequence."""

TEXT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}"
)
"""For models that go on with a text: the text as a document begins, and the end of sequence where it ends."""


class _GenerationBlock(jinja2.ext.Extension):
    """`{% generation %}...{% endgeneration %}` writes what is inside."""

    tags = {"generation"}  # noqa: RUF012 (jinja2's own declaration)

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        return jinja2.nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.exceptions.TemplateError(message)


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@lru_cache(maxsize=1)
def _environment() -> jinja2.Environment:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    return environment


@lru_cache(maxsize=16)
def _compile(source: str) -> jinja2.Template:
    return _environment().from_string(source)


def parse_template(source: str) -> jinja2.nodes.Template:
    """The syntax tree of a template that can be rendered."""
    return _environment().parse(source)


def render(
    source: str, turns: Sequence[tuple[str, str]], *, tokens: Mapping[str, str], add_generation_prompt: bool
) -> str:
    """The text of a conversation.

    Args:
        source: Jinja source of the template.
        turns: role and content of each, in order.
        tokens: `bos_token` and `eos_token`; empty ones are left undefined, as a tokenizer without them does.
        add_generation_prompt: end with the opening of an answer.

    Raises:
        ModelError: the template is broken, refuses these messages, or depends on the clock.
    """
    values: dict[str, Any] = {name: token for name, token in tokens.items() if token}
    messages = [{"role": role, "content": content} for role, content in turns]
    try:
        return _compile(source).render(
            messages=messages, tools=None, documents=None, add_generation_prompt=add_generation_prompt, **values
        )
    except jinja2.exceptions.UndefinedError as error:
        if "strftime_now" not in str(error):
            raise _refused(error) from error
        raise ModelError(
            "the model's chat template depends on the clock (it calls strftime_now), so its prompts would change daily",
            way_out="write a fixed date into chat_template.jinja of the model's folder",
        ) from error
    except (jinja2.exceptions.TemplateError, TypeError, ValueError, KeyError, ArithmeticError) as error:
        raise _refused(error) from error


def _refused(error: BaseException) -> ModelError:
    return ModelError(
        f"the model's chat template cannot render this conversation: {error}",
        way_out="check system prompt and order of turns against chat_template.jinja in the model's folder",
    )
