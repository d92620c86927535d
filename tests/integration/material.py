"""Real-looking input that the tests make themselves: plain text and dialogues about a small harbour town."""

from __future__ import annotations

import json
import random
from typing import Any

PLACES = ["the harbour", "the old mill", "the market square", "the lighthouse", "the school", "the bakery"]
PEOPLE = ["Marta", "Joost", "Ines", "Kofi", "Lena", "Pavel", "Aiko", "Sam"]
THINGS = ["a blue lantern", "two loaves of bread", "a letter", "a broken oar", "fresh apples", "an old map"]
TIMES = ["In the morning", "After lunch", "Late at night", "On Sunday", "When it rained", "At low tide"]

#: a model that two CPU ranks train in seconds; steps are short, so that a run can be caught in the middle. Runs that
#: are caught there are long on paper, which would be a reason to compile them.
SMALL = {"preset": "tiny-cpu", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "max_seq_len": 64, "batch_size": 4, "sample_interval": 0, "eval_interval": 0,
         "seed": 7, "use_compile": False}
TWO_RANKS = {"kind": "cpu", "count": 2}
ONE_RANK = {"kind": "cpu", "count": 1}


def text_jsonl(rows: int = 400, seed: int = 1) -> bytes:
    """Rows ``{"text": ...}`` of three to eight sentences."""
    random_ = random.Random(seed)

    def sentence() -> str:
        return (f"{random_.choice(TIMES)} {random_.choice(PEOPLE)} carried {random_.choice(THINGS)} from "
                f"{random_.choice(PLACES)} to {random_.choice(PLACES)} and met {random_.choice(PEOPLE)} there.")

    return b"".join(
        json.dumps({"text": " ".join(sentence() for _ in range(random_.randint(3, 8)))}).encode() + b"\n"
        for _ in range(rows))


def dialogues_jsonl(rows: int = 200, seed: int = 2) -> bytes:
    """Rows ``{"conversations": [...]}``: who carried what where."""
    random_ = random.Random(seed)
    lines = []
    for _ in range(rows):
        person, thing, place = random_.choice(PEOPLE), random_.choice(THINGS), random_.choice(PLACES)
        lines.append(json.dumps({"conversations": [
            {"role": "user", "content": f"What did {person} bring to {place}?"},
            {"role": "assistant", "content": f"{person} brought {thing} to {place}."},
        ]}).encode() + b"\n")
    return b"".join(lines)


def upload(client: Any, content: bytes, name: str = "input.jsonl", layout: str = "auto") -> Any:
    """POST a file as a dataset; the raw answer."""
    return client.http.post("/api/v1/datasets", files={"file": (name, content)},
                            data={"name": name, "layout": layout})


def ready_dataset(client: Any, content: bytes, name: str = "input.jsonl", layout: str = "auto") -> dict:
    answer = upload(client, content, name, layout)
    assert answer.status_code == 201, answer.text
    dataset = client.wait_ready("datasets", answer.json()["id"])
    assert dataset["state"] == "ready", dataset
    return dataset


def ready_tokenizer(client: Any, dataset_id: str, vocab_size: int = 600) -> dict:
    """A tokenizer trained from a dataset."""
    tokenizer = client.post("/tokenizers", {"name": "harbour", "dataset_id": dataset_id, "vocab_size": vocab_size})
    tokenizer = client.wait_ready("tokenizers", tokenizer["id"])
    assert tokenizer["state"] == "ready", tokenizer
    return tokenizer
