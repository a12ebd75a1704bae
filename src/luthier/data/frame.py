"""What a chat template writes around a text, where that can be known without rendering it each time.

Most templates only put contents between their own words. Then a prompt is the same for all rows but for the row's own
text, and its tokens too, up to the control tokens on both sides of it: a tokenizer cuts at these first and reads each
piece by itself. A list of labels that stands in every prompt is so tokenised once instead of once a row.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import nodes
from tokenizers import Tokenizer

from luthier.data.template import parse_template

SENTINEL = "LuthierText"


@dataclass(frozen=True)
class Frame:
    """Ids of a prompt are `before`, those of `head + text + tail` read by themselves, and `after`."""

    before: tuple[int, ...]
    head: str
    tail: str
    after: tuple[int, ...]


def only_places_contents(source: str) -> bool:
    """Whether a template does nothing with contents but write them, so that the words around them depend on roles only.

    Contents may stand alone in `{{ }}` or be joined by `+` or `~` there; the messages may be looped over or indexed.
    What is not known to be harmless (filters, names that are set, macros) is taken for harm.
    """
    tree = parse_template(source)
    loops = {node.target.name for node in tree.find_all(nodes.For) if isinstance(node.target, nodes.Name)}
    return _is_harmless(tree, loops, written=False)


_HARMLESS = (
    nodes.Template, nodes.Output, nodes.TemplateData, nodes.If, nodes.Scope, nodes.Const, nodes.Add, nodes.Concat,
    nodes.And, nodes.Or, nodes.Not, nodes.Compare, nodes.Operand, nodes.CondExpr, nodes.Getattr, nodes.Getitem,
    nodes.Neg, nodes.Mod, nodes.Test, nodes.Continue, nodes.Break,
)  # fmt: skip


def _is_harmless(node: nodes.Node, loops: set[str], *, written: bool) -> bool:
    """`written` tells that the worth of the node goes into the output as it is."""
    if isinstance(node, nodes.Name):
        return node.name not in loops and node.name != "messages"
    if isinstance(node, nodes.Getattr | nodes.Getitem) and _is_message(node.node, loops):
        key = _key_of(node)
        return key == "role" or (key == "content" and written)
    if isinstance(node, nodes.Call):  # of a template that refuses some orders of roles
        called = isinstance(node.node, nodes.Name) and node.node.name == "raise_exception"
        return called and all(isinstance(one, nodes.Const) for one in node.args)
    inner = (written and isinstance(node, nodes.Add | nodes.Concat)) or isinstance(node, nodes.Output)
    if isinstance(node, nodes.For):
        over_messages = isinstance(node.iter, nodes.Name) and node.iter.name == "messages"
        if node.recursive or not over_messages or not isinstance(node.target, nodes.Name):
            return False
        children = [*node.body, *node.else_, *([node.test] if node.test else [])]
    elif isinstance(node, _HARMLESS):
        children = list(node.iter_child_nodes())
    else:
        return False
    return all(_is_harmless(child, loops, written=inner) for child in children)


def _key_of(node: nodes.Node) -> str | None:
    """What `x['key']` or `x.key` asks for."""
    if isinstance(node, nodes.Getattr):
        return node.attr
    if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const):
        return node.arg.value if isinstance(node.arg.value, str) else None
    return None


def _is_message(node: nodes.Node, loops: set[str]) -> bool:
    """The variable of a loop over the messages, or one of them by its number."""
    if isinstance(node, nodes.Name):
        return node.name in loops
    return (
        isinstance(node, nodes.Getitem)
        and isinstance(node.node, nodes.Name)
        and node.node.name == "messages"
        and (
            isinstance(node.arg, nodes.Const)
            or (isinstance(node.arg, nodes.Neg) and isinstance(node.arg.node, nodes.Const))
        )
    )


def reads_pieces_alone(tokenizer: Tokenizer) -> bool:
    """Whether what stands between two control tokens is read without regard to what stands before and after them.

    A tokenizer cuts at added tokens before it reads, if they are not normalised themselves and take no blanks beside
    them. No token may then reach over the edge of a control token: its first character starts it and nothing else, and
    no other token begins with the whole of it. Only Metaspace with prepend_scheme 'first' asks where a piece stands.
    """
    content: dict[str, Any] = json.loads(tokenizer.to_str())
    added: list[dict[str, Any]] = content["added_tokens"]
    texts = [token["content"] for token in added]
    controls = [token["content"] for token in added if token["special"]]
    flags = ("lstrip", "rstrip", "single_word", "normalized")
    firsts = {control[0] for control in controls}
    return (
        not any(token[flag] for token in added for flag in flags)
        and not any(firsts & set(text[1:]) for text in texts)
        and not any(text != control and text.startswith(control) for text in texts for control in controls)
        and '"prepend_scheme": "first"' not in json.dumps(content["pre_tokenizer"])
    )


def make_frame(prompt: str, tokenizer: Tokenizer, controls: Sequence[str]) -> Frame | None:
    """The frame of a prompt whose text is `SENTINEL`; None where no control token stands before it.

    Args:
        prompt: as rendered.
        tokenizer: reads pieces alone.
        controls: texts of its control tokens.
    """
    before, found, after = prompt.partition(SENTINEL)
    if not found or SENTINEL in after:
        return None
    start = max((before.rfind(control) + len(control) for control in controls if control in before), default=-1)
    stops = [after.find(control) for control in controls if control in after]
    if start < 0:
        return None
    stop = min(stops, default=len(after))
    encode = tokenizer.encode
    return Frame(
        before=tuple(encode(before[:start], add_special_tokens=False).ids),
        head=before[start:],
        tail=after[:stop],
        after=tuple(encode(after[stop:], add_special_tokens=False).ids),
    )
