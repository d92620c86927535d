"""What the page of a run says of its numbers, how it computes, its data and its warnings; and nothing that it lacks."""

from __future__ import annotations

import json

import pytest

from app.core.db import transaction
from app.core.settings import get_settings
from app.core.states import append_events
from app.rendering import ROOT
from minimind.metrics import TIMING_KEYS
from minimind.presets import PRESETS
from minimind.run_dir import RunDir
from tests.app.conftest import Api
from tests.app.test_pages import HOSTILE, assert_clean, read
from tests.app.test_run_pages import set_run, text_of
from tests.app.test_runs import new_run

METRICS = {"loss": 2.5, "lr": 0.008, "grad_norm": 1.0, "epoch": 0, "tokens_per_s": 5000.0, "data_wait_share": 0.001,
           "memory_peak_bytes": 493_531_136, "learnt_share": 0.98}
REPORT = {"documents": 1979, "tokens": 89_224, "document_tokens": {"mean": 45.0, "median": 46.0, "longest": 1105},
          "rows": 349, "max_seq_len": 256, "used_tokens": 88_000, "fill": 0.985, "cut_documents": 3, "cut_tokens": 1224,
          "dropped_documents": 0, "dropped_tokens": 0, "learnt_share": 0.9778, "held_out_documents": 21,
          "held_out_tokens": 815, "sources": []}
RESOLVED = {"device": "cpu", "world_size": 2, "threads_per_rank": 1, "dtype": "float32", "use_compile": False,
            "dtype_reason": "every CPU is good at it", "attention": "sdpa", "attention_reason": "PyTorch's own",
            "compile_reason": "60 steps are over before it would pay", "rows_per_step": 16, "max_seq_len": 256,
            "batch_size": 2, "accumulation_steps": 4, "steps_per_epoch": 1088}


def say(run: dict, *events: tuple[str, int, dict], attempt: int = 1) -> None:
    """The run's events, as the runner would have stored them: ``(type, step, data)``."""
    with transaction() as session:
        append_events(session, f"run:{run['id']}", [
            {"attempt": attempt, "t": 1.0, "type": type, "step": step, "tokens": 0, "data": data}
            for type, step, data in events])


def resolve(run: dict, resolved: dict) -> None:
    path = RunDir(get_settings().runs_dir / run["id"]).resolved
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(resolved))


def page(api: Api, run: dict) -> str:
    html = api.browser().get(f"/runs/{run['id']}?part=main").text
    assert_clean(html)
    return html


def test_a_run_without_them_shows_none(api: Api) -> None:
    text = text_of(page(api, new_run(api)))
    for word in ("MFU", "Perplexity", "Peak memory", "Busiest expert", "warning", "How it computes", "What it reads"):
        assert word not in text, word


def test_newest_numbers(api: Api) -> None:
    run = new_run(api)
    say(run, ("eval", 1, {"eval_loss": 3.0, "perplexity": 20.09, "bits_per_byte": 1.9}),
        *(("metrics", step, METRICS | {"mfu": 0.9, "memory_peak_bytes": 10**6}) for step in range(3)),
        *(("metrics", step, METRICS | {"mfu": 0.1234}) for step in range(3, 18)),
        ("eval", 18, {"eval_loss": 1.0, "perplexity": 2.718, "bits_per_byte": 0.1666}))
    text = text_of(page(api, run))
    for fact in ("Perplexity 2.718", "Bits per byte 0.1666", "MFU 12.3 %", "Peak memory 494 MB"):
        assert fact in text, fact
    assert "Busiest expert" not in text, "a model without experts"
    say(run, ("metrics", 19, METRICS | {"mfu": 0.1, "expert_load_max": 3.53}))
    assert "Busiest expert 3.53×" in text_of(page(api, run))


def test_numbers_that_are_not_finite_are_left_out(api: Api) -> None:
    run = new_run(api)
    say(run, ("metrics", 1, METRICS | {"loss": None, "mfu": None}),
        ("eval", 1, {"eval_loss": None, "perplexity": None, "bits_per_byte": None}))
    text = text_of(page(api, run))
    assert "MFU" not in text and "Perplexity" not in text and "Peak memory 494 MB" in text


def test_warnings_stand_on_the_page(api: Api) -> None:
    run = new_run(api)
    say(run, *(("warning", step, {"message": f"Step {step} was skipped."}) for step in range(1, 8)))
    text = text_of(page(api, run))
    assert "7 warnings : Step 7 was skipped." in text.replace("warnings:", "warnings :")
    assert "Step 3 was skipped" in text and "Step 2 was skipped" not in text and "Earlier ones stand in the log" in text


def test_how_it_computes_and_why(api: Api) -> None:
    run = new_run(api)
    resolve(run, RESOLVED)
    text = text_of(page(api, run))
    for fact in ("cpu × 2", "1 thread a process", "float32 every CPU is good at it", "sdpa PyTorch's own",
                 "off 60 steps are over before it would pay", "4,096 tokens at most",
                 "16 rows of 256, 4 micro-steps, 2 ranks", "1,088 steps"):
        assert fact in text, fact
    assert "in each layer" not in text
    resolve(run, RESOLVED | {"model": PRESETS["minimind2-moe"].model.as_dict()})
    assert "4 in each layer 2 for each token, and 1 that all pass" in text_of(page(api, run))


def test_the_data_of_the_present_attempt(api: Api) -> None:
    run = new_run(api)
    say(run, ("log", 0, {"message": "Data: ...", "data": REPORT}))
    set_run(run["id"], attempt=1)
    text = text_of(page(api, run))
    for fact in ("1,979", "89.2k", "21 documents", "mean 45", "median 46, longest 1,105", "98.5 % full",
                 "349 rows of 256 tokens", "97.8 %", "1.22k tokens", "cut off at the end"):
        assert fact in text, fact
    assert "nothing is learnt" not in text and "mixture" not in text
    say(run, ("log", 0, {"message": "no report"}), ("log", 0, {"message": "Data: ...", "data": REPORT | {
        "documents": 7, "cut_tokens": 0}}), attempt=2)
    set_run(run["id"], attempt=2)
    text = text_of(page(api, run))
    assert "Documents 7" in text and "Left out" not in text


@pytest.mark.parametrize("name", HOSTILE)
def test_sources_of_a_mixture(api: Api, name: str) -> None:
    run = new_run(api)
    set_run(run["id"], attempt=1)
    sources = [{"name": name, "documents": 5, "tokens": 50, "rows": 100, "rows_per_epoch": 250, "share": 0.75,
                "held_out_documents": 0}]
    say(run, ("log", 0, {"message": name, "data": REPORT | {"sources": sources}}), ("warning", 0, {"message": name}))
    html = page(api, run)
    text = " ".join(read(html).text)
    assert text.count(name) == 3  # the source, and the warning in the line and in the list
    assert "75 %" in text and "each of its 100 is read 2.50 times a pass" in text
    meters = [a["value"] for tag, a in read(html).tags if tag == "meter"]
    assert meters == ["0.985", "0.75"]


def test_a_switch_that_is_on_is_true_and_not_a_number(api: Api) -> None:
    run = new_run(api, config={"save_best": True, "max_steps": 5})
    assert "save_best true" in text_of(page(api, run))


def test_every_number_of_the_machine_has_a_chart() -> None:
    source = (ROOT / "static" / "js" / "lib" / "run-curves.js").read_text(encoding="utf-8")
    assert [key for key in TIMING_KEYS if f'"{key}"' not in source] == []
