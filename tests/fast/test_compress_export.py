"""An export says what was trained, to plain tools too; one spoiled on the way is deleted and its fault named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_kit import resolved
from safetensors.torch import load_file, save_file

from luthier.compress.export import Asked, export
from luthier.data.goldens import read_goldens
from luthier.data.prepare import prepare
from luthier.engines.parity import check_parity
from luthier.engines.transformers import TransformersEngine
from luthier.errors import ParityError
from luthier.models.adapters import attach, save_adapter
from luthier.records import Artifact, Golden, RequestContract
from luthier.spec.adapters.lora import Lora
from luthier.spec.plugins import EXPORTS
from luthier.store.files import sha256_files
from tiny import llama, write_messages, write_tokenizer

PLAIN = tuple(name for name, facts in EXPORTS.entries().items() if not facts.in_llama_cpp)
"""Those that transformers and PEFT open; test_compress_gguf.py has the others."""


@dataclass(frozen=True)
class Run:
    """What an export is made from; a test replaces a part by a spoiled one."""

    base: Path
    adapter: Path
    contract: RequestContract
    goldens: tuple[Golden, ...]
    reference: TransformersEngine
    out: Path

    def export(self, kind: str) -> Artifact:
        return export(
            kind, base=self.base, adapter=self.adapter, run=self.out, asked=[Asked(self.contract, self.goldens)],
            reference=self.reference, weights_sha256="w" * 64,
        )  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A tiny model with biases and an adapter that changes what it says."""
    place = tmp_path_factory.mktemp("export")
    base, adapter, data = place / "base", place / "adapter", place / "data"
    write_tokenizer(base)
    model = llama(attention_bias=True, tie_word_embeddings=False)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.3, generator=generator)
    model.save_pretrained(base, safe_serialization=True)
    lora = Lora(type="lora", r=4, alpha=8.0, dropout=0.0, target_modules="all-linear")
    tuned = attach(model, lora, base_name="tiny", seed=0)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05, generator=generator)
    adapter.mkdir()
    save_adapter(tuned, adapter)
    data.mkdir()
    write_messages(place / "data.csv")
    recipe = resolved(place, input="{text}", label="kind", max_length=160)
    prepare(recipe, tokenizer_folder=base, out=data)
    contract = RequestContract.read(data / "contract.json")
    return Run(
        base, adapter, contract, read_goldens(data / "goldens.json"), TransformersEngine.open(base, adapter), place
    )


@pytest.fixture(scope="module")
def artifacts(made: Run) -> dict[str, Artifact]:
    return {kind: made.export(kind) for kind in PLAIN}


@pytest.mark.parametrize("kind", PLAIN)
def test_an_export_passes_parity_and_is_written_down(made: Run, artifacts: dict[str, Artifact], kind: str) -> None:
    artifact, folder = artifacts[kind], made.out / "artifacts" / kind
    parity = artifact.parity
    assert parity.passed
    assert parity.ids_equal
    assert (parity.prompts, parity.greedy_equal, parity.first_difference) == (len(made.goldens),) * 2 + ("",)
    assert parity.max_logit_error <= parity.bound == EXPORTS.get(kind).logit_bound == 1e-4
    assert artifact.sha256 == sha256_files(folder)
    assert artifact.num_bytes == sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert (artifact.path, artifact.made_from) == (f"artifacts/{kind}", "w" * 64)
    assert {path.suffix for path in folder.iterdir()} <= {".safetensors", ".json", ".jinja"}
    assert RequestContract.read(folder / "contract.json") == made.contract


def test_plain_tools_say_the_same(made: Run, artifacts: dict[str, Artifact]) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    merged, adapter = made.out / "artifacts/merged", made.out / "artifacts/adapter"
    theirs = {
        "merged": (AutoModelForCausalLM.from_pretrained(merged), AutoTokenizer.from_pretrained(merged)),
        "adapter": (PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(made.base), adapter),
                    AutoTokenizer.from_pretrained(adapter)),
    }  # fmt: skip
    assert sorted(theirs) == sorted(artifacts)
    for model, tokenizer in theirs.values():
        for golden in made.goldens:
            turns = [{"role": "system", "content": made.contract.system}, {"role": "user", "content": golden.text}]
            ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
            assert tuple(ids) == golden.prompt_ids
            with torch.no_grad():
                found = model.eval()(input_ids=torch.tensor([ids])).logits[0].numpy()
            expected = made.reference.logits(ids)
            assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()
            with torch.no_grad():
                mask = torch.ones(1, len(ids), dtype=torch.long)
                said = model.generate(
                    torch.tensor([ids]), attention_mask=mask, max_new_tokens=4, do_sample=False, pad_token_id=2
                )[0, len(ids) :].tolist()
            ours = made.reference.generate(ids, max_new_tokens=4, stop_ids=made.contract.stop_ids)
            assert said[: len(ours)] == ours


