"""GGUF files: read back by llama.cpp itself, by transformers, by the ``gguf`` package and by us."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from minimind.data import starter
from minimind.errors import CheckpointError
from minimind.formats import gguf_file
from minimind.formats.base import open_base
from minimind.formats.gguf import save_gguf, size_label, size_of_weights
from minimind.formats.gguf_file import GgufFile
from minimind.formats.gguf_reader import open_tokenizer, read_gguf
from minimind.formats.gguf_shape import from_pairs, to_pairs
from minimind.formats.huggingface import save_huggingface
from minimind.formats.source import load_weights_from
from minimind.model import KVCache, MiniMindForCausalLM
from minimind.presets import PRESETS, ModelConfig
from minimind.tokenizer import Tokenizer
from tests.minimind.llama_server import llama_server
from tests.minimind.shapes import LLAMA, MOE, QWEN, SHAPES, SHARED_MOE, model_of, random_weights

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "beta_fast": 32.0,
        "beta_slow": 1.0}
WRITTEN = {"llama, experts": replace(LLAMA, num_experts=4, num_experts_per_tok=2),
    "qwen3": QWEN, "qwen3, untied": SHAPES["qwen3, untied"], "qwen3, yarn": SHAPES["qwen3, yarn"], "llama": LLAMA,
    "llama, yarn": replace(LLAMA, rope_theta=1e4, max_position_embeddings=128, rope_scaling=YARN),
    "qwen3moe": MOE, "qwen3moe, two of four": replace(MOE, num_experts_per_tok=2)}
TEXTS = [
    "Hello world 123 4567  8", "你好，世界！ 你  好", "\n\n你好\n\n\nabc\n\n", "  two  spaces   three\t\ttabs \n x",
    "emoji 😀👍🏽 é ã ção", "<|im_start|>user\n你好<|im_end|>\n<think>\n\n</think>\n\n安娜住在哪里？",
    "l'eau don't I'll 'S",
    "日本語 한국어 ру́сский ١٢٣ ½ ²", "\u3000全角　空格", "a\r\nb\r\n\r\nc", "Olá! Onde Ana mora?   ",
    "3.14159 + 2 = 5,14"]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    rows = starter.generate("text", minutes=1, languages=["en", "zh", "pt"])
    return [row["text"] for row, _ in zip(rows, range(600), strict=False)]


@pytest.fixture(scope="module")
def words(texts: list[str]) -> Tokenizer:
    """Small: it keeps Han characters apart, and knows some pairs of spaces and line ends."""
    return Tokenizer.train([*texts, *["a\n\n你好\n\n  世界", "b  你"] * 50], 1600)


@pytest.fixture(scope="module")
def learnt(texts: list[str], words: Tokenizer) -> MiniMindForCausalLM:
    """Trained for a moment: it is sure of what it says, so that rounding decides nothing."""
    torch.manual_seed(1)
    model = MiniMindForCausalLM(ModelConfig(
        vocab_size=words.vocab_size + 12, hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, intermediate_size=128, max_position_embeddings=512))
    ids = torch.tensor([token for text in texts[:24] for token in words.encode(text)][:768]).view(4, -1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=8e-3)
    for _ in range(60):
        loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 1
    return model.eval()


@torch.no_grad()
def greedy(model: MiniMindForCausalLM, ids: list[int], count: int) -> list[int]:
    cache = KVCache(model.config, 1, len(ids) + count, "cpu", torch.float32)
    said: list[int] = []
    logits = model(torch.tensor([ids]), cache=cache)
    while len(said) < count:
        said.append(int(logits[0, -1].argmax()))
        logits = model(torch.tensor([said[-1:]]), cache=cache, start=len(ids) + len(said) - 1)
    return said


def prompts(texts: list[str], words: Tokenizer) -> Iterator[list[int]]:
    for text in texts[:3]:
        yield words.encode(text)[:8]


# -- llama.cpp ----------------------------------------------------------------------------------------------------


@pytest.fixture
def llama() -> None:
    pytest.importorskip("xllamacpp", reason="llama.cpp's wheel (xllamacpp) is not installed")


@torch.no_grad()
def _continued(model: MiniMindForCausalLM, words: Tokenizer) -> tuple[list[int], Tensor]:
    """Random ids, and log-probabilities behind them; the likeliest token is whole letters, for llama.cpp's server holds
    half a letter back, and with it what it would say of the token."""
    generator = torch.Generator().manual_seed(1)
    while True:
        ids = torch.randint(0, words.vocab_size, (1, 60), generator=generator)
        ours = model(ids)[0, -1].log_softmax(-1)
        if words.token_bytes(int(ours.argmax())).isalnum():
            return ids[0].tolist(), ours


@pytest.mark.usefixtures("llama")
@pytest.mark.parametrize("name", WRITTEN)
def test_llama_cpp_computes_the_same(name: str, tmp_path: Path, words: Tokenizer) -> None:
    config = replace(WRITTEN[name], vocab_size=words.vocab_size + 3)
    weights = random_weights(config)
    path = save_gguf(tmp_path / "m.gguf", config, weights, words, "f32")
    ids, ours = _continued(model_of(config, weights), words)
    with llama_server(path) as server:
        theirs = server.log_probabilities(ids, config.vocab_size)
    assert len(theirs) == config.vocab_size, "rows behind the vocabulary are part of the softmax there too"
    assert max(abs(ours[i].item() - value) for i, value in theirs.items()) < 2e-5


@pytest.mark.usefixtures("llama")
@pytest.mark.parametrize("quantization, count", [("f32", 48), ("f16", 48)])
def test_llama_cpp_says_the_same(quantization: str, count: int, tmp_path: Path, texts: list[str], words: Tokenizer,
                                 learnt: MiniMindForCausalLM) -> None:
    path = save_gguf(tmp_path / "m.gguf", learnt.config, learnt.named_weights(), words, quantization)
    with llama_server(path) as server:
        for ids in prompts(texts, words):
            assert server.greedy(ids, count) == greedy(learnt, ids, count)


#: nats that llama.cpp's own rounding (it multiplies in 8 bits) may make of a q8_0 file
TIE = 0.1


@pytest.mark.usefixtures("llama")
def test_llama_cpp_says_nearly_the_same_with_8_bits(tmp_path: Path, texts: list[str], words: Tokenizer,
                                                    learnt: MiniMindForCausalLM) -> None:
    """Each token that it chooses is the best one of the weights that we read from the file, or as good: within
    ``TIE``."""
    path = save_gguf(tmp_path / "m.gguf", learnt.config, learnt.named_weights(), words, "q8_0")
    ours = model_of(*read_gguf(path))
    equal = 0
    with llama_server(path) as server:
        for ids in prompts(texts, words):
            said = server.greedy(ids, 48)
            with torch.no_grad():
                logits = ours(torch.tensor([ids + said]))[0, len(ids) - 1:-1].log_softmax(-1)
            best, chosen = logits.max(-1), logits.gather(1, torch.tensor(said)[:, None])[:, 0]
            assert float((best.values - chosen).max()) <= TIE
            equal += int((best.indices == torch.tensor(said)).sum())
    assert equal >= 0.95 * 3 * 48


@pytest.mark.usefixtures("llama")
@pytest.mark.parametrize("vocab_size", [1600, 4096])
def test_llama_cpp_cuts_text_as_we_do(vocab_size: int, tmp_path: Path, texts: list[str], words: Tokenizer) -> None:
    """Also where words are found in another way than by a name that llama.cpp has: Han characters kept apart."""
    tokenizer = words if vocab_size == 1600 else Tokenizer.train([*texts, *TEXTS], vocab_size)
    config = replace(QWEN, vocab_size=tokenizer.vocab_size)
    path = save_gguf(tmp_path / "m.gguf", config, random_weights(config), tokenizer, "f32")
    pairs = [f"{a}  {b}\n\n{a}" for a, b in zip(texts[:40], texts[40:80], strict=True)]
    with llama_server(path) as server:
        for text in [*TEXTS, *texts[:40], *pairs]:
            ids = tokenizer.encode(text)
            assert server.tokens(text) == ids, text
            assert server.text(ids) == text


@pytest.mark.usefixtures("llama")
def test_llama_cpp_renders_the_chat_template(tmp_path: Path, words: Tokenizer) -> None:
    from minimind.chat_format import render

    config = replace(QWEN, vocab_size=words.vocab_size)
    path = save_gguf(tmp_path / "m.gguf", config, random_weights(config), words, "f16")
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "你好"}]
    with llama_server(path) as server:
        prompt = server.ask("/apply-template", {"messages": messages})["prompt"]
    assert prompt == render(words, messages, add_generation_prompt=True)


# -- transformers and the gguf package ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["qwen3", "llama", "qwen3moe"])
@pytest.mark.parametrize("quantization", ["f32", "f16"])
def test_transformers_computes_the_same(name: str, quantization: str, tmp_path: Path, words: Tokenizer) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = replace(WRITTEN[name], vocab_size=words.vocab_size)
    weights = random_weights(config)
    if quantization == "f16":  # vectors stay in 32 bits
        weights = {n: t.half().float() if t.ndim > 1 and ".mlp.gate." not in n else t for n, t in weights.items()}
    save_gguf(tmp_path / "m.gguf", config, weights, words, quantization)
    # its reader knows no key for the size of a qwen3 head, and takes Qwen's own
    save_huggingface(tmp_path / "shape", config, weights, words)
    shape = transformers.AutoConfig.from_pretrained(tmp_path / "shape")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="m.gguf", config=shape, dtype=torch.float32).eval()
    ids = torch.randint(0, words.vocab_size, (1, 40), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, model_of(config, weights)(ids), atol=1e-4, rtol=0)


def test_the_file_says_what_it_is(tmp_path: Path, words: Tokenizer) -> None:
    from gguf import GGUFReader

    config = replace(QWEN, vocab_size=words.vocab_size + 2)
    path = save_gguf(tmp_path / "my-model.gguf", config, random_weights(config), words, "q8_0",
                     languages=["en", "zh"])
    fields = GGUFReader(path).fields
    said = {name: field.contents() for name, field in fields.items() if name not in (
        "tokenizer.huggingface.json", "tokenizer.chat_template")}
    assert said["general.name"] == "my-model" and said["general.file_type"] == 7
    assert said["general.languages"] == ["en", "zh"]
    assert said["general.size_label"] == size_label(config.num_parameters())
    assert said["qwen3.context_length"] == 32768 and said["tokenizer.ggml.add_bos_token"] is False
    assert said["tokenizer.ggml.tokens"][-2:] == [f"[PAD{words.vocab_size}]", f"[PAD{words.vocab_size + 1}]"]
    assert said["tokenizer.ggml.token_type"][-2:] == [5, 5]
    assert fields["tokenizer.chat_template"].contents() == words.chat_template
    sizes = sum(tensor.n_bytes for tensor in GGUFReader(path).tensors)
    assert sizes == size_of_weights(config, "q8_0") < path.stat().st_size
    again = save_gguf(tmp_path / "x.gguf", config, random_weights(config), words, "q8_0", name="my-model",
                      languages=["en", "zh"])
    assert again.read_bytes() == path.read_bytes(), "no time and no place stands in it"


def test_sizes_have_names() -> None:
    assert [size_label(n) for n in (912_000, 25_829_888, 1_500_000_000)] == ["912K", "26M", "1.5B"]


# -- and back -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WRITTEN)
def test_float32_comes_back_to_the_bit(name: str, tmp_path: Path, words: Tokenizer) -> None:
    config = replace(WRITTEN[name], vocab_size=words.vocab_size)
    weights = random_weights(config)
    source = load_weights_from(save_gguf(tmp_path / "m.gguf", config, weights, words, "f32"))
    assert source.format == "gguf" and source.config == config and source.warnings == ()
    assert set(source.weights) == set(weights)
    assert all(torch.equal(source.weights[n], weights[n]) for n in weights)
    base = open_base(tmp_path / "m.gguf", tmp_path / "cache")
    assert base.has_tokenizer and base.manifest.tokenizer_fingerprint == words.fingerprint


@pytest.mark.parametrize("quantization, most", [("f16", 3e-4), ("q8_0", 4e-3)])
def test_smaller_numbers_come_back_nearly(quantization: str, most: float, tmp_path: Path, words: Tokenizer) -> None:
    from gguf import GGMLQuantizationType, GGUFReader
    from gguf.quants import dequantize

    config = replace(LLAMA, vocab_size=words.vocab_size)
    weights = random_weights(config)
    path = save_gguf(tmp_path / "m.gguf", config, weights, words, quantization)
    _, found = read_gguf(path)
    assert max(float((found[n] - weights[n]).abs().max()) for n in weights) < most
    with GgufFile(path) as file:
        for tensor in GGUFReader(path).tensors:  # the package's own arithmetic
            theirs = torch.from_numpy(dequantize(tensor.data, GGMLQuantizationType(tensor.tensor_type)).copy())
            assert torch.equal(file.tensor(tensor.name), theirs.view(file.tensor(tensor.name).shape))


def test_bfloat16_is_read(tmp_path: Path, words: Tokenizer) -> None:
    import numpy as np
    from gguf import GGUFWriter
    from gguf.constants import GGMLQuantizationType

    values = torch.randn(4, 32).bfloat16()
    writer = GGUFWriter(tmp_path / "m.gguf", "qwen3")
    writer.add_tensor("x", values.view(torch.uint8).numpy().astype(np.uint8), raw_dtype=GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with GgufFile(tmp_path / "m.gguf") as file:
        assert torch.equal(file.tensor("x"), values.float())


def test_a_tokenizer_is_built_where_the_file_does_not_carry_it(tmp_path: Path, texts: list[str],
                                                               monkeypatch: pytest.MonkeyPatch) -> None:
    """As files of llama.cpp's converter are."""
    from minimind.formats import gguf

    tokenizer = Tokenizer.train([*texts, *TEXTS], 4096)
    config = replace(QWEN, vocab_size=tokenizer.vocab_size + 1)
    make = gguf.words_of
    monkeypatch.setattr(gguf, "words_of", lambda *given: {
        key: value for key, value in make(*given).items() if key != "huggingface.json"})
    found = open_tokenizer(save_gguf(tmp_path / "m.gguf", config, random_weights(config), tokenizer, "f16"))
    assert found.chat_template == tokenizer.chat_template
    assert (found.pad_id, found.bos_id, found.eos_id) == (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id)
    for text in [*TEXTS, *texts[:20]]:
        assert found.encode(text) == tokenizer.encode(text)
    assert found.special_tokens == tokenizer.special_tokens


