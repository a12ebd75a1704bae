"""What can each way of running one tuned model tell about it? Asked before the Engine protocol is frozen.

One LoRA with random B matrices on the bundled 135M model is asked through transformers (adapter, merged), llama.cpp in
this process (f32 GGUF, base GGUF with adapter GGUF, the bundled 4-bit GGUF with adapter GGUF), llama.cpp's own server
and Luthier's server. Prints a markdown table; run it as `python benchmarks/engine_probe.py`. Needs the extras serve and
dev, 2.5 GB of disk for scratch files and the bundled model on this machine; listens on 127.0.0.1 only.
"""

from __future__ import annotations

import gc
import multiprocessing
import platform
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from probe_files import Files, make_files
from scipy.special import logsumexp

from luthier.data.contract import Renderer, open_tokenizer, with_labels
from luthier.data.goldens import make_goldens
from luthier.data.shards import Example
from luthier.engines.ask import Asker
from luthier.engines.protocol import Score
from luthier.engines.transformers import TransformersEngine
from luthier.records import Golden, RequestContract
from luthier.store.files import sha256_file

THREADS = 1
VOCABULARY = 49152
NEW_TOKENS = 16
LABELS = ("delivery late", "item damaged", "refund", "возврат 🎻")  # tokens of the last end inside a character
SCORED = 2  # prompts whose labels are scored
TEXTS = ("My violin came with a broken bridge, order 88213.",)
ON, OFF = ({"lora": [{"id": 0, "scale": scale}]} for scale in (1.0, 0.0))

Json = dict[str, Any]
Vector = NDArray[np.float64]


# ---- The ways of asking -------------------------------------------------------------------------------------------


class LlamaCpp:
    """The Engine methods out of `/v1/completions` of llama.cpp, called in this process or over HTTP.

    It reports the log-softmax of the raw logits of *generated* tokens, before bias and sampling. So a biased token is
    certain to be generated and is still reported with its own probability, beside the most likely one. A token that
    ends inside a character is generated without a report; then a plain one is generated in its place, and the wanted
    one is looked up in the report of the whole vocabulary.
    """

    def __init__(self, ask: Callable[[Json], Json], *, carrier: int) -> None:
        self._ask = ask
        self._carrier = carrier
        self.unreported = 0

    def _tokens(self, ids: Sequence[int], *, force: int | None = None, **settings: Any) -> list[Json]:
        """Reports on the generated tokens; none where one of them has no report."""
        if force is not None:
            settings |= {"max_tokens": 1, "logit_bias": {str(force): 1e6}}
        reply = self._ask({"prompt": list(ids), "temperature": 0, "cache_prompt": True, **settings})
        if "error" in reply:
            raise RuntimeError(reply["error"]["message"])
        reports: list[Json] = (reply["choices"][0]["logprobs"] or {"content": []})["content"]
        if force is not None and reports and reports[0]["id"] != force:
            raise RuntimeError(f"token {reports[0]['id']} was generated, {force} was forced")
        complete = len(reports) == reply["usage"]["completion_tokens"]
        self.unreported += not complete
        return reports if complete else []

    def next_reported(self, ids: Sequence[int], **settings: Any) -> Vector:
        """Reported log-probability of every next token; shape [V]."""
        (token,) = self._tokens(ids, force=self._carrier, logprobs=VOCABULARY, **settings)
        reported = np.full(VOCABULARY, np.nan)
        for entry in token["top_logprobs"]:
            reported[entry["id"]] = entry["logprob"]
        return reported

    def forced(self, ids: Sequence[int], token: int) -> Score:
        """Log-probability of `token` after `ids`, and whether it is the most likely one."""
        if said := self._tokens(ids, force=token, logprobs=1):
            return Score(said[0]["logprob"], said[0]["top_logprobs"][0]["id"] == token)
        reported = self.next_reported(ids)
        return Score(float(reported[token]), int(reported.argmax()) == token)

    def score(self, ids: Sequence[int], answers: Sequence[Sequence[int]]) -> list[Score]:
        known: dict[tuple[int, ...], Score] = {}  # answers share beginnings
        for answer in answers:
            for end in range(len(answer)):
                if (prefix := tuple(answer[: end + 1])) not in known:
                    known[prefix] = self.forced([*ids, *answer[:end]], answer[end])
        paths = [[known[tuple(answer[: end + 1])] for end in range(len(answer))] for answer in answers]
        return [Score(sum(one.logprob for one in path), all(one.is_greedy for one in path)) for path in paths]

    def generate(self, ids: Sequence[int], *, stop_ids: Sequence[int]) -> list[int]:
        if reports := self._tokens(ids, max_tokens=NEW_TOKENS, logprobs=1):
            said = [token["id"] for token in reports]
            return said[:-1] if said[-1] in stop_ids else said
        said = []
        while len(said) < NEW_TOKENS:
            (token,) = self._tokens([*ids, *said], force=self._carrier, logprobs=1)
            if (best := token["top_logprobs"][0]["id"]) in stop_ids:
                break
            said.append(best)
        return said

    def logprobs(self, ids: Sequence[int]) -> Vector:
        return np.array([self.forced(ids[:end], ids[end]).logprob for end in range(1, len(ids))])


