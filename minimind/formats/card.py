"""``README.md`` of an exported model, as the Hugging Face Hub shows it: what it is, what it learnt from, how well, and
how it is used. Names, questions and answers in it are anybody's text: they are shown, and mean nothing to a reader of
Markdown or YAML.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from minimind.formats.commands import commands
from minimind.formats.curve import curve_svg
from minimind.formats.ollama import TEMPERATURE, TOP_P
from minimind.formats.origins import DataSource, StageDone, Story, thinned
from minimind.presets import ModelConfig
from minimind.tokenizer import Tokenizer

CARD_FILE, CURVE_FILE = "README.md", "training-curve.svg"
_MEANS_SOMETHING = re.compile(r"([\\`*_{}\[\]()#+\-.!|~>&$:@/=])")
#: rows of the table of losses
TABLE_ROWS = 8
MOST_SAMPLES, LONGEST_SAMPLE = 6, 600
_STAGES = {"pretrain": "pretraining", "sft": "supervised fine-tuning", "lora": "LoRA", "dpo": "preference tuning (DPO)",
           "distill": "distillation", "import": "imported"}


def write_card(directory: Path, name: str, config: ModelConfig, tokenizer: Tokenizer, story: Story) -> None:
    """The card, and the curve that it shows where there is one. ``name``: the folder's, for the commands."""
    if story.curve or story.held_out:
        (directory / CURVE_FILE).write_text(curve_svg(
            "Loss by step", [("training loss", story.curve), ("held-out loss", story.held_out)]), encoding="utf-8")
    (directory / CARD_FILE).write_text(card(name, config, tokenizer, story), encoding="utf-8")


def card(name: str, config: ModelConfig, tokenizer: Tokenizer, story: Story) -> str:
    shown = plain(story.stages[-1].named.run) if story.stages else plain(name)
    parts = [_front(story, config), f"# {shown}", _about(config, tokenizer, story)]
    for title, text in (("Where it comes from", _lineage(story)), ("What it learnt from", _data(story)),
                        ("Training", _training(story)), ("Evaluation", _evaluation(story)),
                        ("How to use it", _use(name)), ("Limits", _limits(config))):
        if text:
            parts.append(f"## {title}\n\n{text}")
    return "\n\n".join(parts) + "\n"


def plain(text: str) -> str:
    """``text`` in one line, as letters: nothing in it is a link, a picture, HTML or a heading."""
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return _MEANS_SOMETHING.sub(r"\\\1", text).replace("<", "&lt;")


def _front(story: Story, config: ModelConfig) -> str:
    """YAML. JSON texts are YAML texts too."""
    lines = ["---"]
    if story.languages:
        lines += ["language:", *(f"- {json.dumps(code)}" for code in story.languages)]
    lines += ["# license: yours to choose, see https://huggingface.co/docs/hub/repositories-licenses",
              "library_name: transformers", "pipeline_tag: text-generation", "tags:", "- minimind",
              f"- {'mixture-of-experts' if config.num_experts else 'small-language-model'}"]
    names = [source.name for stage in story.stages for source in stage.named.data]
    if names:
        lines += ["# trained on:", *(f"#   {json.dumps(name)}" for name in dict.fromkeys(names))]
    return "\n".join([*lines, "---"])


