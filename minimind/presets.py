"""Model shapes: the numbers that define a decoder, and the named sizes we train.

Parameter counts are computed, not quoted (``ModelConfig.num_parameters``), so they can be shown
before a model exists and tested against the built one.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace

from minimind.errors import ConfigError


@dataclass(frozen=True)
class ModelConfig:
    """Shape of one Qwen3-like decoder, dense or mixture of experts (Qwen3 technical report, arXiv:2505.09388)."""

    vocab_size: int = 6400
    hidden_size: int = 768
    num_hidden_layers: int = 8
    num_attention_heads: int = 8
    num_key_value_heads: int = 4
    head_dim: int = 96
    intermediate_size: int = 2432
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1e6
    max_position_embeddings: int = 32768
    qk_norm: bool = True
    tie_word_embeddings: bool = True
    #: routed experts of each layer, every one a SwiGLU of ``intermediate_size``; 0: one dense SwiGLU instead
    num_experts: int = 0
    num_experts_per_tok: int = 1
    #: experts that every token passes besides the routed ones
    num_shared_experts: int = 0
    #: whether the weights of a token's chosen experts are scaled to sum to 1
    norm_topk_prob: bool = True
    #: weight of the balance loss in training (minimind/moe.py), as in the Switch Transformer. Upstream's 5e-4 suits a
    #: router that nothing else moves; one that learns from the model's loss then gives all tokens to one expert.
    router_aux_loss_coef: float = 0.01
    #: Hugging Face's dictionary of a position scaling, YaRN's only (minimind/rope.py); it has no part in the hash
    rope_scaling: dict | None = field(default=None, hash=False)

    @property
    def use_moe(self) -> bool:
        return self.num_experts > 0

    @property
    def rope_scaling_factor(self) -> float | None:
        return self.rope_scaling.get("factor") if self.rope_scaling else None

    def num_parameters(self) -> int:
        """Trainable parameters, tied embeddings counted once."""
        return self._parameters(self.num_experts)

    def num_active_parameters(self) -> int:
        """Parameters that one token passes: of the routed experts only those chosen for it, and the whole router."""
        return self._parameters(self.num_experts_per_tok)

    def _parameters(self, routed_experts: int) -> int:
        """Parameters of a model in which ``routed_experts`` of each layer's are counted."""
        d, hd = self.hidden_size, self.head_dim
        attention = d * hd * (2 * self.num_attention_heads + 2 * self.num_key_value_heads)
        norms = 2 * d + (2 * hd if self.qk_norm else 0)
        swiglu = 3 * d * self.intermediate_size
        experts = (routed_experts + self.num_shared_experts) * swiglu + d * self.num_experts
        layer = attention + (experts if self.use_moe else swiglu) + norms
        embeddings = self.vocab_size * d * (1 if self.tie_word_embeddings else 2)
        return embeddings + self.num_hidden_layers * layer + d

    def flops_per_token(self, seq_len: int) -> float:
        """Training FLOPs (forward + backward) per token: ``6 N + 6 L h c`` with mean causal context c.

        N counts every matrix a token passes through, the output head included once and of the experts only the
        active ones (Kaplan et al., arXiv:2001.08361, appendix; attention term as in PaLM, arXiv:2204.02311).
        """
        attention_width = self.num_attention_heads * self.head_dim
        return 6 * self.num_active_parameters() + 6 * self.num_hidden_layers * attention_width * seq_len

    def as_dict(self) -> dict:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> ModelConfig:
        known = {name: values[name] for name in cls.__dataclass_fields__ if name in values}
        return cls(**known)


def intermediate_size_for(hidden_size: int) -> int:
    """MiniMind's rule for the SwiGLU width: pi times the hidden size, rounded up to 64."""
    return math.ceil(hidden_size * math.pi / 64) * 64


@dataclass(frozen=True)
class Preset:
    """A named model with the training defaults that suit it."""

    name: str
    description: str
    model: ModelConfig
    max_seq_len: int
    batch_size: int
    accumulation_steps: int
    learning_rate: dict[str, float]  # by stage


