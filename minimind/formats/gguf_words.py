"""A tokenizer in a GGUF file, so that llama.cpp cuts text as ours does, token for token.

llama.cpp knows patterns that cut text into words by a name, not by their text. Tokenizers like MiniMind's cut as GPT-2
did (``gpt-2``). Small ones of ours keep every Han character apart first (``Tokenizer.train``), for which there is no
name: there the characters are given as tokens that the user defined, which llama.cpp takes out of a text before it
looks for words, with the same effect.

The whole ``tokenizer.json`` goes along under the name that the format has for it, so that what is read back is equal.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers

from minimind.errors import CheckpointError, DataError
from minimind.tokenizer import BYTE_OF, CONFIG_FILE, TOKENIZER_FILE, Tokenizer

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
WHOLE = "tokenizer.huggingface.json"
#: how Qwen's tokenizers cut text
QWEN2_PATTERN = ("(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|"
                 "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+")
_REFUSED_HINT = "Export a Hugging Face folder: it carries the tokenizer as it is."


def words_of(tokenizer: Tokenizer, vocab_size: int) -> dict[str, Any]:
    """Keys and values behind ``tokenizer.``; lists of texts and whole numbers among them. Rows of the model behind
    the vocabulary get names that no text contains. Raises ``CheckpointError`` for a tokenizer that llama.cpp would
    cut in another way."""
    whole = tokenizer.to_json()
    raw = json.loads(whole)
    pattern, keeps_han_apart = _pattern(raw)
    added = {token["id"]: token for token in raw["added_tokens"]}
    vocabulary = {**{i: text for text, i in raw["model"]["vocab"].items()},
                  **{i: token["content"] for i, token in added.items()}}
    han = _han_characters(vocabulary, added) if keeps_han_apart else {}
    tokens, types = [], []
    for i in range(vocab_size):
        kind = NORMAL
        if i in added:
            kind = CONTROL if added[i]["special"] else USER_DEFINED
        elif i in han:
            kind = USER_DEFINED
        elif i not in vocabulary:
            kind = UNUSED
        tokens.append(han.get(i) or vocabulary.get(i) or f"[PAD{i}]")
        types.append(kind)
    apart = {vocabulary[i] for i in han}
    merges = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in raw["model"]["merges"]]
    return {
        "ggml.model": "gpt2", "ggml.pre": pattern, "ggml.tokens": tokens, "ggml.token_type": types,
        # what makes a character that is taken out of the text before has no use, and names a token that is not there
        "ggml.merges": [f"{left} {right}" for left, right in merges if left + right not in apart],
        "ggml.bos_token_id": tokenizer.bos_id, "ggml.eos_token_id": tokenizer.eos_id,
        "ggml.padding_token_id": tokenizer.pad_id, "ggml.add_bos_token": False, "ggml.add_eos_token": False,
        "chat_template": tokenizer.chat_template, "huggingface.json": whole}


def _pattern(raw: dict) -> tuple[str, bool]:
    """llama.cpp's name for how words are found, and whether Han characters are kept apart before."""
    model, steps = raw["model"], raw.get("pre_tokenizer") or {}
    parts = steps.get("pretokenizers") if steps.get("type") == "Sequence" else [steps]
    is_plain = (model.get("type") == "BPE" and not model.get("dropout") and not model.get("byte_fallback")
                and not model.get("continuing_subword_prefix") and not model.get("end_of_word_suffix")
                and not model.get("ignore_merges")
                and not any(token.get(flag) for token in raw["added_tokens"]
                            for flag in ("lstrip", "rstrip", "single_word")))
    kinds = [part.get("type") for part in parts]
    last = parts[-1] if parts else {}
    if is_plain and kinds[-1:] == ["ByteLevel"] and not last.get("add_prefix_space") and raw.get("normalizer") is None:
        if kinds == ["ByteLevel"] and last.get("use_regex", True):
            return "gpt-2", False
        if kinds == ["Split", "ByteLevel"] and last.get("use_regex", True) and _splits(parts[0], r"\p{Han}"):
            return "gpt-2", True
    if is_plain and kinds == ["Split", "ByteLevel"] and not last.get("use_regex", True) \
            and not last.get("add_prefix_space") and _splits(parts[0], QWEN2_PATTERN) \
            and (raw.get("normalizer") or {"type": "NFC"})["type"] == "NFC":  # llama.cpp leaves the text as it is
        return "qwen2", False
    raise CheckpointError("llama.cpp has no way to cut text as this model's tokenizer does.", field="format",
                          hint=_REFUSED_HINT)