def _about(config: ModelConfig, tokenizer: Tokenizer, story: Story) -> str:
    kind = "a mixture of experts" if config.num_experts else "a dense decoder"
    is_trained = story.stages and story.stages[-1].stage != "import"
    stage = f", last trained by {_stage(story.stages[-1])}" if is_trained else ""
    rows = [("Parameters", f"{config.num_parameters():,}")]
    if config.num_experts:
        rows += [("Parameters that a token passes", f"{config.num_active_parameters():,}"),
                 ("Experts", f"{config.num_experts}, of which {config.num_experts_per_tok} for each token")]
    rows += [("Layers", f"{config.num_hidden_layers}"), ("Hidden size", f"{config.hidden_size:,}"),
             ("Heads (queries / keys)", f"{config.num_attention_heads} / {config.num_key_value_heads}"),
             ("Vocabulary", f"{tokenizer.vocab_size:,} (byte-level BPE)"),
             ("Context", f"{config.max_position_embeddings:,} tokens")]
    return f"A small language model trained from scratch: {kind}{stage}.\n\n{_table(('', ''), rows)}"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _lineage(story: Story) -> str:
    if not story.stages:
        return ""
    first = story.stages[0].named.tokenizer
    rows = [("tokenizer", plain(first), "", "", "")] if first else []
    rows += [(_stage(s), plain(s.named.run), f"{s.step:,}", f"{s.tokens:,}",
              _loss(s.eval_loss)) for s in story.stages]
    return _table(("Stage", "Run", "Steps", "Tokens read", "Held-out loss"), rows)


def _stage(done: StageDone) -> str:
    return _STAGES.get(done.stage) or plain(done.stage)


def _loss(value: float | None) -> str:
    return f"{value:.4f}" if isinstance(value, (int, float)) else "–"


def _data(story: Story) -> str:
    rows = [(plain(source.name), _stage(stage),
             f"{source.rows:,}" if source.rows is not None else "–", _size(source), plain(source.license or "not said"))
            for stage in story.stages for source in stage.named.data]
    return _table(("Data", "Stage", "Rows", "Size", "Licence"), rows) if rows else ""


def _size(source: DataSource) -> str:
    if source.bytes is None:
        return "–"
    return f"{source.bytes / 1e6:,.1f} MB" if source.bytes >= 1e5 else f"{source.bytes / 1e3:,.1f} kB"


def _training(story: Story) -> str:
    parts = []
    if story.curve or story.held_out:
        parts.append(f"![Loss by step]({CURVE_FILE})")
    if story.curve:
        held_out = dict(story.held_out)
        steps = sorted({step for step, _ in thinned(list(story.curve), TABLE_ROWS)} | {story.curve[-1][0]})
        losses = dict(story.curve)
        rows = [(f"{step:,}", _loss(losses.get(step)), _loss(held_out.get(step))) for step in steps]
        parts.append(_table(("Step", "Training loss", "Held-out loss"), rows))
    return "\n\n".join(parts)


def _evaluation(story: Story) -> str:
    last: StageDone | None = story.stages[-1] if story.stages else None
    parts = []
    if last is not None and last.eval_loss is not None:
        bits = f", {story.bits_per_byte:.4f} bits per byte" if story.bits_per_byte is not None else ""
        parts.append(f"Held-out loss: {last.eval_loss:.4f} nats per token{bits}.")
    if story.samples:
        parts.append("Answers to fixed questions while it learnt (greedy):")
        for prompt, answer in story.samples[:MOST_SAMPLES]:
            parts.append(f"{plain(prompt)}\n\n{_verbatim(answer[:LONGEST_SAMPLE])}")
    return "\n\n".join(parts)


def _verbatim(text: str) -> str:
    """As a block of code: Markdown looks for nothing in it."""
    lines = "".join(c if c.isprintable() or c == "\n" else " " for c in text).split("\n")
    return "\n".join(f"    {line}" for line in lines)


def _use(name: str) -> str:
    blocks = [f"{one['tool']}:\n\n```{'python' if one['tool'] == 'transformers' else 'sh'}\n{one['text']}\n```"
              for one in commands("hf", name)]
    return "\n\n".join([
        *blocks, "For llama.cpp and ollama, export the same checkpoint as GGUF.",
        f"Sampling that it was tried with: temperature {TEMPERATURE}, top_p {TOP_P}, no top_k. The chat template is "
        "part of the tokenizer."])


def _limits(config: ModelConfig) -> str:
    return (f"With {config.num_parameters():,} parameters it knows little and says it fluently: check what it says, "
            "and let nothing of weight depend on it.")