@contextmanager
def llama_server(model: Path, *, lora: Path | None = None, f32_cache: bool = True) -> Iterator[tuple[Any, str, str]]:
    """llama.cpp with one slot; yields the Server, its address and its key. It listens even if only asked in process."""
    import xllamacpp

    params, key = xllamacpp.CommonParams(), secrets.token_hex(16)
    params.model.path, params.api_keys, params.hostnames = str(model), [key], ["127.0.0.1"]
    params.n_ctx, params.n_parallel, params.warmup, params.fit_params, params.verbosity = 1024, 1, False, False, 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = THREADS
    if f32_cache:
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    if lora is not None:
        adapter = xllamacpp.CommonAdapterLoraInfo()
        adapter.path, adapter.scale = str(lora), 1.0
        params.lora_adapters = [adapter]
    server = xllamacpp.Server(params)
    try:
        yield server, server.listening_address, key
    finally:
        del server  # it has no method to end it
        gc.collect()


def serve_luthier(files: Files, contract: RequestContract, ready: Any) -> None:
    """What `luthier serve` runs, in a child process; ends with SIGTERM."""
    from luthier.serve.app import create_app
    from luthier.serve.server import run

    torch.set_num_threads(THREADS)
    renderer = Renderer(contract, open_tokenizer(files.base / "tokenizer.json"))
    asker = Asker(contract, renderer, TransformersEngine.open(files.base, files.adapter))
    run(create_app(asker, model_id="probe"), port=0, ready=ready.put)


# ---- Comparing ----------------------------------------------------------------------------------------------------


@dataclass
class Row:
    """What was seen of one way; worst case over the prompts."""

    way: str
    exposes: str
    ids_equal: str = "-"
    next_error: float = 0.0
    kl: float = 0.0
    off_one: float = 0.0
    greedy: str = "-"
    score_error: float | None = None
    same_label: str = "-"
    prompt_error: float | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    def cells(self) -> list[str]:
        numbers = (self.next_error, self.kl, self.off_one, self.score_error, self.prompt_error)
        shown = ["-" if n is None or np.isnan(n) else f"{n:.1e}" for n in numbers]
        seconds = ", ".join(f"{name} {value:.2f}" for name, value in self.seconds.items())
        return [
            self.way,
            self.ids_equal,
            self.exposes,
            *shown[:3],
            self.greedy,
            shown[3],
            self.same_label,
            shown[4],
            seconds,
        ]


HEADER = [
    "way",
    "ids equal",
    "exposes",
    "max abs diff of next log p",
    "max KL",
    "abs(log sum p)",
    "greedy equal",
    "max diff of label log p",
    "same label",
    "max diff of prompt log p",
    "seconds a question",
]


