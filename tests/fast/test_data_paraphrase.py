"""A model elsewhere is asked once, within a budget, about nothing private, and what it says is judged."""

from __future__ import annotations

import json
import stat
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from data_kit import renderer
from openai_fake import Fake, serving
from test_data_augment import balanced, offspring
from test_data_prepare import run, shards, tickets, write

from command import call
from luthier.data.endpoint import Endpoint
from luthier.data.items import Item
from luthier.data.paraphrase import Paraphraser, asked_text
from luthier.data_report import EndpointUse, Technique
from luthier.errors import DataError, RecipeError
from luthier.launch.offline import NetworkRefused
from luthier.records import Message
from luthier.spec.asking import Paraphrase


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fake]:
    monkeypatch.setenv("LUTHIER_HOME", str(tmp_path / "home"))
    with serving(lambda system, user: f"in other words, {user}") as one:
        yield one


def rules(fake: Fake, **more: Any) -> dict[str, Any]:
    return {"paraphrase": {"endpoint": fake.url, "model": "m", **more}}


def use(report: Any) -> tuple[Technique, EndpointUse]:
    (technique,) = report.augmentation.techniques
    return technique, report.augmentation.endpoint


def test_rows_are_said_in_other_words_once(tmp_path: Path, fake: Fake) -> None:
    report = run(tmp_path, tickets(), augment=rules(fake, share=0.5))
    assert balanced(report)
    technique, asked = use(report)
    train = shards(tmp_path)["train"]
    rows = {f"data.csv:{one.line}": one for one in train if not one.made_by}
    assert technique.rows == technique.asked == round(0.5 * len(rows)) == len(fake.asked)
    assert asked.model_dump(exclude={"endpoint"}) == {
        "model": "m", "requests": technique.rows, "from_cache": 0, "tokens": 30 * technique.rows, "unanswered": 0,
    }  # fmt: skip
    for one in offspring(tmp_path):
        assert one.text == f"in other words, {rows[one.parent].text}"
        assert (one.made_by, one.answer) == ("paraphrase", rows[one.parent].answer)
    assert {body["messages"][1]["content"] for body in fake.asked} == {
        rows[one.parent].text for one in offspring(tmp_path)
    }
    assert set(fake.keys) == {""}
    first = [one for one in train if one.made_by]
    again = run(tmp_path, tickets(), augment=rules(fake, share=0.5))
    assert len(fake.asked) == technique.rows, "a second run asks nothing"
    assert use(again)[1].from_cache == technique.rows
    assert offspring(tmp_path) == first
    folder = tmp_path / "home" / "paraphrases"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    run(tmp_path, tickets(), augment=rules(fake, share=0.5, temperature=0.1))
    assert len(fake.asked) == 2 * technique.rows, "another question"


def test_a_budget_ends_the_asking_and_the_rarest_label_comes_first(tmp_path: Path, fake: Fake) -> None:
    rows = [{**row, "intent": "rare" if n % 10 == 0 else row["intent"]} for n, row in enumerate(tickets(120))]
    report = run(tmp_path, rows, augment=rules(fake, share=1.0, max_requests=8))
    technique, asked = use(report)
    assert (asked.requests, technique.rows, len(fake.asked)) == (8, 8, 8)
    assert asked.unanswered == technique.asked - 8 > 0
    assert technique.labels == {"rare": 8}
    report = run(tmp_path, rows, augment=rules(fake, share=1.0, max_requests=8))
    technique, asked = use(report)
    assert (asked.requests, asked.from_cache, technique.rows) == (8, 8, 16), "the next run goes on where it ended"
    report = run(tmp_path, rows, augment=rules(fake, share=1.0, max_requests=500, max_tokens=100))
    technique, asked = use(report)
    assert (asked.requests, asked.tokens, asked.from_cache) == (4, 120, 16), "stopped once 100 were counted"
    fake.usage = False
    with pytest.raises(DataError, match="does not tell how many tokens"):
        run(tmp_path, rows, augment=rules(fake, share=1.0, max_tokens=100))


