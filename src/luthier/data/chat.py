"""Chat rows: a cell that holds the turns of a conversation."""

from __future__ import annotations

from luthier.records import Message

_ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
}


def looks_like_chat(value: object) -> bool:
    """Whether a cell is a list of objects that name a speaker (OpenAI's or ShareGPT's keys)."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(turn, dict) and ("role" in turn or "from" in turn) for turn in value)
    )


def parse_chat(value: object) -> tuple[Message, ...] | str:
    """The turns of a cell; or, as text, why it is no conversation that can be learned from.

    Turns after the last answer that is learned are left out: nothing in them is. ShareGPT's keys ('from', 'value') and
    names ('human', 'gpt') are taken as well, and OpenAI's `weight` of a turn, 0 where it is not to be learned.
    """
    if not looks_like_chat(value) or not isinstance(value, list):
        return "not a list of turns with 'role' and 'content'"
    turns: list[Message] = []
    for number, turn in enumerate(value, start=1):
        role = _ROLES.get(str(turn.get("role", turn.get("from"))).lower())
        content = turn.get("content", turn.get("value"))
        if role is None:
            return f"turn {number} has a role that is not system, user or assistant"
        if not isinstance(content, str) or not content.strip():
            return f"turn {number} has no text"
        if role == "system" and number > 1:
            return f"turn {number} is a system turn, which only the first may be"
        if turns and turns[-1].role == role:
            return f"turns {number - 1} and {number} are both the {role}'s"
        weight = 1 if turn.get("weight") is None else turn["weight"]
        if isinstance(weight, bool) or weight not in (0, 1):
            return f"turn {number} has a weight that is neither 0 nor 1"
        turns.append(Message.model_validate({"role": role, "content": content, "weight": int(weight)}))
    if (answers := [turn.weight for turn in turns if turn.role == "assistant"]) and not any(answers):
        return "every answer has the weight 0"
    while turns and not (turns[-1].role == "assistant" and turns[-1].weight):
        turns.pop()
    if not any(turn.role == "user" for turn in turns):
        return "no answer to a user's turn"
    return tuple(turns)