def _splits(part: dict, pattern: str) -> bool:
    return (part.get("pattern") == {"Regex": pattern} and part.get("behavior") == "Isolated"
            and not part.get("invert"))


def _han_characters(vocabulary: Mapping[int, str], added: Mapping[int, Any]) -> dict[int, str]:
    """Tokens that are one Han character, as that character."""
    han = pre_tokenizers.Split(Regex(r"\p{Han}"), behavior="removed")
    found = {}
    for i, text in vocabulary.items():
        if i in added or not all(c in BYTE_OF for c in text):
            continue
        try:
            character = bytes(BYTE_OF[c] for c in text).decode()
        except UnicodeDecodeError:
            continue
        if len(character) == 1 and not han.pre_tokenize_str(character):
            found[i] = character
    return found


# -- reading ------------------------------------------------------------------------------------------------------


def tokenizer_from(keys: Mapping[str, Any], place: Path) -> dict[str, str]:
    """``tokenizer.json`` and ``tokenizer_config.json`` of a file, by name. Raises ``CheckpointError`` or
    ``DataError`` where they cannot be told from it."""
    whole = keys.get(WHOLE)
    tokens = _list(keys, "tokens", str, place)
    text = whole if isinstance(whole, str) and whole else _built(keys, tokens, place)

    def named(name: str) -> dict[str, str]:
        i = keys.get(f"tokenizer.ggml.{name}_token_id")
        key = {"padding": "pad_token"}.get(name, f"{name}_token")
        return {key: tokens[i]} if type(i) is int and 0 <= i < len(tokens) else {}

    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "add_prefix_space": False,
                              "add_bos_token": False, "add_eos_token": False, "clean_up_tokenization_spaces": False,
                              **named("bos"), **named("eos"), **named("padding")}
    config.setdefault("pad_token", config.get("eos_token"))
    config.setdefault("bos_token", config.get("eos_token"))
    template = keys.get("tokenizer.chat_template")
    if isinstance(template, str):
        config["chat_template"] = template
    return {TOKENIZER_FILE: text, CONFIG_FILE: json.dumps(config, ensure_ascii=False)}


def _list(keys: Mapping[str, Any], name: str, of: type, place: Path) -> list:
    value = keys.get(f"tokenizer.ggml.{name}")
    if not isinstance(value, list) or not all(type(item) is of for item in value):
        raise CheckpointError(f"{place} has no usable tokenizer.ggml.{name}.",
                              hint="Choose the tokenizer that the model was trained with.", field="tokenizer_id")
    return value


def _built(keys: Mapping[str, Any], tokens: list[str], place: Path) -> str:
    """``tokenizer.json`` of a file that does not carry it."""
    kind, pattern = keys.get("tokenizer.ggml.model"), keys.get("tokenizer.ggml.pre")
    if kind != "gpt2" or pattern not in ("gpt-2", "qwen2"):
        raise CheckpointError(f"{place} has a tokenizer of the kind {str(kind)[:60]!r} with the words of "
                              f"{str(pattern)[:60]!r}.",
                              field="tokenizer_id", hint="Those of gpt2 with the words of gpt-2 or qwen2 can be read. "
                                                         "Choose the tokenizer that the model was trained with.")
    types, merges = _list(keys, "token_type", int, place), _list(keys, "merges", str, place)
    if len(types) != len(tokens) or any(merge.count(" ") != 1 for merge in merges):
        raise CheckpointError(f"{place} has a damaged tokenizer.", hint="Download the file again.")
    vocabulary = {text: i for i, (text, kind) in enumerate(zip(tokens, types, strict=True)) if kind != UNUSED}
    try:
        backend = tokenizers.Tokenizer(models.BPE(vocabulary, [tuple(merge.split(" ")) for merge in merges]))
    except Exception as error:  # the Rust library raises bare Exception
        raise DataError(f"{place} has a tokenizer that cannot be used: {error}.",
                        hint="Download the file again.") from None
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern == "gpt-2")
    backend.pre_tokenizer = byte_level if pattern == "gpt-2" else pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(QWEN2_PATTERN), behavior="isolated"), byte_level])
    backend.decoder = decoders.ByteLevel()
    for text, kind in zip(tokens, types, strict=True):
        if kind == CONTROL:
            backend.add_special_tokens([AddedToken(text, normalized=False, special=True)])
        elif kind == USER_DEFINED:
            backend.add_tokens([AddedToken(text, normalized=False, special=False)])
    return backend.to_str()
