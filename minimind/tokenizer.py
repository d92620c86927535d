"""Byte-level BPE: training, loading, and text that never breaks in the middle of a character.

A tokenizer is a directory with ``tokenizer.json`` and ``tokenizer_config.json`` (Hugging Face's layout), so
MiniMind's own directory loads as it stands. Tokenizers that we train keep MiniMind's 36 reserved tokens in
MiniMind's order (ids 0 to 35): everything behind a tokenizer can rely on them.
"""

from __future__ import annotations

import codecs
import hashlib
import json
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers

from minimind.chat_template import DEFAULT_TEMPLATE, MAX_TEMPLATE_CHARS
from minimind.errors import DataError

TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
TEMPLATE_FILE = "chat_template.jinja"  # where newer Hugging Face directories keep the template
MAX_FILE_BYTES = 64 << 20

PAD, BOS, EOS = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
#: ids 0-20: never shown when special tokens are skipped
SPECIAL_TOKENS = (
    PAD, BOS, EOS,
    "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>",
    "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
    "<|audio_start|>", "<|audio_end|>", "<|audio_pad|>",
    "<tts_pad>", "<tts_text_bos>", "<tts_text_eod>", "<tts_text_bos_single>",
)
#: ids 21-35: one id each, but part of what the model says
VISIBLE_TOKENS = (
    "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>",
    *(f"<|buffer{i}|>" for i in range(1, 10)),
)
RESERVED_TOKENS = SPECIAL_TOKENS + VISIBLE_TOKENS
SMALLEST_VOCABULARY = len(RESERVED_TOKENS) + 256

#: Below this size Han characters are kept apart, so that a vocabulary learnt from few sentences holds
#: characters. (The GPT-2 pattern takes a run of Han characters for one word; a small corpus would turn whole
#: sentences into single tokens, which teach a model nothing.)
HAN_WORDS_FROM = 4096
#: every turn of a dialogue carries one of these: they should be one token even if the corpus lacks them
ROLE_WORDS = ("system", "user", "assistant")
ROLE_WEIGHT = 10_000


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-in for each byte: printable Latin-1 as it is, the rest from U+0100 on."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [b for b in range(256) if b not in set(plain)]
    return {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(rest)}


BYTE_OF = _byte_alphabet()