@pytest.mark.parametrize("heads", [1, 4])
def test_rows_of_heads_change_places_and_back(heads: int) -> None:
    matrix = torch.arange(heads * 6 * 2).view(heads * 6, 2)
    paired = to_pairs(matrix, heads)
    assert paired[:6, 0].div(2, rounding_mode="floor").tolist() == [0, 3, 1, 4, 2, 5]
    assert torch.equal(from_pairs(paired, heads), matrix)


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config, says", [
    (SHARED_MOE, "experts that every token passes"), (replace(MOE, norm_topk_prob=False), "do not sum to 1"),
    (replace(QWEN, rope_scaling={**YARN, "truncate": False}), "not rounded")])
def test_what_llama_cpp_cannot_compute_is_not_written(config: ModelConfig, says: str, tmp_path: Path,
                                                      words: Tokenizer) -> None:
    with pytest.raises(CheckpointError, match=says):
        save_gguf(tmp_path / "m.gguf", config, {}, words)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("change", [
    {"pre_tokenizer": {"type": "Whitespace"}}, {"normalizer": {"type": "Lowercase"}},
    {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}}])
def test_a_tokenizer_that_llama_cpp_does_not_know_is_not_written(change: dict, tmp_path: Path,
                                                                 words: Tokenizer) -> None:
    words.save(tmp_path / "t")
    file = tmp_path / "t/tokenizer.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    config = replace(QWEN, vocab_size=words.vocab_size)
    with pytest.raises(CheckpointError, match="cut text as this model's tokenizer does"):
        save_gguf(tmp_path / "m.gguf", config, random_weights(config), Tokenizer.load(tmp_path / "t"))


