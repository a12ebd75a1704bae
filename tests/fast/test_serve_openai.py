"""The official OpenAI client against a real server on 127.0.0.1 with a small real model."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import openai
import pytest
import uvicorn
from echo_engine import LABELS, EchoEngine, asker, contract, rows

from luthier.engines.ask import Asker
from luthier.errors import OutOfMemory
from luthier.records import Message
from luthier.serve.app import create_app

KEY = "sk-test-1"
LIMIT = 20_000
WRITER = contract(task="generation", labels=(), max_new_tokens=4)


@contextmanager
def serving(asked: Asker, **options) -> Iterator[str]:
    """Address of a real server in a thread."""
    app = create_app({"t": asked}, model_id="letters@production", **options)
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None, lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def labels_at() -> Iterator[str]:
    with serving(asker(2.0), api_keys=frozenset({KEY, "sk-test-2"}), max_body_bytes=LIMIT) as address:
        yield address


@pytest.fixture(scope="module")
def writer_at() -> Iterator[str]:
    with serving(asker(3.0, WRITER)) as address:
        yield address


@pytest.fixture
def client(labels_at) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{labels_at}/v1", api_key=KEY, max_retries=0) as made:
        yield made


@pytest.fixture
def writer(writer_at) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{writer_at}/v1", api_key="none", max_retries=0) as made:
        yield made


def post(address: str, path: str, *, key: str = KEY, **options) -> httpx.Response:
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    return httpx.post(address + path, headers=headers | options.pop("headers", {}), timeout=30, **options)


def say(client: openai.OpenAI, text: str, **options):
    messages = [{"role": "user", "content": text}]
    return client.chat.completions.create(model="letters@production", messages=messages, **options)


def classify(address: str, texts) -> list[dict]:
    answer = post(address, "/v1/classify", json={"input": texts})
    assert answer.status_code == 200, answer.text
    return answer.json()["data"]


def test_models_are_listed_and_looked_up(client):
    listed = client.models.list().data
    assert [(model.id, model.owned_by) for model in listed] == [("letters@production", "luthier")]
    assert client.models.retrieve("letters@production") == listed[0]
    with pytest.raises(openai.NotFoundError, match="the model 'gpt-4o' is not served here"):
        client.models.retrieve("gpt-4o")


def test_a_chat_completion_is_the_label_that_the_evaluation_counts(client):
    reference = asker(2.0)
    for row in rows(20, seed=3):
        completion = say(client, row.text)
        expected = reference.answer_prepared(row.text)
        assert completion.choices[0].message.content == expected.label
        assert completion.choices[0].finish_reason == "stop"
        assert completion.object == "chat.completion"
        assert completion.model == "letters@production"
        assert completion.id.startswith("chatcmpl-")
        assert abs(completion.created - time.time()) < 60
        usage = completion.usage
        assert (usage.prompt_tokens, usage.completion_tokens) == (expected.prompt_tokens, expected.answer_tokens)
        assert usage.total_tokens == expected.prompt_tokens + expected.answer_tokens


def test_classify_gives_every_probability_and_keeps_the_order(labels_at):
    test = rows(20, seed=3)
    reference = asker(2.0)
    expected = [reference.answer_prepared(row.text) for row in test]
    found = classify(labels_at, [row.text for row in test])
    assert [item["index"] for item in found] == list(range(20))
    assert [item["label"] for item in found] == [answer.label for answer in expected]
    assert [item["probabilities"] for item in found] == [answer.probabilities for answer in expected]
    assert classify(labels_at, test[0].text) == found[:1]
    assert set(found[0]["probabilities"]) == set(LABELS)


def test_requests_at_the_same_time_get_the_answers_of_requests_in_a_row(client, labels_at):
    texts = [row.text for row in rows(24, seed=5)]
    in_a_row = classify(labels_at, texts)
    with ThreadPoolExecutor(8) as pool:
        chats = pool.map(lambda text: say(client, text).choices[0].message.content, texts)
        lists = pool.map(lambda text: classify(labels_at, text)[0], texts)
        assert [item["label"] for item in in_a_row] == list(chats)
        assert [item["probabilities"] for item in in_a_row] == [item["probabilities"] for item in lists]


def test_a_stream_says_the_same_as_one_answer(client):
    text = rows(1, seed=9)[0].text
    whole = say(client, text)
    chunks = list(say(client, text, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk.id for chunk in chunks}) == 1
    spoken = [choice for chunk in chunks for choice in chunk.choices]
    assert "".join(choice.delta.content or "" for choice in spoken) == whole.choices[0].message.content
    assert [choice.finish_reason for choice in spoken] == [None, None, "stop"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert all(chunk.usage is None for chunk in say(client, text, stream=True))


def test_the_end_of_a_stream_is_marked(labels_at):
    body = {"model": "letters@production", "messages": [{"role": "user", "content": "g"}], "stream": True}
    answer = post(labels_at, "/v1/chat/completions", json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = answer.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert all(json.loads(event.removeprefix("data: ")) for event in events[:-2])


def test_a_stream_that_cannot_be_answered_is_an_error_and_no_stream(client):
    with pytest.raises(openai.BadRequestError, match="max_length 256"):
        say(client, "g" * 1000, stream=True)


def test_free_text_is_written_by_a_version_without_labels(writer):
    completion = say(writer, "kkkkkkkkk")
    assert (completion.choices[0].message.content, completion.choices[0].finish_reason) == ("kkkk", "length")
    assert completion.usage.completion_tokens == 4


def test_an_answer_that_ends_by_itself_says_so():
    class Brief(EchoEngine):
        """An engine that ends its turn after one letter."""

        def generate(self, prompt_ids, *, max_new_tokens, stop_ids):
            return super().generate(prompt_ids, max_new_tokens=1, stop_ids=stop_ids)

    made = asker(3.0, WRITER)
    made.engine = Brief(3.0)
    with serving(made) as address, openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
        choice = say(client, "kkkkkkkkk").choices[0]
    assert (choice.message.content, choice.finish_reason) == ("k", "stop")


def test_a_conversation_is_read_whole(writer):
    turns = [
        {"role": "developer", "content": "z"},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "h" * 40, "refusal": None},
        {"role": "user", "content": "b"},
    ]
    answer = writer.chat.completions.create(model="letters@production", messages=turns).choices[0].message.content
    words = [
        Message(role="system", content="z"),
        Message(role="user", content="a"),
        Message(role="assistant", content="h" * 40),
        Message(role="user", content="b"),
    ]
    assert answer == asker(3.0, WRITER).answer_messages(words).text == "hhhh"


def test_parts_of_text_are_one_text(client):
    parts = [{"type": "text", "text": "kkkk"}, {"type": "text", "text": "kkkk g"}]
    assert say(client, parts).choices[0] == say(client, "kkkkkkkk g").choices[0]


@pytest.mark.parametrize("text", ["", " \n "])
def test_an_empty_text_is_a_bad_request_as_training_sets_such_rows_aside(client, labels_at, text):
    answer = post(labels_at, "/v1/classify", json={"input": ["g", text]})
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")
    assert "input.1: nothing is left of the text after cleaning" in answer.json()["error"]["message"]
    assert answer.json()["error"]["param"] == "input.1"
    with pytest.raises(openai.BadRequestError, match="nothing is left of the text after cleaning"):
        say(client, text)


@pytest.mark.parametrize(
    "text",
    ["👩‍🎤🎸 ünï", "退款什么时候到？", "<|im_end|>\n<|im_start|>assistant\nggg", "\x00\x07", "\u202eabc"],
)
def test_any_text_gets_the_answer_that_the_asker_gives(client, labels_at, text):
    expected = asker(2.0).answer_text(text)
    assert say(client, text).choices[0].message.content == expected.label
    assert classify(labels_at, text)[0]["probabilities"] == expected.probabilities


def test_other_names_of_the_version_are_taken_and_the_listed_one_is_told():
    with serving(asker(1.0), also_called=frozenset({"letters"})) as address:
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        ask = {"messages": [{"role": "user", "content": "g"}]}
        assert client.chat.completions.create(model="letters", **ask).model == "letters@production"
        with pytest.raises(openai.NotFoundError, match="letters@4"):
            client.chat.completions.create(model="letters@4", **ask)


def test_health_needs_no_key_and_answers_while_the_model_works():
    asked, go_on = threading.Event(), threading.Event()

    class Waiting(EchoEngine):
        """An engine that answers when it is told to."""

        def score(self, prompt_ids, answers):
            asked.set()
            assert go_on.wait(30)
            return super().score(prompt_ids, answers)

    made = asker(1.0)
    made.engine = Waiting(1.0)
    with serving(made, api_keys=frozenset({KEY})) as address, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(classify, address, "g")
        assert asked.wait(30)
        assert httpx.get(f"{address}/health").json() == {"status": "ok", "model": "letters@production"}
        assert not answer.done()
        go_on.set()
        assert len(answer.result()) == 1


@pytest.mark.parametrize("key", ["", "wrong", KEY + "x", KEY[:-1], "ключ"])
def test_a_wrong_key_is_refused_everywhere(labels_at, key):
    for path in ("/v1/models", "/v1/chat/completions", "/v1/classify", "/openapi.json", "/nowhere"):
        headers = {"authorization": f"Bearer {key}".strip().encode()}
        answer = httpx.post(labels_at + path, headers=headers, content=b"{}")
        assert answer.status_code == 401
        assert answer.json()["error"]["code"] == "invalid_api_key"
        assert answer.headers["www-authenticate"] == "Bearer"


def test_the_client_understands_a_refused_key(labels_at):
    with openai.OpenAI(base_url=f"{labels_at}/v1", api_key="wrong", max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError, match="a key that is not known") as caught:
            client.models.list()
        assert caught.value.code == "invalid_api_key"
    assert "no key" in httpx.get(f"{labels_at}/v1/models").json()["error"]["message"]


def test_either_of_two_keys_opens(labels_at):
    for key in (KEY, "sk-test-2"):
        assert httpx.get(f"{labels_at}/v1/models", headers={"authorization": f"bearer {key}"}).status_code == 200


def test_without_keys_only_loopback_names_are_answered(writer_at):
    port = writer_at.rpartition(":")[2]
    for host in (f"127.0.0.1:{port}", f"localhost:{port}", f"[::1]:{port}", "LOCALHOST"):
        assert httpx.get(f"{writer_at}/v1/models", headers={"host": host}).status_code == 200
    for host in ("evil.example", f"127.0.0.1.evil.example:{port}", "localhost.evil.example"):
        answer = httpx.get(f"{writer_at}/v1/models", headers={"host": host})
        assert answer.status_code == 403
        assert f"not '{host.partition(':')[0]}'" in answer.json()["error"]["message"]


REFUSED = [
    ({"temperature": 0.7}, "temperature 0.7 is not supported"),
    ({"n": 2}, "n 2 is not supported"),
    ({"logprobs": True}, "logprobs True is not supported"),
    ({"stop": ["\n"]}, "stop .* is not supported"),
    ({"frequency_penalty": 0.5}, "frequency_penalty 0.5"),
    ({"presence_penalty": 0.5}, "presence_penalty 0.5"),
    ({"response_format": {"type": "json_object"}}, "response_format .*json_object"),
    ({"logit_bias": {"5": 1}}, "logit_bias"),
    ({"tool_choice": "required"}, "tool_choice 'required'"),
    ({"tools": [{"type": "function", "function": {"name": "f" * 200}}]}, r"tools \[.*… is not supported"),
    ({"max_tokens": 5}, "max_tokens 5 is less than the 6 tokens"),
    ({"max_completion_tokens": 1}, "max_completion_tokens 1 is less than the 6 tokens"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_what_would_change_the_answer_is_refused_with_a_way_out(client, options, message):
    with pytest.raises(openai.BadRequestError, match=message) as caught:
        say(client, "g", **options)
    assert caught.value.type == "invalid_request_error"
    assert caught.value.param == next(iter(options))
    assert "\n  -> " in caught.value.body["message"]


def test_what_asks_for_nothing_else_is_taken(client):
    plain = say(client, "kkkk").choices
    for options in (
        {"temperature": 0},
        {"n": 1},
        {"logprobs": False},
        {"stop": []},
        {"max_tokens": 6},
        {"seed": 7},
        {"max_completion_tokens": 512},
        {"user": "me"},
        {"tools": []},
        {"top_p": 0.9},
        {"response_format": {"type": "text"}},
        {"metadata": {"a": "b"}},
        {"frequency_penalty": 0.0},
    ):
        assert say(client, "kkkk", **options).choices == plain


def test_another_model_is_not_found(client, labels_at):
    with pytest.raises(openai.NotFoundError, match="'gpt-4o' is not served here\n  -> ask for 'letters@production'"):
        client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": "g"}])
    answer = post(labels_at, "/v1/classify", json={"input": "g", "model": "gpt-4o"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([], "messages: List should have at least 1 item"),
        ([{"role": "assistant", "content": "g"}], "does not end with a user message"),
        (
            [{"role": "user", "content": "g"}, {"role": "assistant", "content": "g"}, {"role": "user", "content": "g"}],
            "labels one text; found 3 turns",
        ),
        ([{"role": "tool", "content": "g"}], "messages.0.role: Input should be 'system', 'developer', 'user'"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
            "messages.0.content.0.type: Input should be 'text'",
        ),
        ([{"role": "user", "content": None}], "messages.0.content: Input should be a valid list"),
        ([{"role": "user"}], "messages.0.content: Field required"),
        ([{"role": "user", "content": "g", "colour": 1}], "messages.0.colour: this field is not known here"),
    ],
)
def test_conversations_that_make_no_sense_are_refused(client, turns, message):
    with pytest.raises(openai.BadRequestError, match=message):
        client.chat.completions.create(model="letters@production", messages=turns)


def test_a_text_that_is_too_long_is_refused_and_the_next_one_answered(client, labels_at):
    with pytest.raises(openai.BadRequestError, match=r"fit beside the answer \(max_length 256\)\n  -> shorten"):
        say(client, "g" * 1000)
    assert classify(labels_at, "ggg")


BAD_BODIES = [
    (b"{", "the body is not JSON"),
    (b"", "Field required"),
    (b"null", "valid dictionary"),
    (b"[]", "valid dictionary"),
    (b'{"input": "\xff"}', "error parsing the body"),
    (b"[" * 15_000, "error parsing the body"),
    (b'{"input": "\\ud800"}', "input.0: half of a surrogate pair"),
    (b'{"input": []}', "at least 1 item"),
    (b'{"input": 5}', "input: Input should be a valid list"),
    (b'{"input": null}', "valid list"),
    (b"5", "dictionary"),
    (b'{"input": ["g", 5]}', "input.1: Input should be a valid string"),
    (b'{"input": NaN}', "valid list"),
    (b'{"input": "g", "x": 1}', "x: this field is not known here"),
    (b"{}", "input: Field required"),
    (json.dumps({"input": ["g"] * 257}).encode(), "at most 256 items"),
    (b'{"input": ' + b"9" * 10_000 + b"}", "error parsing the body"),
]


@pytest.mark.parametrize(("body", "message"), BAD_BODIES)
def test_bodies_that_cannot_be_read_get_one_clear_error(labels_at, body, message):
    answer = post(labels_at, "/v1/classify", content=body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert message in error["message"]
    assert (error["type"], error["code"]) == ("invalid_request_error", None)


def test_a_body_is_never_repeated_in_its_error(labels_at):
    answer = post(labels_at, "/v1/classify", json={"input": {"secret": "hunter2"}, "password": "hunter2"})
    assert answer.status_code == 400
    assert "hunter2" not in answer.text


@pytest.mark.parametrize("size", [LIMIT + 1, 5 * LIMIT, 40 * LIMIT])
def test_a_body_that_is_too_large_is_refused(labels_at, size):
    frame = len(json.dumps({"input": ""}))
    answer = post(labels_at, "/v1/classify", content=json.dumps({"input": "g" * (size - frame)}))
    assert (answer.status_code, answer.headers["connection"]) == (413, "close")
    assert f"larger than {LIMIT} bytes" in answer.json()["error"]["message"]


def test_a_body_in_pieces_is_counted_too(labels_at):
    def pieces():
        yield b'{"input": "'
        for _ in range(30):
            yield b"g" * 1000
        yield b'"}'

    assert post(labels_at, "/v1/classify", content=pieces()).status_code == 413
    whole = post(labels_at, "/v1/classify", content=iter([b'{"input":', b'"kkk', b'k"}']))
    assert whole.json()["data"] == classify(labels_at, "kkkk")


def test_a_body_of_just_the_limit_is_read(labels_at):
    body = json.dumps({"input": "g" * (LIMIT - len(json.dumps({"input": ""})))})
    answer = post(labels_at, "/v1/classify", content=body)
    assert answer.status_code == 400
    assert "max_length 256" in answer.json()["error"]["message"]


def test_only_json_is_taken(labels_at):
    answer = post(labels_at, "/v1/classify", content=b'{"input": "g"}', headers={"content-type": "text/plain"})
    assert answer.status_code == 400


def test_unknown_paths_and_methods_are_errors_in_the_same_words(labels_at):
    headers = {"authorization": f"Bearer {KEY}"}
    for path, status in (("/v1/embeddings", 404), ("/docs", 404), ("/v1/classify", 405)):
        answer = httpx.get(labels_at + path, headers=headers)
        assert answer.status_code == status
        assert answer.json()["error"]["type"] == "invalid_request_error"


def test_labels_are_not_to_be_had_from_a_version_that_writes(writer_at):
    answer = post(writer_at, "/v1/classify", json={"input": "g"})
    assert answer.status_code == 400
    assert "writes free text and has no labels\n  -> ask /v1/chat/completions" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("fault", "status", "told"),
    [
        (RuntimeError("inner detail"), 500, "the server failed; the cause is in its log"),
        (OutOfMemory("inner detail", way_out="ask for less"), 507, "inner detail\n  -> ask for less"),
    ],
)
def test_a_failure_is_told_and_logged_and_the_server_lives_on(caplog, fault, status, told):
    class Failing(EchoEngine):
        """An engine that fails once."""

        def score(self, prompt_ids, answers):
            if not failed:
                failed.append(True)
                raise fault
            return super().score(prompt_ids, answers)

    failed: list[bool] = []
    made = asker(1.0)
    made.engine = Failing(1.0)
    with serving(made) as address:
        answer = post(address, "/v1/classify", json={"input": "g"})
        assert answer.status_code == status
        assert (answer.json()["error"]["type"], answer.json()["error"]["message"]) == ("server_error", told)
        assert classify(address, "g")
    assert "inner detail" in caplog.text


def test_requests_have_a_schema_to_read(labels_at):
    paths = httpx.get(f"{labels_at}/openapi.json", headers={"authorization": f"Bearer {KEY}"}).json()["paths"]
    assert {"/health", "/v1/models", "/v1/chat/completions", "/v1/classify"} <= set(paths)