def clean_unicode(text: str) -> str:
    """``text`` without lone surrogates, which JSON can carry and UTF-8 cannot: each becomes U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


class StreamDecoder:
    """Turns ids into text one by one; an unfinished character is held back until its last byte is there."""

    def __init__(self, tokenizer: Tokenizer, skip_special: bool = True):
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """The text that became certain with ``token_id`` (often ``""`` within a Chinese character)."""
        return self._utf8.decode(self._tokenizer.token_bytes(token_id, self._skip_special))

    def flush(self) -> str:
        """What is left at the end: half a character shows as U+FFFD, as in ``Tokenizer.decode``."""
        rest = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return rest


class Tokenizer:
    """A byte-level BPE vocabulary with its chat template."""

    def __init__(self, backend: tokenizers.Tokenizer, config: dict):
        self._backend = backend
        self._config = config
        self.chat_template: str = config.get("chat_template") or DEFAULT_TEMPLATE
        self.vocab_size: int = backend.get_vocab_size(with_added_tokens=True)
        self.pad_token, self.pad_id = self._named("pad_token", PAD)
        self.bos_token, self.bos_id = self._named("bos_token", BOS)
        self.eos_token, self.eos_id = self._named("eos_token", EOS)

    def _named(self, key: str, default: str) -> tuple[str, int]:
        """Text and id of the token that the configuration calls ``key``."""
        value = self._config.get(key) or default
        token = value.get("content") if isinstance(value, dict) else value
        token_id = self._backend.token_to_id(token) if isinstance(token, str) else None
        if token_id is None:
            raise DataError(f"The tokenizer's {key} is {token!r}, which is not in its vocabulary.", field=key,
                            hint=f"Correct {key} in {CONFIG_FILE}.")
        return token, token_id

    # -- making one ---------------------------------------------------------------------------------------

    @classmethod
    def load(cls, path: Path | str) -> Tokenizer:
        """Read a tokenizer directory. Raises ``DataError`` if it is missing, damaged or of another kind."""
        directory = Path(path)
        text = _read(directory / TOKENIZER_FILE)
        if text is None:
            raise DataError(f"There is no {TOKENIZER_FILE} in {directory}.",
                            hint="Name a directory with tokenizer.json and tokenizer_config.json.")
        config = _json_object(_read(directory / CONFIG_FILE) or "{}", directory / CONFIG_FILE)
        template = _read(directory / TEMPLATE_FILE)
        if template is not None:
            config["chat_template"] = template
        _check_template(config.get("chat_template"), directory)
        raw = _json_object(text, directory / TOKENIZER_FILE)
        decoder = raw.get("decoder")
        if not isinstance(decoder, dict) or decoder.get("type") != "ByteLevel":
            raise DataError(f"The tokenizer in {directory} is not byte-level BPE.",
                            hint="MiniMind works with byte-level BPE tokenizers (GPT-2, Qwen, Llama 3, MiniMind).")
        try:
            backend = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the Rust library raises bare Exception
            raise DataError(f"{directory / TOKENIZER_FILE} is not a usable tokenizer: {error}.",
                            hint="Export it again from the program that made it.") from None
        backend.no_padding()
        backend.no_truncation()
        return cls(backend, config)

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> Tokenizer:
        """Learn a vocabulary of at most ``vocab_size`` entries (fewer if the texts hold too little).

        Same texts in the same order, same vocabulary. Raises ``DataError`` when there is no text.
        """
        if vocab_size < SMALLEST_VOCABULARY:
            raise DataError(f"A vocabulary of {vocab_size} is too small.", field="vocab_size",
                            hint=f"{SMALLEST_VOCABULARY} entries are taken by reserved tokens and single bytes.")
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        backend = tokenizers.Tokenizer(models.BPE())
        backend.pre_tokenizer = byte_level if vocab_size >= HAN_WORDS_FROM else pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(r"\p{Han}"), behavior="isolated"), byte_level])
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size, min_frequency=2, show_progress=False,
            special_tokens=[AddedToken(t, normalized=False, special=True) for t in RESERVED_TOKENS],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        )
        seen = 0

        def stream() -> Iterable[str]:
            nonlocal seen
            for text in texts:
                seen += bool(text)
                yield clean_unicode(text)
            yield from (f"{word}\n" for word in ROLE_WORDS for _ in range(ROLE_WEIGHT))

        backend.train_from_iterator(stream(), trainer)
        if not seen:
            raise DataError("There is no text to learn a vocabulary from.", hint="Give a file with some text in it.")
        raw = json.loads(backend.to_str())
        for token in raw["added_tokens"]:
            token["special"] = token["id"] < len(SPECIAL_TOKENS)
        return cls(tokenizers.Tokenizer.from_str(json.dumps(raw)), _config_of_trained())

    def save(self, path: Path | str) -> list[Path]:
        """Write both files into the directory ``path`` and return their paths."""
        directory = Path(path)
        directory.mkdir(parents=True, exist_ok=True)
        files = [directory / TOKENIZER_FILE, directory / CONFIG_FILE]
        config = {**self._config, "chat_template": self.chat_template}
        files[0].write_text(self._backend.to_str(), encoding="utf-8")
        files[1].write_text(json.dumps(config, ensure_ascii=False, indent=2, sort_keys=True), encoding="utf-8")
        return files

    def to_json(self) -> str:
        """The text of ``tokenizer.json``."""
        return self._backend.to_str()

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over everything that decides which ids a text or a dialogue becomes."""
        identity = [json.loads(self._backend.to_str()), self.chat_template, self.pad_id, self.bos_id, self.eos_id]
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()

    # -- text to ids --------------------------------------------------------------------------------------

    def encode(self, text: str) -> list[int]:
        """Ids of ``text``, nothing added; reserved tokens written in the text become their ids."""
        return self._backend.encode(clean_unicode(text), add_special_tokens=False).ids

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """As ``encode``, for many texts at once on all cores."""
        encoded = self._backend.encode_batch_fast([clean_unicode(t) for t in texts], add_special_tokens=False)
        return [e.ids for e in encoded]

    def encode_text(self, text: str) -> list[int]:
        """Ids of text that nobody vouches for: ``"<|im_end|>"`` in it is ten characters, not the end of a turn."""
        return self._literal_backend.encode(clean_unicode(text), add_special_tokens=False).ids

    @cached_property
    def _literal_backend(self) -> tokenizers.Tokenizer:
        """The same vocabulary without reserved tokens to find in a text."""
        return tokenizers.Tokenizer.from_str(json.dumps({**json.loads(self._backend.to_str()), "added_tokens": []}))

    def text_encoder(self) -> Callable[[str], list[int]]:
        """``encode_text`` as a function that does not keep this object in memory."""
        backend = self._literal_backend
        return lambda text: backend.encode(clean_unicode(text), add_special_tokens=False).ids

    @cached_property
    def added_ids(self) -> frozenset[int]:
        """Ids of all tokens that were not learnt: reserved ones, tags and placeholders."""
        return frozenset(self._backend.get_added_tokens_decoder())

    @cached_property
    def special_tokens(self) -> tuple[str, ...]:
        """Texts of the tokens that steer a model and must not be written by a user, longest first."""
        added = self._backend.get_added_tokens_decoder().values()
        return tuple(sorted((t.content for t in added if t.special), key=lambda t: (-len(t), t)))

    # -- ids to text --------------------------------------------------------------------------------------

    @cached_property
    def _bytes(self) -> tuple[list[bytes], frozenset[int]]:
        """UTF-8 bytes of each id (empty for an id without token), and the ids that are special."""
        added = self._backend.get_added_tokens_decoder()
        vocabulary = self._backend.get_vocab(with_added_tokens=True)
        table = [b""] * (max(vocabulary.values(), default=-1) + 1)
        for token, token_id in vocabulary.items():
            is_bytes = token_id not in added and all(c in BYTE_OF for c in token)
            table[token_id] = bytes(BYTE_OF[c] for c in token) if is_bytes else token.encode()
        return table, frozenset(i for i, t in added.items() if t.special)

    def token_bytes(self, token_id: int, skip_special: bool = True) -> bytes:
        """Bytes of one token; nothing for ids behind the vocabulary (padding rows of a model)."""
        table, special = self._bytes
        if not 0 <= token_id < len(table) or (skip_special and token_id in special):
            return b""
        return table[token_id]

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """Text of ``ids``; bytes that are not UTF-8 show as U+FFFD."""
        return b"".join(self.token_bytes(i, skip_special) for i in ids).decode("utf-8", "replace")

    def stream_decoder(self, skip_special: bool = True) -> StreamDecoder:
        return StreamDecoder(self, skip_special)