def test_what_float16_cannot_hold_leaves_nothing(tmp_path: Path, words: Tokenizer) -> None:
    config = replace(QWEN, vocab_size=words.vocab_size)
    weights = random_weights(config)
    weights["model.layers.1.mlp.up_proj.weight"][3, 3] = 1e5
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.up_proj.*float16"):
        save_gguf(tmp_path / "m.gguf", config, weights, words, "f16")
    assert not list(tmp_path.iterdir())


def test_a_write_that_is_interrupted_leaves_nothing(tmp_path: Path, words: Tokenizer) -> None:
    config = replace(QWEN, vocab_size=words.vocab_size)
    seen = []

    def stop(done: int, total: int) -> None:
        seen.append((done, total))
        if len(seen) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_gguf(tmp_path / "m.gguf", config, random_weights(config), words, "f16", progress=stop)
    assert not list(tmp_path.iterdir()) and 0 < seen[0][0] < seen[2][0] < seen[2][1]


# -- files from anywhere ----------------------------------------------------------------------------------------------


@pytest.fixture
def whole(tmp_path: Path, words: Tokenizer) -> Path:
    config = replace(QWEN, vocab_size=words.vocab_size)
    return save_gguf(tmp_path / "m.gguf", config, random_weights(config), words, "f16")


