"""A run that exports a GGUF file, as a user would run it: trained, written, held to parity, gated, told in the card."""

from __future__ import annotations

import json

import pytest
import yaml
from test_kill import pytestmark

from command import luthier
from luthier.data.contract import Renderer
from luthier.engines.llama_cpp import LlamaCppEngine
from luthier.records import GateDecision, RequestContract
from luthier.store.runs import RunFolder
from tiny import write_model, write_recipe

__all__ = ["pytestmark"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = tmp_path_factory.mktemp("gguf")
    write_recipe(folder, write_model(folder / "model"))
    tree = yaml.safe_load((folder / "tiny.yaml").read_text())
    (folder / "tiny.yaml").write_text(yaml.safe_dump({**tree, "export": ["adapter", "gguf", "gguf_q8_0"]}))
    done = luthier("run", "tiny.yaml", "--out", "out", cwd=folder, LUTHIER_HOME=str(folder / "home"))
    assert done.code in (0, 3), done  # the gate decides by what so few rows prove
    return RunFolder.open("tiny", out=folder / "out")


def test_the_files_are_there_and_the_gate_has_a_line_of_each(run: RunFolder) -> None:
    gate = GateDecision.read(run.path / "gate.json")
    lines = {line.line: line for line in gate.lines if line.kind == "parity"}
    assert set(lines) == {"parity of adapter", "parity of gguf", "parity of gguf_q8_0"}
    assert all(line.passed for line in lines.values())
    assert lines["parity of gguf"].asked == "token ids equal, KL divergence <= 0.001 nats"
    assert "largest KL divergence" in lines["parity of gguf_q8_0"].observed
    for kind, file in (("gguf", "model-f16.gguf"), ("gguf_q8_0", "model-q8_0.gguf")):
        assert (run.artifacts / kind / file).is_file()
        assert f"`artifacts/{kind}`" in run.card.read_text()
        assert f"parity of {kind}" in run.card.read_text()
        assert f"parity of {kind}" in (run.path / "report.html").read_text()
        assert "Made from" in (run.artifacts / kind / "README.md").read_text()


def test_the_verb_says_what_was_compared(run: RunFolder) -> None:
    said = luthier("export", run.path, cwd=run.path.parents[2]).succeeds().out
    assert "gguf_q8_0: " in said
    assert "largest KL divergence" in said
    index = json.loads(run.artifacts_index.read_text())
    assert [one["parity"]["measure"] for one in index] == ["logits", "kl", "kl"]


def test_llama_cpp_finds_the_label_likeliest_that_predict_gives(run: RunFolder) -> None:
    folder = run.path.parents[2]
    luthier("predict", run.path, "messages.csv", "--output", "said.jsonl", cwd=folder).succeeds()
    said = [json.loads(line) for line in (folder / "said.jsonl").read_text().splitlines()]
    contract = RequestContract.read(run.contract)
    renderer = Renderer.open(run.contract, folder / "model" / "tokenizer.json")
    texts = [line.split(",")[1:-1] for line in (folder / "messages.csv").read_text().splitlines()[1:]]
    engine = LlamaCppEngine(run.artifacts / "gguf" / "model-f16.gguf", n_ctx=512, threads=1)
    try:
        for row, text in list(zip(said, texts, strict=True))[:5]:
            user = renderer.user_text({"text": ",".join(text).strip('"')})
            _, prompt = engine.encode(contract, user)
            assert prompt == renderer.prompt_ids(renderer.messages(user))
            scores = {}
            for label in contract.labels:
                answer = renderer.answer_ids(label)
                places = range(len(answer))
                scores[label] = sum(engine.next_logprobs([*prompt, *answer[:end]])[answer[end]] for end in places)
            assert max(scores, key=lambda label: scores[label]) == row["label"]
    finally:
        engine.close()
