"""What `make quickstart` promises, on the wheel's own run of the shipped recipe."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from luthier.data.shards import Shard
from luthier.data_report import DataReport
from luthier.eval_records import EvalReport
from luthier.plan_records import Plan
from luthier.records import GateDecision, ModelShape
from luthier.train_records import TrainResult

pytestmark = pytest.mark.real


def test_it_keeps_to_time_memory_and_tokens(finished: Any) -> None:
    assert finished.seconds < 15 * 60
    train, report = (
        TrainResult.read(finished.run / "train/result.json"),
        EvalReport.read(finished.run / "eval/report.json"),
    )
    markers = [json.loads(path.read_text()) for path in (finished.run / "stages").glob("*.json")]
    assert {marker["stage"] for marker in markers} == {"base", "prepare", "train", "evaluate", "export"}
    assert max(train.peak_memory_gib, report.peak_memory_gib, *(m["peak_memory_gib"] for m in markers)) < 6.0
    assert 40_000 < train.trained_tokens <= 60_000


def test_the_table_compares_four_systems_with_intervals_and_the_tuned_one_wins(finished: Any) -> None:
    report = EvalReport.read(finished.run / "eval/report.json")
    assert [score.system for score in report.systems] == ["majority", "tfidf_logreg", "base", "tuned"]
    assert report.num_items >= 250
    scores = {score.system: score.metrics for score in report.systems}
    for metrics in scores.values():
        for name in ("accuracy", "macro_f1"):
            assert metrics[name].low < metrics[name].point < metrics[name].high
            assert metrics[name].level == 0.95
    assert scores["tfidf_logreg"]["accuracy"].point < 0.95
    gap = next(d for d in report.differences if d.against == "base" and d.metric == "macro_f1")
    assert gap.interval.low > 0.2
    assert gap.interval.point == pytest.approx(scores["tuned"]["macro_f1"].point - scores["base"]["macro_f1"].point)
    beaten = scores["tfidf_logreg"]["macro_f1"].point > scores["tuned"]["macro_f1"].point
    assert finished.stdout.strip().splitlines()[0].startswith("TF-IDF") == beaten


def test_the_end_of_the_output_says_everything(finished: Any) -> None:
    for words in (
        "macro-F1",
        "accuracy",
        "TF-IDF + logistic regression",
        "majority class",
        "base model",
        "tuned model",
        "predicted",
        "actual",
        "time",
        "peak memory",
        "gate",
        "luthier serve",
        "curl",
        "95 % intervals",
    ):
        assert words in finished.stdout, words
    assert re.search(r"tokens/s.*left", finished.stderr), "progress shows rate and time left"
    assert "Traceback" not in finished.stderr


def test_the_target_is_met_by_its_bound_and_the_gate_passed(finished: Any) -> None:
    gate = GateDecision.read(finished.run / "gate.json")
    assert gate.passed, [line for line in gate.lines if not line.passed]
    target = next(line for line in gate.lines if line.kind == "target")
    assert target.bound is not None
    assert target.bound >= 0.60


def test_the_data_is_the_mess_that_was_promised_and_every_row_is_accounted_for(finished: Any) -> None:
    report = DataReport.read(finished.run / "data/report.json")
    assert report.rows_in >= 1000
    assert report.rows_in == report.rows_out + sum(report.dropped.values()) == report.rows_out + len(report.fates)
    assert len(report.splits["train"].labels) == 12
    assert report.splits["test"].rows >= 250
    assert report.dropped["duplicate"] > 0
    assert report.conflicts > 0
    assert {"email", "phone", "card"} <= set(report.findings)
    assert sum(count for kind, count in report.findings.items() if kind.startswith("secret.")) == 2
    shards = "".join(
        row.text for split in ("train", "validation", "test") for row in Shard(finished.run / f"data/{split}.arrow")
    )
    assert "AKIA" not in shards
    assert "ghp_" not in shards
    assert "[EMAIL]" in shards


def test_the_report_and_the_card_say_where_base_and_data_come_from(finished: Any) -> None:
    page, card = ((finished.run / name).read_text(encoding="utf-8") for name in ("report.html", "card.md"))
    assert ModelShape.read(finished.run / "shape.json").quantisation == "Q4_1"
    for text in (page, card):
        assert "4 bits" in text or "4-bit" in text
        assert "synthetic" in text
        assert "Apache-2.0" in text
    assert not re.search(r"(src|href)=[\"']?https?:", page)


def test_what_was_predicted_stands_beside_what_happened(finished: Any) -> None:
    plan, train = Plan.read(finished.run / "plan.json"), TrainResult.read(finished.run / "train/result.json")
    assert plan.prediction.trained_tokens == pytest.approx(train.trained_tokens, rel=0.05)
    peak = max(json.loads(path.read_text())["peak_memory_gib"] for path in (finished.run / "stages").glob("*.json"))
    assert plan.prediction.peak_memory_gib == pytest.approx(peak, rel=0.35)


def test_the_same_command_again_does_nothing_and_says_so(finished: Any) -> None:
    before = (finished.run / "gate.json").read_bytes()
    done = finished.call("run", "support-intents")
    for stage in ("prepare", "train", "evaluate", "export"):
        assert f"{stage}: unchanged, not run again" in done.stderr
    assert (finished.run / "gate.json").read_bytes() == before
    assert finished.call("audit", "verify").returncode == 0


@contextmanager
def serving(finished: Any, target: str, *more: str) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = finished.work / f"serve-{port}.log"
    with (
        log.open("w") as written,
        subprocess.Popen(
            [str(finished.luthier), "serve", target, "--port", str(port), *more],
            cwd=finished.work,
            env=finished.environment,
            stderr=written,
        ) as server,
    ):
        try:
            deadline = time.monotonic() + 120
            while "serving" not in log.read_text():
                assert server.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(60)


def readme_line(start: str) -> list[str]:
    """The words of the one indented line of the README that begins with `start`."""
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    (line,) = re.findall(rf"^    {re.escape(start)}.*$", readme, re.MULTILINE)
    return shlex.split(line)


def ask_as_the_readme_does(finished: Any, address: str) -> Any:
    """The answer to the README's own curl line, sent to `address`; by httpx with the same words where curl is not."""
    import httpx

    command = [word.replace("localhost:8000", address.removeprefix("http://")) for word in readme_line("curl ")]
    if shutil.which("curl"):
        environment = finished.environment | {"NO_PROXY": "*"}
        sent = subprocess.run(command, env=environment, text=True, capture_output=True, check=True, timeout=300)
        return json.loads(sent.stdout)
    url = next(word for word in command if address.removeprefix("http://") in word)
    header, body = command[command.index("-H") + 1], command[command.index("-d") + 1]
    name, _, value = header.partition(": ")
    reply = httpx.post(f"http://{url}", headers={name: value}, content=body, timeout=300)
    reply.raise_for_status()
    return reply.json()


