"""``python -m minimind.export``, and what other programs make of its files: the same logits, the same words."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from minimind import export
from minimind.checkpoint import load_model
from minimind.engine import Engine
from minimind.errors import USER_ERROR
from minimind.formats.adapters import read_adapter
from minimind.formats.export import FORMATS
from minimind.formats.gguf_reader import open_tokenizer
from minimind.formats.source import load_weights_from
from minimind.sampling import SamplingParams
from minimind.tokenizer import Tokenizer
from tests.checkpoint_rig import make_adapter, make_checkpoint
from tests.minimind.shapes import model_of

IDS = torch.randint(0, 200, (1, 24), generator=torch.Generator().manual_seed(1))
GREEDY = SamplingParams(max_tokens=32, temperature=0.0)
TALK = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Is the lamp green? 你好"}]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("checkpoints")
    base = make_checkpoint(place / "harbour" / "checkpoints" / "step-00000001-a1", seed=1, positions=512)
    return {"base": base, "run": place / "harbour", "other": make_checkpoint(place / "other", seed=2),
            "adapter": make_adapter(place / "pirate", base, seed=3),
            "square": make_adapter(place / "square", base, seed=4, targets=("q_proj", "o_proj")),
            "wide": make_checkpoint(place / "wide", seed=2, hidden_size=64)}


def write(*words: object) -> int:
    return export.main([str(word) for word in words])


@torch.no_grad()
def logits(path: Path, adapter: Path | None = None) -> Tensor:
    return load_model(path, adapter=adapter)[0](IDS)


@torch.no_grad()
def logits_of(path: Path) -> Tensor:
    source = load_weights_from(path)
    return model_of(source.config, source.weights)(IDS)


# -- the command line -------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_other_process")
@pytest.mark.parametrize("format, what, file, most", [
    ("hf", "run", "harbour-step-1", 1e-5), ("pth", "run", "harbour-step-1.pth", 0.5),
    ("gguf", "run", "harbour-step-1-f16.gguf", 0.5), ("merged", "adapter", "pirate-step-0", 1e-4),
    ("peft", "adapter", "pirate-step-0", None), ("minimind_lora", "square", "square-step-0.pth", None)])
def test_every_format(format: str, what: str, file: str, most: float | None, made: dict[str, Path], tmp_path: Path,
                      capsys: pytest.CaptureFixture) -> None:
    assert format in FORMATS and write(made[what], "--format", format, "--out", tmp_path / "new") == 0
    said, path = capsys.readouterr().out, tmp_path / "new" / file
    assert f"Written: {path} (" in said and " MB in " in said
    if most is None:
        theirs, ours = (read_adapter(place)[1] for place in (path, made[what]))
        assert set(ours) <= set(theirs)
    else:
        torch.testing.assert_close(logits_of(path), logits(made["base" if what == "run" else what]), atol=most, rtol=0)
    expected = {"hf": {"transformers", "vLLM"}, "gguf": {"ollama", "llama.cpp", "llama.cpp server"},
                "merged": {"transformers", "vLLM"}, "peft": {"peft"}}.get(format, set())
    assert {line[2:] for line in said.splitlines() if line.startswith("# ")} == expected
    assert {p.name for p in path.parent.iterdir()} == {file} | (
        {"harbour-step-1-f16.Modelfile"} if format == "gguf" else set())


@pytest.mark.parametrize("words, says", [
    (["nothing"], "There is no checkpoint nothing"),
    (["BASE", "--name", "../x"], "'../x' is no name for a file"),
    (["BASE", "--format", "peft"], "is a whole model, and an adapter is needed"),
    (["ADAPTER", "--format", "minimind_lora"], "Upstream has adapters beside q_proj and o_proj alone"),
    (["ADAPTER", "--base", "WIDE"], "32"), (["ADAPTER", "--base", "nothing"], "There is no checkpoint nothing"),
    (["BASE", "--out", "FILE"], "FILE cannot be used: File exists"), (["FILE"], "neither a .pth nor a .gguf file"),
    (["BASE", "--format", "gguf", "--tokenizer", "OUT"], "There is no tokenizer.json")])
def test_mistakes_are_one_sentence_and_leave_nothing(words: list[str], says: str, made: dict[str, Path],
                                                     tmp_path: Path, capsys: pytest.CaptureFixture,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FILE").write_text("something")
    (tmp_path / "OUT").mkdir()
    places = {"BASE": made["base"], "ADAPTER": made["adapter"], "WIDE": made["wide"]}
    given = [places.get(word, word) for word in words]
    assert write(*given, *([] if "--out" in given else ["--out", "OUT"])) == USER_ERROR
    said = capsys.readouterr()
    assert said.err.startswith("error: ") and says in said.err and len(said.err.splitlines()) <= 2 and not said.out
    assert not list((tmp_path / "OUT").iterdir())


@pytest.mark.parametrize("words", [["x", "--format", "zip"], ["x", "--quantization", "q2_k"], ["x", "--dtype", "int8"],
                                   []])
def test_what_is_no_choice_is_refused_with_those_that_are(words: list[str], capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as ended:
        write(*words)
    assert ended.value.code == 2 and ("choose from" in capsys.readouterr().err or not words)


def test_help_does_not_wait_for_torch() -> None:
    code = ("import sys, minimind.export\ntry:\n    minimind.export.main(['--help'])\n"
            "except SystemExit as e:\n    assert e.code == 0 and 'torch' not in sys.modules, e.code")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "CHECKPOINT: a run, a checkpoint" in done.stdout, done.stderr


def test_there_is_something_already(made: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert write(made["base"], "--format", "pth", "--name", "m", "--out", tmp_path) == 0
    before = (tmp_path / "m.pth").read_bytes()
    assert write(made["base"], "--format", "pth", "--name", "m", "--out", tmp_path) == USER_ERROR
    assert "m.pth exists already" in capsys.readouterr().err and (tmp_path / "m.pth").read_bytes() == before


def test_a_gguf_file_becomes_a_folder_again(made: dict[str, Path], tmp_path: Path) -> None:
    assert write(made["base"], "--format", "gguf", "--quantization", "f32", "--name", "a", "--out", tmp_path) == 0
    assert write(tmp_path / "a.gguf", "--format", "hf", "--name", "b", "--out", tmp_path) == 0
    assert torch.equal(logits_of(tmp_path / "b"), logits_of(made["base"]))
    assert Tokenizer.load(tmp_path / "b").fingerprint == Tokenizer.load(made["base"]).fingerprint
    assert open_tokenizer(tmp_path / "a.gguf").fingerprint == Tokenizer.load(made["base"]).fingerprint


# -- the same model ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["base", "adapter"])
def test_transformers_answers_as_the_studio_does(what: str, made: dict[str, Path], tmp_path: Path) -> None:
    """Equal logits, and to a conversation in its own chat template the same greedy text; of an adapter beside its base
    in the studio, from one folder there."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    assert write(made[what], "--format", "hf", "--name", "m", "--out", tmp_path) == 0
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m").eval()
    with torch.no_grad():
        torch.testing.assert_close(theirs(IDS).logits, logits(made[what]), atol=1e-4, rtol=0)
    engine = Engine.from_checkpoint(made["base"])
    if what == "adapter":
        engine = engine.with_adapter(made["adapter"])
    words = transformers.AutoTokenizer.from_pretrained(tmp_path / "m")
    prompt = words.apply_chat_template(TALK, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    assert prompt["input_ids"][0].tolist() == engine.encode_chat(TALK)
    said = theirs.generate(**prompt, max_new_tokens=32, do_sample=False)[0, prompt["input_ids"].shape[1]:]
    ours = engine.generate(engine.encode_chat(TALK), GREEDY)
    assert words.decode(said, skip_special_tokens=True) == ours.text and len(set(ours.token_ids)) > 5


@pytest.mark.usefixtures("no_other_process")
def test_a_pth_file_comes_back_to_the_bit(made: dict[str, Path], tmp_path: Path) -> None:
    """Once it is in 16 bits, nothing is lost any more."""
    assert write(made["base"], "--format", "pth", "--name", "a", "--out", tmp_path) == 0
    given, found = load_weights_from(made["base"]).weights, load_weights_from(tmp_path / "a.pth").weights
    assert given.keys() == found.keys() and all(torch.equal(found[n], given[n].half().float()) for n in given)
    assert write(tmp_path / "a.pth", "--format", "pth", "--name", "b", "--out", tmp_path) == 0
    again = load_weights_from(tmp_path / "b.pth").weights
    assert all(torch.equal(found[n], again[n]) for n in found)


@pytest.mark.parametrize("format", ["merged", "gguf"])
def test_a_merged_adapter_is_the_adapter_beside_its_base(format: str, made: dict[str, Path], tmp_path: Path) -> None:
    """Also over another base than its own."""
    for base, others in ((made["base"], []), (made["other"], ["--base", made["other"]])):
        out = tmp_path / base.name
        assert write(made["adapter"], "--format", format, "--quantization", "f32", "--name", "m", "--out", out,
                     *others) == 0
        beside = Engine.from_checkpoint(base).with_adapter(made["adapter"])
        with torch.no_grad():
            expected = beside.model(IDS)
        assert not torch.allclose(expected, logits(base), atol=1), "the adapter changes nothing"
        found = logits_of(out / ("m.gguf" if format == "gguf" else "m"))
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_folder_in_16_bits(dtype: str, made: dict[str, Path], tmp_path: Path) -> None:
    assert write(made["base"], "--dtype", dtype, "--name", "m", "--out", tmp_path) == 0
    given, kept = load_weights_from(made["base"]).weights, load_file(tmp_path / "m" / "model.safetensors")
    assert all(torch.equal(kept[n], given[n].to(getattr(torch, dtype))) for n in kept) and set(kept) == set(given)
