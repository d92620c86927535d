"""GGUF files as llama.cpp's converter makes them from a Hugging Face folder: names of tensors and keys are those of the
``gguf`` package, and nothing of ours has a say in them."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import torch
from safetensors.torch import load_file


def convert(folder: Path, out: Path, dtype: torch.dtype = torch.bfloat16) -> Path:
    """Of a ``Qwen3ForCausalLM`` folder; vectors in 32 bits, matrices as ``dtype`` (bfloat16, float16)."""
    said = json.loads((folder / "config.json").read_text())
    writer = gguf.GGUFWriter(out, "qwen3")
    writer.add_type("model")
    writer.add_name(folder.name)
    writer.add_block_count(said["num_hidden_layers"])
    writer.add_context_length(said["max_position_embeddings"])
    writer.add_embedding_length(said["hidden_size"])
    writer.add_feed_forward_length(said["intermediate_size"])
    writer.add_head_count(said["num_attention_heads"])
    writer.add_head_count_kv(said["num_key_value_heads"])
    rope = said.get("rope_parameters") or said
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_layer_norm_rms_eps(said["rms_norm_eps"])
    writer.add_key_length(said["head_dim"])
    writer.add_value_length(said["head_dim"])
    is_half = dtype == torch.float16
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16 if is_half else gguf.LlamaFileType.MOSTLY_BF16)
    _words(writer, folder, said["vocab_size"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, said["num_hidden_layers"])
    for name, tensor in load_file(folder / "model.safetensors").items():
        place = names.get_name(name, try_suffixes=(".weight",))
        if tensor.ndim == 1:
            writer.add_tensor(place, tensor.float().numpy())
        elif is_half:
            writer.add_tensor(place, tensor.half().numpy())
        else:
            writer.add_tensor(place, tensor.bfloat16().view(torch.uint8).numpy(),
                              raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def _words(writer: gguf.GGUFWriter, folder: Path, vocab_size: int) -> None:
    raw = json.loads((folder / "tokenizer.json").read_text())
    texts = {i: text for text, i in raw["model"]["vocab"].items()}
    added = {token["id"]: token for token in raw["added_tokens"]}
    tokens, kinds = [], []
    for i in range(vocab_size):
        token = added.get(i)
        tokens.append(token["content"] if token else texts.get(i, f"[PAD{i}]"))
        kinds.append(gguf.TokenType.CONTROL if token and token["special"] else gguf.TokenType.USER_DEFINED if token
                     else gguf.TokenType.NORMAL if i in texts else gguf.TokenType.UNUSED)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    gguf.SpecialVocab(folder, load_merges=True).add_to_gguf(writer, quiet=True)