def _config_of_trained() -> dict:
    """``tokenizer_config.json`` that Hugging Face's ``AutoTokenizer`` understands."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS, "eos_token": EOS, "pad_token": PAD, "unk_token": PAD,
        "add_bos_token": False, "add_eos_token": False, "add_prefix_space": False,
        "clean_up_tokenization_spaces": False, "model_max_length": 131072,
        "added_tokens_decoder": {
            str(i): {"content": t, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False,
                     "special": t in SPECIAL_TOKENS} for i, t in enumerate(RESERVED_TOKENS)},
        "chat_template": DEFAULT_TEMPLATE,
    }


def _read(path: Path) -> str | None:
    """The file's text, ``None`` if there is no such file."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise DataError(f"{path} is larger than {MAX_FILE_BYTES >> 20} MiB.", hint="This is not a tokenizer file.")
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except UnicodeDecodeError:
        raise DataError(f"{path} is not UTF-8 text.", hint="Export the tokenizer again.") from None


def _json_object(text: str, path: Path) -> dict:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not valid JSON: {error}.", hint="Export the tokenizer again.") from None
    if not isinstance(value, dict):
        raise DataError(f"{path} does not hold a JSON object.", hint="Export the tokenizer again.")
    return value


def _check_template(template: object, directory: Path) -> None:
    if template is not None and not isinstance(template, str):
        raise DataError(f"The chat template of {directory} is not text.", field="chat_template",
                        hint="MiniMind reads one template, not a list of named ones.")
    if template is not None and len(template) > MAX_TEMPLATE_CHARS:
        raise DataError(f"The chat template of {directory} is longer than {MAX_TEMPLATE_CHARS} characters.",
                        field="chat_template", hint="Use the template that belongs to the tokenizer.")