#: for Muon, as found by benchmarks/starter.py (answers from few steps need the high rate in sft too); AdamW: about half
TINY_LEARNING_RATE = {"pretrain": 8e-3, "sft": 8e-3, "lora": 4e-3, "dpo": 2e-4, "distill": 8e-3}
SMALL_LEARNING_RATE = {"pretrain": 4e-3, "sft": 2e-3, "lora": 2e-3, "dpo": 5e-5, "distill": 4e-3}
LARGE_LEARNING_RATE = {"pretrain": 5e-4, "sft": 5e-5, "lora": 2e-4, "dpo": 1e-6, "distill": 1e-4}

PRESETS: dict[str, Preset] = {
    p.name: p
    for p in (
        Preset(
            "tiny-cpu",
            "About one million parameters: learns the starter world on two CPU cores in minutes.",
            # three layers learn the starter world in fewer tokens than four, and run a quarter faster
            ModelConfig(vocab_size=2048, hidden_size=128, num_hidden_layers=3, num_attention_heads=4,
                        num_key_value_heads=2, head_dim=32, intermediate_size=448),
            max_seq_len=256, batch_size=4, accumulation_steps=1, learning_rate=TINY_LEARNING_RATE,
        ),
        Preset(
            "small-cpu",
            "About five million parameters: for an hour or a night on a laptop.",
            ModelConfig(vocab_size=2048, hidden_size=256, num_hidden_layers=6, num_attention_heads=8,
                        num_key_value_heads=4, head_dim=32, intermediate_size=832),
            max_seq_len=256, batch_size=16, accumulation_steps=1, learning_rate=SMALL_LEARNING_RATE,
        ),
        Preset(
            "minimind-3",
            "64M parameters, Qwen3-shaped: about two hours on one ordinary GPU.",
            ModelConfig(),
            max_seq_len=340, batch_size=32, accumulation_steps=8, learning_rate=LARGE_LEARNING_RATE,
        ),
        Preset(
            "minimind-3-moe",
            "198M parameters, of which a token passes 64M: minimind-3 with four experts in each layer.",
            ModelConfig(num_experts=4),
            max_seq_len=340, batch_size=32, accumulation_steps=8, learning_rate=LARGE_LEARNING_RATE,
        ),
        Preset(
            "minimind2-small",
            "26M parameters, the classic MiniMind2 shape without q/k norm.",
            ModelConfig(hidden_size=512, num_attention_heads=8, num_key_value_heads=2, head_dim=64,
                        intermediate_size=1408, rms_norm_eps=1e-5, qk_norm=False),
            max_seq_len=340, batch_size=32, accumulation_steps=8, learning_rate=LARGE_LEARNING_RATE,
        ),
        Preset(
            "minimind2",
            "104M parameters, 16 layers, the larger MiniMind2.",
            ModelConfig(num_hidden_layers=16, num_key_value_heads=2, intermediate_size=2048,
                        rms_norm_eps=1e-5, qk_norm=False),
            max_seq_len=340, batch_size=16, accumulation_steps=16, learning_rate=LARGE_LEARNING_RATE,
        ),
        Preset(
            "minimind2-moe",
            "145M parameters, of which a token passes 92M: one shared expert and two of four routed ones.",
            ModelConfig(hidden_size=640, num_key_value_heads=2, head_dim=80, intermediate_size=1728,
                        rms_norm_eps=1e-5, qk_norm=False, num_experts=4, num_experts_per_tok=2,
                        num_shared_experts=1),
            max_seq_len=340, batch_size=16, accumulation_steps=16, learning_rate=LARGE_LEARNING_RATE,
        ),
    )
}

#: fields of a run's configuration that change the shape of the model; ``ModelConfig`` answers to each of them
MODEL_FIELDS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
                "intermediate_size", "rope_theta", "rope_scaling_factor", "use_moe", "num_experts",
                "num_experts_per_tok", "router_aux_loss_coef")

#: experts that ``use_moe`` gives a dense preset, upstream MiniMind's number; one of them serves a token
DEFAULT_EXPERTS = 4


def yarn_scaling(factor: float, max_position_embeddings: int) -> dict:
    """``rope_scaling`` of a model whose ``max_position_embeddings`` are ``factor`` times those it knows well."""
    return {"rope_type": "yarn", "factor": factor, "beta_fast": 32.0, "beta_slow": 1.0,
            "original_max_position_embeddings": round(max_position_embeddings / factor)}


