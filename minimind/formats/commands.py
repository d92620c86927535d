"""Command lines that run an export elsewhere, ready to copy."""

from __future__ import annotations

import shlex

from minimind.formats.ollama import TEMPERATURE, TOP_P

_TRANSFORMERS = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({place})
model = AutoModelForCausalLM.from_pretrained({place})
prompt = tokenizer.apply_chat_template(
    [{{"role": "user", "content": "Who are you?"}}], add_generation_prompt=True, return_tensors="pt", return_dict=True)
answer = model.generate(**prompt, max_new_tokens=128, do_sample=True, temperature={temperature}, top_p={top_p})
print(tokenizer.decode(answer[0, prompt["input_ids"].shape[1]:], skip_special_tokens=True))"""
_PEFT = """\
from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained("PATH-OF-THE-BASE-MODEL")
model = PeftModel.from_pretrained(base, {place})"""


def commands(format: str, name: str) -> list[dict[str, str]]:
    """``[{tool, text}]`` for an export called ``name``: a file's name with its ending, or a folder's."""
    stem = name.rsplit(".", 1)[0]
    if format == "gguf":
        model, file, recipe = (shlex.quote(text) for text in (stem.lower(), name, f"{stem}.Modelfile"))
        return [
            {"tool": "ollama", "text": f"ollama create {model} -f {recipe}\nollama run {model}"},
            {"tool": "llama.cpp", "text": f"llama-cli -m {file} --jinja --temp {TEMPERATURE} --top-p {TOP_P}"},
            {"tool": "llama.cpp server", "text": f"llama-server -m {file} --jinja --port 8080"}]
    if format in ("hf", "merged"):
        place = shlex.quote(f"./{name}")
        return [
            {"tool": "transformers", "text": _TRANSFORMERS.format(place=repr(f"./{name}"), temperature=TEMPERATURE,
                                                                  top_p=TOP_P)},
            {"tool": "vLLM", "text": f"vllm serve {place} --served-model-name {shlex.quote(name)}"}]
    if format == "peft":
        return [{"tool": "peft", "text": _PEFT.format(place=repr(f"./{name}"))}]
    return []