@dataclass(frozen=True)
class Reference:
    """What (a) says: next log-probabilities [V], greedy ids and label scores of each golden, log p of one prompt."""

    goldens: tuple[Golden, ...]
    answers: list[list[int]]
    stop_ids: tuple[int, ...]
    next_logprobs: list[Vector]
    greedy: list[list[int]]
    scores: list[list[Score]]
    prompt_logprobs: Vector
    carrier: int
    """A plain token, for LlamaCpp."""

    @property
    def one(self) -> tuple[int, ...]:
        """The prompt whose own tokens are scored."""
        return self.goldens[0].prompt_ids


def log_softmax(logits: NDArray[Any]) -> Vector:
    """In float64; log-probabilities that do not quite sum to one are put right by it too."""
    wide = logits.astype(np.float64)
    result: Vector = wide - logsumexp(wide)
    return result


def refer(engine: TransformersEngine, goldens: tuple[Golden, ...], renderer: Renderer) -> Reference:
    """Ask the way that the others are compared with."""
    contract = renderer.contract
    answers = [renderer.answer_ids(label) for label in contract.labels]
    settings: Json = {"max_new_tokens": NEW_TOKENS, "stop_ids": contract.stop_ids}
    return Reference(
        goldens,
        answers,
        contract.stop_ids,
        next_logprobs=[log_softmax(engine.logits(golden.prompt_ids)[-1]) for golden in goldens],
        greedy=[engine.generate(golden.prompt_ids, **settings) for golden in goldens],
        scores=[engine.score(golden.prompt_ids, answers) for golden in goldens[:SCORED]],
        prompt_logprobs=engine.logprobs(goldens[0].prompt_ids),
        carrier=renderer.answer_ids("A")[0],
    )


def compare(
    row: Row,
    reference: Reference,
    *,
    next_reported: Callable[[Sequence[int]], Vector],
    generate: Callable[[Sequence[int]], list[int]],
    score: Callable[[Sequence[int], list[list[int]]], list[Score]],
    logprobs: Callable[[Sequence[int]], Vector],
) -> Row:
    """Fill the numbers of `row`; distances are taken after normalizing the reported log-probabilities in float64."""
    greedy = same_label = 0
    row.score_error = 0.0
    for index, golden in enumerate(reference.goldens):
        with timed(row, "distribution"):
            reported = next_reported(golden.prompt_ids)
        expected, found = reference.next_logprobs[index], log_softmax(reported)
        row.off_one = max(row.off_one, abs(float(logsumexp(reported))))
        row.next_error = max(row.next_error, float(np.abs(found - expected).max()))
        row.kl = max(row.kl, float((np.exp(expected) * (expected - found)).sum()))
        greedy += generate(golden.prompt_ids) == reference.greedy[index]
    for golden, expected_scores in zip(reference.goldens, reference.scores, strict=False):
        with timed(row, "score"):
            scores = np.array([one.logprob for one in score(golden.prompt_ids, reference.answers)])
        wanted = np.array([one.logprob for one in expected_scores])
        row.score_error = max(row.score_error, float(np.abs(scores - wanted).max()))
        same_label += int(scores.argmax() == wanted.argmax())
    row.seconds["distribution"] /= len(reference.goldens)
    row.seconds["score"] /= SCORED
    with timed(row, "prompt log p"):
        row.prompt_error = float(np.abs(logprobs(reference.one) - reference.prompt_logprobs).max())
    row.greedy, row.same_label = f"{greedy}/{len(reference.goldens)}", f"{same_label}/{SCORED}"
    return row


@contextmanager
def timed(row: Row, name: str) -> Iterator[None]:
    """Add what the block takes to `row.seconds[name]`."""
    start = time.perf_counter()
    yield
    row.seconds[name] = row.seconds.get(name, 0.0) + time.perf_counter() - start