def test_a_file_that_is_cut_short_is_refused_wherever(whole: Path, tmp_path: Path) -> None:
    content = whole.read_bytes()
    for size in (0, 3, 4, 20, 100, 3000, len(content) // 2, len(content) - 40):
        (tmp_path / "cut.gguf").write_bytes(content[:size])
        with pytest.raises(CheckpointError):
            load_weights_from(tmp_path / "cut.gguf")


def test_changed_bytes_of_the_header_are_survived(whole: Path, tmp_path: Path) -> None:
    """Whatever a byte becomes, it is a sentence or a model, and never more memory than the file explains."""
    content = bytearray(whole.read_bytes())
    generator = torch.Generator().manual_seed(1)
    with GgufFile(whole) as file:
        header = min(entry.start for entry in file.tensors.values())
    for number in range(300):
        place, value = (int(torch.randint(0, most, (1,), generator=generator)) for most in (header, 256))
        place = place % 400 if number % 2 else header - 1 - place % 3000  # counts and lengths; tensors
        before, content[place] = content[place], value
        (tmp_path / "x.gguf").write_bytes(content)
        try:
            load_weights_from(tmp_path / "x.gguf")
        except CheckpointError as error:
            assert "x.gguf" in error.message
        content[place] = before


def _file(keys: list[tuple[str, int, bytes]], tensors: list[bytes] = (),
          counts: tuple[int, int] | None = None) -> bytes:
    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    count = counts or (len(tensors), len(keys))
    return b"GGUF" + struct.pack("<IQQ", 3, *count) + b"".join(
        text(name) + struct.pack("<I", kind) + value for name, kind, value in keys) + b"".join(tensors)


def _tensor(shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    return struct.pack("<Q", 1) + b"x" + struct.pack("<I", len(shape)) + struct.pack(
        f"<{len(shape)}Q", *shape) + struct.pack("<IQ", kind, offset)


@pytest.mark.parametrize("content, says", [
    (b"GGML" + bytes(40), "not a GGUF file"), (b"GGUF" + struct.pack(">I", 3) + bytes(40), "of version"),
    (_file([], counts=(1 << 60, 0)), "tensors"), (_file([], counts=(0, 1 << 60)), "keys"),
    (_file([("a", 9, struct.pack("<IQ", 4, 1 << 62))]), "longer than those of any model"),
    (_file([("a", 9, struct.pack("<IQ", 9, 3))]), "list of the type 9"),
    (_file([("a", 8, struct.pack("<Q", 1 << 62))]), "text of"),
    (_file([("a", 8, struct.pack("<Q", 99))]), "ends in the middle"),
    (_file([("a", 99, b"")]), "value of the type 99"), (_file([("a", 8, struct.pack("<Q", 1) + b"\xff")]), "UTF-8"),
    (_file([("a", 4, b"1234"), ("a", 4, b"1234")]), "twice"),
    (_file([("general.alignment", 4, struct.pack("<I", 0))]), "alignment"),
    (_file([], [_tensor((1 << 40, 1 << 40))]), "does not lie within it"),
    (_file([], [_tensor((8,), offset=1 << 63)]), "does not lie within it"),
    (_file([], [_tensor((64,)), _tensor((64,)).replace(b"x", b"y", 1)]) + bytes(300), "lie upon each other"),
    (_file([("a", 8, struct.pack("<Q", 3 << 30))]) + bytes(99), "a text of 3,221,225,472 bytes"),
    (_file([("general.architecture", 8, struct.pack("<Q", 9000) + b"q" * 9000)]), "architecture 'q{50,70}'"),
    (_file([], [_tensor((0, 3))]), "does not lie within it"), (_file([], [_tensor((1,) * 9)]), "9 dimensions"),
    (_file([], [_tensor((256,), kind=12)]), "quantised in a way")])
def test_hostile_files(content: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(content)
    with pytest.raises(CheckpointError, match=says):
        load_weights_from(tmp_path / "x.gguf")


@pytest.mark.parametrize("change, says", [
    ({"general.architecture": "gemma3"}, "architecture 'gemma3'"),
    ({"qwen3.rope.scaling.type": "linear"}, "scales its positions"), ({"qwen3.block_count": 4}, "lacks the tensor"),
    ({"qwen3.block_count": 2}, "does not know"), ({"qwen3.block_count": "3"}, "whole number"),
    ({"qwen3.attention.value_length": 8}, "differ in size"), ({"qwen3.attention.head_count_kv": 3}, "multiple"),
    ({"qwen3.feed_forward_length": 95}, "has the shape")])
def test_keys_that_do_not_fit_are_said(change: dict, says: str, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = gguf_file.GgufFile._read_header

    def changed(self: GgufFile) -> None:
        read(self)
        self.keys.update(change)

    monkeypatch.setattr(gguf_file.GgufFile, "_read_header", changed)
    with pytest.raises(CheckpointError, match=says):
        load_weights_from(whole)


def test_presets_have_the_expected_sizes(words: Tokenizer) -> None:
    small = PRESETS["minimind2-small"].model
    assert size_of_weights(small, "f32") == 4 * small.num_parameters()
    assert 2 * small.num_parameters() < size_of_weights(small, "f16") < 2.01 * small.num_parameters()