def test_serve_names_the_extra_and_then_answers_the_openai_client_as_the_evaluation_did(finished: Any) -> None:
    import httpx
    import openai

    missing = finished.call("serve", "support-intents", check=False)
    assert missing.returncode == 2
    assert "pip install 'luthier[serve]'" in missing.stderr
    subprocess.run(finished.pip, check=True, env=finished.environment, capture_output=True)
    promote = readme_line(".venv/bin/luthier registry promote")
    assert "is now version 1" in finished.call(*promote[1:]).stdout
    expected = [json.loads(line) for line in (finished.run / "eval/predictions.jsonl").read_text().splitlines()]
    rows = Shard(finished.run / "data/test.arrow")
    serve = readme_line(".venv/bin/luthier serve")
    with serving(finished, *serve[2:]) as address:
        (asked,) = ask_as_the_readme_does(finished, address)["data"]
        assert asked["label"] == max(asked["probabilities"], key=asked["probabilities"].get)
        assert len(asked["probabilities"]) == 12
        with openai.OpenAI(base_url=f"{address}/v1", api_key="unused", max_retries=0) as client:
            model = client.models.list().data[0].id
            for row, line in list(zip(rows, expected, strict=True))[:12]:
                answer = client.chat.completions.create(model=model, messages=[{"role": "user", "content": row.text}])
                assert answer.choices[0].message.content == line["predicted"]["tuned"]
        said = []
        for start in range(0, len(rows), 32):
            body = {"input": [row.text for row in rows[start : start + 32]]}
            reply = httpx.post(f"{address}/v1/classify", json=body, timeout=300)
            reply.raise_for_status()
            said += reply.json()["data"]
        assert [one["label"] for one in said] == [line["predicted"]["tuned"] for line in expected]
        assert [one["probabilities"] for one in said] == [line["probabilities"]["tuned"] for line in expected]


def test_predict_answers_a_file_of_raw_messages(finished: Any) -> None:
    (finished.work / "new.csv").write_text(
        'message\n"Where is my cello? It was to come on Monday."\n"I forgot my password &amp; cannot log in"\n',
        encoding="utf-8",
    )
    finished.call("predict", "support-intents@production", "new.csv", "--output", "said.jsonl")
    labels = [json.loads(line)["label"] for line in (finished.work / "said.jsonl").read_text().splitlines()]
    assert labels == ["order_status", "account_access"]


def test_the_merged_folder_opens_in_plain_transformers_and_says_the_same(finished: Any) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = finished.run / "artifacts/merged"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    row = Shard(finished.run / "data/test.arrow")[0]
    predicted = json.loads((finished.run / "eval/predictions.jsonl").read_text().splitlines()[0])
    turns = [{"role": "system", "content": "Intent?"}, {"role": "user", "content": row.text}]
    ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=False)
    assert ids[0].tolist() == row.prompt_ids
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)
    assert (
        tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip() == predicted["greedy"]["tuned"]
        or not predicted["greedy"]["tuned"]
    )


def progress_of(result: dict[str, Any]) -> list[tuple[float, ...]]:
    """What a training run computed at each step, so that two that part show where."""
    return [(event["step"], event["loss"], event["grad_norm"]) for event in result["history"]]


def test_kill_9_and_the_same_command_end_in_the_same_bits(finished: Any) -> None:
    settings = [
        "--set",
        "train.max_tokens=1700",
        "--set",
        "train.save_steps=1",
        "--set",
        "data.limit.test=6",
        "--set",
        "data.limit.validation=4",
        "--set",
        "train.validations=1",
    ]
    command = [str(finished.luthier), "train", "support-intents", *settings]
    whole = finished.call("train", "support-intents", *settings, "--out", "whole", "--json")
    expected = json.loads(whole.stdout)
    process = subprocess.Popen(
        [*command, "--out", "cut"],
        cwd=finished.work,
        env=finished.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 300
    while not list(finished.work.glob("cut/support-intents/*/train/checkpoints/step-000002")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    found = json.loads(finished.call("train", "support-intents", *settings, "--out", "cut", "--json").stdout)
    assert found["resumed_from"]
    assert found["data_sha256"] == expected["data_sha256"]
    assert progress_of(found) == progress_of(expected)
    assert found["weights_sha256"] == expected["weights_sha256"]