def test_balance_asks_several_times_about_a_row(tmp_path: Path, fake: Fake) -> None:
    count = iter(range(1000))
    fake.reply = lambda system, user: f"{next(count)} other words: {user}"
    rows = [{**row, "intent": "rare" if n % 10 == 0 else "order"} for n, row in enumerate(tickets(120))]
    report = run(tmp_path, rows, augment={**rules(fake), "balance": 0.4, "max_per_row": 3})
    assert report.augmentation is not None
    assert report.augmentation.short == {}
    assert report.splits["train"].labels["rare"] == report.augmentation.goal
    assert max(Counter(one.parent for one in offspring(tmp_path)).values()) > 1


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("", "empty"),
        ("  \n", "empty"),
        ("half a \ud800 for 12 at [EMAIL]", "no_text"),
        (" ASK for 12 at [EMAIL] ", "unchanged"),
        ("ask for 12 at [EMAIL] " * 9, "too_long_answer"),
        ("please give me twelve at [EMAIL]", "fixed_part_lost"),
        ("please give me 12 at the mail", "fixed_part_lost"),
        ("this is about a card arrival: 12 at [EMAIL]", "names_other_label"),
    ],
)
def test_what_cannot_stand_for_the_row_is_dropped(tmp_path: Path, fake: Fake, said: str, reason: str) -> None:
    fake.reply = lambda system, user: said
    asker = Paraphraser(
        Paraphrase.model_validate(rules(fake)["paraphrase"]), renderer(tmp_path), ["card_arrival", "own"]
    )
    item = Item("a.csv", 2, None, {}, text="ask for 12 at [EMAIL]", answer="own")
    assert [answer for _, answer in asker.say([(item, 0)])] == [(reason, "")]


def test_what_can_stand_for_it_is_taken(tmp_path: Path, fake: Fake) -> None:
    asker = Paraphraser(
        Paraphrase.model_validate(rules(fake)["paraphrase"]), renderer(tmp_path), ["card_arrival", "own"]
    )
    item = Item("a.csv", 2, None, {}, text="card arrival 12", answer="own")
    fake.reply = lambda system, user: ' "my own card arrival is 12" '
    assert [answer for _, answer in asker.say([(item, 0)])] == ["my own card arrival is 12"]
    fake.finish = "length"
    assert [answer for _, answer in asker.say([(item, 1)])] == [("cut_off", "")]
    assert [answer for _, answer in asker.say([(item, 1)])] == [("cut_off", "")], "from the cache too"
    turns = tuple(Message.model_validate({"role": r, "content": c})
                  for r, c in (("user", "q"), ("assistant", "a"), ("user", "again"), ("assistant", "b")))  # fmt: skip
    assert asked_text(Item("a", 1, None, {}, turns=turns)) == "again"
    assert asked_text(Item("a", 1, None, {}, turns=turns[1:2])) == ""


def test_a_kept_answer_that_is_damaged_is_named(tmp_path: Path, fake: Fake) -> None:
    run(tmp_path, tickets(), augment=rules(fake, share=0.2))
    for content in ("{", "[]", "{}"):
        for path in (tmp_path / "home" / "paraphrases").iterdir():
            path.write_text(content)
        with pytest.raises(DataError, match=r"the kept answer .*\.json is damaged") as error:
            run(tmp_path, tickets(), augment=rules(fake, share=0.2))
        assert "remove it" in error.value.way_out


def test_there_and_back_through_another_language(tmp_path: Path, fake: Fake) -> None:
    def reply(system: str, user: str) -> str:
        return f"<{user}>" if "into French" in system else f"back from {user.strip('<>')}"

    fake.reply = reply
    report = run(tmp_path, tickets(), augment=rules(fake, share=0.2, via="French"))
    technique, asked = use(report)
    assert asked.requests == 2 * technique.rows > 0
    assert all(one.text.startswith("back from ") for one in offspring(tmp_path))