# ---- The rows -----------------------------------------------------------------------------------------------------


def transformers_row(way: str, engine: TransformersEngine, reference: Reference, folder: Path) -> Row:
    """A module, with the tokenizer and template of `folder` as plain transformers applies them."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)

    def own_ids(golden: Golden) -> list[int]:
        turn = [{"role": "user", "content": golden.text}]
        return list(tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=True)["input_ids"])

    row = Row(way, "raw logits [T, V]", ids_equal(own_ids, reference.goldens))
    return compare(
        row,
        reference,
        next_reported=lambda ids: log_softmax(engine.logits(ids)[-1]),
        generate=lambda ids: engine.generate(ids, max_new_tokens=NEW_TOKENS, stop_ids=reference.stop_ids),
        score=engine.score,
        logprobs=engine.logprobs,
    )


def llama_row(way: str, asked: LlamaCpp, reference: Reference, own_ids: Callable[[Golden], list[int]]) -> Row:
    """llama.cpp, in this process or over HTTP."""
    exposes = "log-softmax of generated tokens, any top n up to V, before sampling"
    return compare(
        Row(way, exposes, ids_equal(own_ids, reference.goldens)),
        reference,
        next_reported=asked.next_reported,
        generate=lambda ids: asked.generate(ids, stop_ids=reference.stop_ids),
        score=asked.score,
        logprobs=asked.logprobs,
    )


def ids_equal(own_ids: Callable[[Golden], list[int]], goldens: Sequence[Golden]) -> str:
    """For how many prompts an own tokenizer and template give the golden ids."""
    equal = sum(tuple(own_ids(golden)) == golden.prompt_ids for golden in goldens)
    return f"{equal}/{len(goldens)}"


def llama_ids(address: str, key: str) -> Callable[[Golden], list[int]]:
    """Template and tokenizer of the GGUF file; the Python class has no method for either, its HTTP server has."""
    import httpx

    def post(path: str, body: Json) -> Json:
        reply = httpx.post(address + path, json=body, headers={"Authorization": f"Bearer {key}"}, timeout=60)
        reply.raise_for_status()
        found: Json = reply.json()
        return found

    def own_ids(golden: Golden) -> list[int]:
        prompt = post("/apply-template", {"messages": [{"role": "user", "content": golden.text}]})["prompt"]
        ids: list[int] = post("/tokenize", {"content": prompt, "add_special": False, "parse_special": True})["tokens"]
        return ids

    return own_ids


def llama_rows(files: Files, reference: Reference, notes: list[str]) -> Iterator[Row]:
    """In this process, and the same server over HTTP."""
    lora = files.lora_gguf
    ways: list[tuple[str, Path, Json]] = [
        ("c1 llama.cpp, merged f32 GGUF, f32 cache", files.merged_gguf, {}),
        ("c2 as c1, default cache (f16, flash attention)", files.merged_gguf, {"f32_cache": False}),
        ("c3 llama.cpp, base f32 GGUF + LoRA GGUF", files.base_gguf, {"lora": lora}),
        ("c4 llama.cpp, bundled Q4_1 GGUF + LoRA GGUF", files.bundled_gguf, {"lora": lora}),
    ]
    for way, model, settings in ways:
        with llama_server(model, **settings) as (server, address, key):
            asked = LlamaCpp(server.handle_completions, carrier=reference.carrier)
            yield llama_row(way, asked, reference, llama_ids(address, key))
            notes.append(f"{way[:2]}: {asked.unreported} times no report because a token ends inside a character")
            notes.append(f"{way[:2]}: {cache_note(asked, reference)}")
            if "lora" in settings:
                notes.append(f"{way[:2]}: {adapter_note(asked, reference, files)}")
            if way.startswith("c1"):
                over_http, more = http_engine(address, key, reference)
                yield llama_row(
                    "d1 llama.cpp's server (as c1), openai client", over_http, reference, llama_ids(address, key)
                )
                notes += [f"d1: {note}" for note in more]


def cache_note(asked: LlamaCpp, reference: Reference) -> str:
    """Whether an answer depends on what was asked before."""
    ids = reference.one
    first, again = asked.next_reported(ids, cache_prompt=False), asked.next_reported(ids, cache_prompt=False)
    cached = asked.next_reported(ids)
    return (
        f"asked twice differs by {np.abs(first - again).max():.1e} with cache_prompt off, "
        f"by {np.abs(first - cached).max():.1e} from an answer out of the prompt cache"
    )


def adapter_note(asked: LlamaCpp, reference: Reference, files: Files) -> str:
    """Whether switching the adapter for one request leaves the others alone."""
    ids = reference.one
    first, off, again = (asked.next_reported(ids, cache_prompt=False, **which) for which in (ON, OFF, ON))
    base = log_softmax(TransformersEngine.open(files.base).logits(ids)[-1])
    return (
        f"adapter on, off, on: on differs by {np.abs(first - again).max():.1e}; off is "
        f"{np.abs(first - off).max():.1f} away from on and {np.abs(log_softmax(off) - base).max():.1e} from the "
        "base in transformers"
    )


def http_engine(address: str, key: str, reference: Reference) -> tuple[LlamaCpp, list[str]]:
    """llama.cpp over HTTP, and what its chat endpoint says."""
    from openai import OpenAI

    client = OpenAI(base_url=f"{address}/v1", api_key=key, max_retries=0)

    def ask(body: Mapping[str, Any]) -> Json:
        rest = {name: value for name, value in body.items() if name != "prompt"}
        return client.completions.create(model="probe", prompt=body["prompt"], extra_body=rest).to_dict()

    echoed = ask({"prompt": list(reference.one), "echo": True, "logprobs": 1, "max_tokens": 1, "temperature": 0})
    chat = client.chat.completions.create(
        model="probe",
        messages=[{"role": "user", "content": reference.goldens[0].text}],
        temperature=0,
        max_completion_tokens=NEW_TOKENS,
        logprobs=True,
        top_logprobs=20,
    )
    content = (chat.choices[0].logprobs.content if chat.choices[0].logprobs else None) or []
    said = [entry.to_dict()["id"] for entry in content]
    same = said[: len(reference.greedy[0])] == reference.greedy[0]
    echoes = len((echoed["choices"][0]["logprobs"] or {"content": []})["content"])
    return LlamaCpp(ask, carrier=reference.carrier), [
        f"echo=True with logprobs is answered with {echoes} token(s) for a prompt of {len(reference.one)}",
        f"chat: {chat.usage.prompt_tokens if chat.usage else '?'} prompt tokens (golden {len(reference.one)}), "
        f"greedy {'equal' if same else 'differs'}, {len(content[0].top_logprobs)} log-probabilities a generated token",
    ]


def luthier_row(files: Files, contract: RequestContract, reference: Reference, notes: list[str]) -> Row:
    """Our server in a child process; it takes texts, never ids."""
    import httpx
    from openai import BadRequestError, OpenAI

    row = Row("d2 `luthier serve`, openai client", "text; probabilities over the labels (/v1/classify)")
    row.next_error = row.kl = row.off_one = float("nan")
    context = multiprocessing.get_context("spawn")
    ready = context.Queue()
    child = context.Process(target=serve_luthier, args=(files, contract, ready))
    child.start()
    try:
        address = ready.get(timeout=120)
        client = OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        counts = labels = 0
        worst = 0.0
        for golden, scores in zip(reference.goldens, reference.scores, strict=False):
            expected = np.exp(log_softmax(np.array([score.logprob for score in scores])))
            reply = client.chat.completions.create(model="probe", messages=[{"role": "user", "content": golden.text}])
            counts += reply.usage is not None and reply.usage.prompt_tokens == len(golden.prompt_ids)
            labels += reply.choices[0].message.content == contract.labels[int(expected.argmax())]
            with timed(row, "score"):
                said = httpx.post(f"{address}/v1/classify", json={"input": golden.text}, timeout=60).json()["data"][0]
            found = np.array([said["probabilities"][label] for label in contract.labels])
            worst = max(worst, float(np.abs(found - expected).max()))
        row.seconds["score"] /= SCORED
        row.ids_equal, row.same_label = f"only their number: {counts}/{SCORED}", f"{labels}/{SCORED}"
        notes.append(f"d2: largest difference of a label's probability {worst:.1e}")
        try:
            client.chat.completions.create(model="probe", messages=[{"role": "user", "content": "x"}], logprobs=True)
        except BadRequestError as error:
            notes.append(f"d2: logprobs=True is refused: {error.message}")
    finally:
        child.terminate()
        child.join(30)
    return row


# ---- The run ------------------------------------------------------------------------------------------------------


def ask_like_this(base: Path) -> tuple[RequestContract, Renderer, tuple[Golden, ...]]:
    """A contract over `LABELS` and its golden prompts."""
    tokenizer = open_tokenizer(base / "tokenizer.json")
    end_id = tokenizer.token_to_id("<|im_end|>")
    open_set = RequestContract(
        name="probe",
        task="classification",
        transforms=(),
        privacy_action="report",
        system="",
        input="{text}",
        labels=(),
        chat_template=(base / "chat_template.jinja").read_text(encoding="utf-8"),
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        end_of_turn="<|im_end|>",
        end_of_turn_ids=(end_id,),
        stop_ids=(end_id,),
        tokenizer_sha256=sha256_file(base / "tokenizer.json"),
        max_length=128,
        max_new_tokens=NEW_TOKENS,
    )
    contract = with_labels(Renderer(open_set, tokenizer), LABELS)
    renderer = Renderer(contract, tokenizer)
    rows = [Example(line, str(line), text, "", [], [], []) for line, text in enumerate(TEXTS, start=1)]
    goldens = make_goldens(renderer, rows, seed=0)
    return contract, renderer, tuple(golden for golden in goldens if golden.name != "code")


def ask_all(
    files: Files, reference: Reference, tuned: TransformersEngine, contract: RequestContract, notes: list[str]
) -> Iterator[Row]:
    """One row a way."""
    yield transformers_row("a transformers, base + PEFT adapter", tuned, reference, files.base)
    yield transformers_row("b transformers, merged", TransformersEngine.open(files.merged), reference, files.base)
    yield from llama_rows(files, reference, notes)
    yield luthier_row(files, contract, reference, notes)


def main() -> None:
    """Make the files, ask every way, print."""
    torch.set_num_threads(THREADS)
    packages = ("torch", "transformers", "peft", "gguf", "xllamacpp", "openai")
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    print(f"Python {platform.python_version()}, {versions}; {THREADS} thread\n")
    notes: list[str] = []
    with tempfile.TemporaryDirectory() as scratch:
        files = make_files(Path(scratch))
        contract, renderer, goldens = ask_like_this(files.base)
        tuned = TransformersEngine.open(files.base, files.adapter)
        reference = refer(tuned, goldens, renderer)
        for cells in (HEADER, ["---"] * len(HEADER)):
            print("| " + " | ".join(cells) + " |", flush=True)
        for row in ask_all(files, reference, tuned, contract, notes):
            print("| " + " | ".join(row.cells()) + " |", flush=True)
    print(
        f"\n{len(goldens)} golden prompts of {min(len(g.prompt_ids) for g in goldens)} to "
        f"{max(len(g.prompt_ids) for g in goldens)} tokens; {len(reference.answers)} labels, "
        f"{sum(map(len, reference.answers))} label tokens; prompt log p on {len(reference.one)} tokens\n"
    )
    for note in notes:
        print(f"- {note}")


if __name__ == "__main__":
    main()