def model_config(preset: str, overrides: dict, vocab_size: int | None = None) -> ModelConfig:
    """The preset's shape with ``overrides`` (``None`` values are ignored) and the tokenizer's vocabulary.

    The vocabulary is the larger of the preset's and the tokenizer's, so that a preset keeps its
    published parameter count. Raises ``ConfigError`` naming every field that does not fit.
    """
    base = PRESETS[preset].model
    given = {k: v for k, v in overrides.items() if k in MODEL_FIELDS and v is not None}
    problems: list[dict] = []
    shape = _with_experts(base, given, problems)
    if "rope_scaling_factor" in given:
        scaling = yarn_scaling(given["rope_scaling_factor"], base.max_position_embeddings)
        shape = replace(shape, rope_scaling=scaling)
    shape = replace(shape, **{k: v for k, v in given.items() if k in ModelConfig.__dataclass_fields__})
    if "hidden_size" in given and given["hidden_size"] != base.hidden_size:
        if "intermediate_size" not in given:
            shape = replace(shape, intermediate_size=intermediate_size_for(shape.hidden_size))
    if "num_attention_heads" in given and "num_key_value_heads" not in given:
        # The preset's number where it still divides the query heads, else the next smaller one that does.
        shape = replace(shape, num_key_value_heads=next(
            n for n in range(min(base.num_key_value_heads, shape.num_attention_heads), 0, -1)
            if shape.num_attention_heads % n == 0))
    if "head_dim" not in given and ("hidden_size" in given or "num_attention_heads" in given):
        if shape.hidden_size % shape.num_attention_heads:
            problems.append({
                "field": "hidden_size",
                "message": f"hidden_size {shape.hidden_size} is not divisible by num_attention_heads "
                           f"{shape.num_attention_heads}.",
                "hint": f"Use a multiple such as {_nearest_multiple(shape.hidden_size, 2 * shape.num_attention_heads)}"
                        ", or set head_dim.",
            })
        else:
            shape = replace(shape, head_dim=shape.hidden_size // shape.num_attention_heads)
    if shape.num_attention_heads % shape.num_key_value_heads:
        problems.append({
            "field": "num_key_value_heads",
            "message": f"num_attention_heads {shape.num_attention_heads} is not divisible by num_key_value_heads "
                       f"{shape.num_key_value_heads}.",
            "hint": "Each key/value head serves an equal group of query heads: choose a divisor.",
        })
    if shape.head_dim % 2 and not any(p["field"] == "hidden_size" for p in problems):
        problems.append({
            "field": "head_dim",
            "message": f"head_dim {shape.head_dim} is odd; rotary position embedding turns pairs of channels.",
            "hint": "Choose an even head_dim (hidden_size / num_attention_heads).",
        })
    if problems:
        raise ConfigError(problems)
    if vocab_size is not None:
        shape = replace(shape, vocab_size=max(base.vocab_size, vocab_size))
    return shape


def _with_experts(base: ModelConfig, given: dict, problems: list[dict]) -> ModelConfig:
    """``base`` with the experts that were asked for; what cannot be is added to ``problems``."""
    experts = given.get("num_experts", base.num_experts or (DEFAULT_EXPERTS if given.get("use_moe") else 0))
    for name in ("num_experts_per_tok", "router_aux_loss_coef"):
        if not experts and name in given:
            problems.append({"field": name, "message": f"{name} is set, and the model has no experts.",
                             "hint": "Switch use_moe on, or choose a preset with experts such as minimind-3-moe."})
    chosen = given.get("num_experts_per_tok", base.num_experts_per_tok)
    if experts and chosen > experts:
        problems.append({"field": "num_experts_per_tok",
                         "message": f"num_experts_per_tok {chosen} is more than the {experts} experts of each layer.",
                         "hint": f"Choose at most {experts}, or raise num_experts."})
    return replace(base, num_experts=experts)


def nearest_preset(model: ModelConfig) -> Preset:
    """The preset whose active parameters are the next to the model's, as a ratio: its learning rates suit it."""
    return min(PRESETS.values(), key=lambda preset: abs(math.log(
        preset.model.num_active_parameters() / model.num_active_parameters())))


def _nearest_multiple(value: int, of: int) -> int:
    return max(of, round(value / of) * of)