def test_nothing_private_is_sent_unless_the_recipe_says_so(tmp_path: Path, fake: Fake) -> None:
    rows = tickets()
    for row in rows:
        row["message"] += " ana@acme.com"
    with pytest.raises(
        DataError, match=r"\d+ of the \d+ rows that would be sent to .* \(email\), the first is data"
    ) as error:
        run(tmp_path, rows, augment=rules(fake, share=0.5))
    assert "send_personal_data: true" in error.value.way_out
    assert "acme" not in str(error.value)
    assert not fake.asked
    run(tmp_path, rows, augment=rules(fake, share=0.5, send_personal_data=True))
    assert fake.asked
    assert "ana@acme.com" in json.dumps(fake.asked)
    fake.asked.clear()
    fake.reply = lambda system, user: f"{user} or bob@acme.com"
    redact = {"action": "redact", "secrets": "stop", "profile": "fast"}
    report = run(tmp_path, rows, augment=rules(fake, share=0.5), privacy=redact)
    assert fake.asked
    assert "acme" not in json.dumps(fake.asked)
    technique, _ = use(report)
    assert technique.dropped == {"personal_data": technique.asked}, "what a model makes up is looked at too"


def test_a_key_comes_from_the_environment_only(tmp_path: Path, fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecipeError, match=r"key_env: LLM_KEY is not set"):
        run(tmp_path, tickets(), augment=rules(fake, key_env="LLM_KEY"))
    monkeypatch.setenv("LLM_KEY", "sk-very-private")
    run(tmp_path, tickets(), augment=rules(fake, key_env="LLM_KEY"))
    assert set(fake.keys) == {"Bearer sk-very-private"}
    for folder in (tmp_path / "out", tmp_path / "home"):
        assert not any(b"sk-very" in path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_faults_that_may_pass_are_waited_for(fake: Fake) -> None:
    waited: list[float] = []
    endpoint = Endpoint(fake.url, "", named="data.teacher", sleep=waited.append)
    body = {"model": "m", "messages": [{"role": r, "content": "x"} for r in ("system", "user")]}
    fake.statuses = [503, 429]
    assert endpoint.complete(body, counted=True) == ("in other words, x", True, False, 30)
    assert waited == [1.0, 7.0]
    fake.statuses = [500] * 4
    with pytest.raises(DataError, match="does not answer: 500 Internal Server Error"):
        endpoint.complete(body, counted=False)
    waited.clear()
    fake.statuses = [401]
    with pytest.raises(DataError, match="does not answer: 401 Unauthorized") as error:
        endpoint.complete(body, counted=False)
    assert waited == []
    assert "what was answered is kept" in error.value.way_out
    for content in (b"<html>", b"{}", b'{"choices": []}', b"[1]", b'{"choices": [{"message": {"content": 3}}]}'):
        fake.body = content
        with pytest.raises(DataError):
            endpoint.complete(body, counted=False)
    endpoint.close()
    nobody = Endpoint("http://127.0.0.1:9/v1", "", named="data.teacher", sleep=waited.append)
    with pytest.raises(DataError, match="does not answer: ConnectionRefusedError"):
        nobody.complete(body, counted=False)
    assert waited == [1.0, 2.0, 4.0]


def test_offline_nothing_leaves_this_machine(tmp_path: Path, fake: Fake) -> None:
    elsewhere = {"paraphrase": {"endpoint": "https://llm.example/v1", "model": "m"}}
    with pytest.raises(NetworkRefused, match=r"offline: 'llm\.example' was to be looked up"):
        run(tmp_path, tickets(), augment=elsewhere)
    assert not fake.asked
    write(tmp_path / "data.csv", tickets())
    (tmp_path / "r.yaml").write_text(
        f"name: r\nmodel: {{name: m}}\ndata: {{train: data.csv, augment: {json.dumps(elsewhere)}}}\n"
    )
    call("check", "r.yaml", "--offline", cwd=tmp_path).fails(
        2, "offline, and https://llm.example/v1 is not on this machine"
    )