def test_the_merged_folder_needs_neither_peft_nor_the_base(made: Run, artifacts: dict[str, Artifact]) -> None:
    names = set(load_file(made.out / "artifacts/merged/model.safetensors"))
    assert not any("lora" in name for name in names)
    assert names == set(load_file(made.base / "model.safetensors"))
    config = json.loads((made.out / "artifacts/merged/config.json").read_text())
    assert "quantization_config" not in config
    assert config["dtype"] == "float32"


def test_exporting_again_gives_the_same_files(made: Run, artifacts: dict[str, Artifact], tmp_path: Path) -> None:
    for kind, artifact in artifacts.items():
        again = replace(made, out=tmp_path).export(kind)
        assert again.sha256 == artifact.sha256


# --- spoiled on the way -----------------------------------------------------------------------------------------------


def copied(folder: Path, out: Path) -> Path:
    return Path(shutil.copytree(folder, out / folder.name))


def with_tensor(folder: Path, file: str, part: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Path:
    state = load_file(folder / file)
    [name, *_] = sorted(name for name in state if part in name)
    assert not torch.equal(change(state[name].clone()), state[name])
    state[name] = change(state[name].clone()).contiguous()
    save_file(state, folder / file, metadata={"format": "pt"})
    return folder


def with_json(file: Path, change: Callable[[Any], Any]) -> Path:
    file.write_text(json.dumps(change(json.loads(file.read_text()))), encoding="utf-8")
    return file.parent


def another_template(run: Run, out: Path) -> Run:
    template = run.contract.chat_template.replace("message['role'] +", "message['role'] + ' ' +")
    return replace(run, contract=run.contract.model_copy(update={"chat_template": template}))


def a_trailing_blank_in_the_template(run: Run, out: Path) -> Run:
    return replace(run, contract=run.contract.model_copy(update={"chat_template": run.contract.chat_template + " x"}))


def another_system_prompt(run: Run, out: Path) -> Run:
    return replace(run, contract=run.contract.model_copy(update={"system": run.contract.system + "."}))


def swapped_special_tokens(run: Run, out: Path) -> Run:
    def swap(tree: Any) -> Any:
        one, other = (token for token in tree["added_tokens"] if token["content"] in ("<|im_start|>", "<|im_end|>"))
        one["id"], other["id"] = other["id"], one["id"]
        vocabulary = tree["model"]["vocab"]
        vocabulary[one["content"]], vocabulary[other["content"]] = one["id"], other["id"]
        tree["added_tokens"].sort(key=lambda token: token["id"])
        return tree

    return replace(run, base=with_json(copied(run.base, out) / "tokenizer.json", swap))


def a_tokenizer_with_other_merges(run: Run, out: Path) -> Run:
    def without_merges(tree: Any) -> Any:
        tree["model"]["merges"] = tree["model"]["merges"][:5]
        return tree

    return replace(run, base=with_json(copied(run.base, out) / "tokenizer.json", without_merges))


def a_doubled_scale(run: Run, out: Path) -> Run:
    def double(tree: Any) -> Any:
        return {**tree, "lora_alpha": 2 * tree["lora_alpha"]}

    return replace(run, adapter=with_json(copied(run.adapter, out) / "adapter_config.json", double))


def a_perturbed_adapter(run: Run, out: Path) -> Run:
    def nudge(tensor: torch.Tensor) -> torch.Tensor:
        tensor[0, 0] += 0.05
        return tensor

    return replace(run, adapter=with_tensor(copied(run.adapter, out), "adapter_model.safetensors", "lora_B", nudge))


def a_zeroed_adapter_tensor(run: Run, out: Path) -> Run:
    folder = copied(run.adapter, out)
    return replace(run, adapter=with_tensor(folder, "adapter_model.safetensors", "lora_B", torch.zeros_like))


def a_perturbed_weight(run: Run, out: Path) -> Run:
    return replace(run, base=with_tensor(copied(run.base, out), "model.safetensors", "up_proj", lambda one: one * 1.02))


def a_lost_bias(run: Run, out: Path) -> Run:
    folder = copied(run.base, out)
    return replace(run, base=with_tensor(folder, "model.safetensors", "q_proj.bias", torch.zeros_like))


def weights_that_are_no_number(run: Run, out: Path) -> Run:
    def spoil(tensor: torch.Tensor) -> torch.Tensor:
        tensor[0, 0] = float("nan")
        return tensor

    return replace(run, base=with_tensor(copied(run.base, out), "model.safetensors", "down_proj", spoil))


def no_golden_prompt(run: Run, out: Path) -> Run:
    return replace(run, goldens=())


TEXT, LOGITS = (
    r"golden 'real_1': text and ids differ from token \d+ on: found \[",
    r"golden 'real_1': logits differ by ",
)
SPOILED: dict[Callable[[Run, Path], Run], tuple[str, tuple[str, ...]]] = {
    another_template: (TEXT, ("adapter", "merged")),
    a_trailing_blank_in_the_template: (TEXT, ("adapter", "merged")),
    another_system_prompt: (TEXT, ("adapter", "merged")),
    swapped_special_tokens: (r"golden 'real_1': ids differ from token 0 on: found \[2, ", ("adapter", "merged")),
    a_tokenizer_with_other_merges: (r"golden 'real_1': ids differ from token \d+ on: ", ("adapter", "merged")),
    a_doubled_scale: (LOGITS, ("adapter", "merged")),
    a_perturbed_adapter: (LOGITS, ("adapter", "merged")),
    a_zeroed_adapter_tensor: (LOGITS, ("adapter", "merged")),
    a_perturbed_weight: (LOGITS, ("merged",)),
    a_lost_bias: (LOGITS, ("adapter", "merged")),
    weights_that_are_no_number: ("", ("adapter",)),
    no_golden_prompt: ("there is no golden prompt to compare", ("adapter",)),
}


@pytest.mark.parametrize(
    ("spoil", "kind"), [(spoil, kind) for spoil, (_, kinds) in SPOILED.items() for kind in kinds],
    ids=lambda value: getattr(value, "__name__", value),
)  # fmt: skip
def test_a_spoiled_export_is_deleted_and_its_first_fault_named(
    made: Run, tmp_path: Path, spoil: Callable[[Run, Path], Run], kind: str
) -> None:
    run = replace(spoil(made, tmp_path), out=tmp_path / "run")
    run.out.mkdir()
    with pytest.raises(
        ParityError, match=f"export '{kind}' broke parity and was deleted: {SPOILED[spoil][0]}"
    ) as caught:
        run.export(kind)
    assert caught.value.exit_code == 7
    assert "the trained adapter in train/ is untouched" in caught.value.way_out
    assert not (run.out / "artifacts" / kind).exists()
    assert not [path for path in run.out.rglob("*") if path.is_file()]


class Echo:
    """An engine of fixed scores."""

    name = "echo"

    def __init__(self, *scores: float, said: list[int] | None = None) -> None:
        self.scores, self.said, self.asked = scores, said or [7], 0

    def score(self, prompt_ids: Any, answers: Any) -> Any:
        raise AssertionError("parity does not ask for scores")

    logprobs = score

    def each(self, function: Any, items: Any) -> Any:
        return map(function, items)

    def generate(self, prompt_ids: Any, *, max_new_tokens: int, stop_ids: Any) -> list[int]:
        return self.said

    def logits(self, ids: Any) -> Any:
        self.asked += 1
        return np.full((len(ids), 2), self.scores[(self.asked - 1) % len(self.scores)], dtype=np.float32)


def parity(made: Run, candidate: Echo) -> Any:
    goldens = made.goldens[:2]
    texts = {golden.text: (golden.prompt, list(golden.prompt_ids)) for golden in goldens}
    return check_parity(
        Echo(1.0), candidate, goldens, contract=made.contract, encode=lambda text: texts[text], bound=1e-4)  # fmt: skip


def test_parity_holds_every_prompt_to_the_bound(made: Run) -> None:
    assert parity(made, Echo(1.0)).passed
    assert parity(made, Echo(1.00009)).passed
    assert not parity(made, Echo(1.00011)).passed
    for scores in ((float("nan"), 1.0), (1.0, float("nan")), (float("inf"), 1.0)):
        found = parity(made, Echo(*scores))
        assert not found.passed
        assert found.max_logit_error == float("inf")
        assert "logits differ by inf of the largest" in found.first_difference
    other = parity(made, Echo(1.0, said=[8]))
    assert (other.passed, other.greedy_equal, other.max_logit_error) == (False, 0, 0.0)
    assert other.first_difference == "golden 'real_1': greedy ids [8], expected [7]"
