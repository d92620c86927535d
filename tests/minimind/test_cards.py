"""Model cards: what a run has told of itself, and that nobody's text becomes a link, a heading or YAML."""

from __future__ import annotations

import ast
import json
import re
import shlex
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import yaml

from minimind.events import EventWriter
from minimind.formats.card import MOST_SAMPLES, plain, write_card
from minimind.formats.commands import commands
from minimind.formats.curve import HEIGHT, WIDTH, curve_svg
from minimind.formats.origins import CURVE_POINTS, DataSource, Named, StageDone, Story, story_of, thinned
from minimind.manifest import Manifest
from minimind.presets import ModelConfig
from minimind.run_dir import RunDir, write_json
from minimind.tokenizer import Tokenizer
from tests.checkpoint_rig import make_checkpoint

HOSTILE = "](http://evil) <script>x</script> ![p](http://evil/p.png)\n# Heading | `code` $$x$$ www.evil.example"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("runs") / "harbour" / "checkpoints" / "step-00000001-a1", seed=1)


def card_of(checkpoint: Path, story: Story, out: Path, name: str = "my-model") -> tuple[dict, str]:
    """The front matter as YAML reads it, and the rest."""
    write_card(out, name, ModelConfig.from_dict(Manifest.read(checkpoint).model), Tokenizer.load(checkpoint), story)
    _, front, text = (out / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(front), text


def stage(name: str = "Harbour", **values: object) -> StageDone:
    named = Named(name, (DataSource("Tides", 1234, 5_600_000, "CC0"),), "Small words")
    return StageDone(**{"stage": "sft", "step": 600, "tokens": 98_304, "loss": 1.5, "eval_loss": 1.6251,
                        "named": named, **values})


def test_a_card_says_what_it_is_where_it_comes_from_and_how_good_it_is(checkpoint: Path, tmp_path: Path) -> None:
    story = Story((stage("First", stage="pretrain", eval_loss=2.75), stage()), ("en", "zh"),
                  tuple((step, 3 - step / 300) for step in range(0, 601, 20)), ((300, 2.1), (600, 1.6251)), 0.7312,
                  (("Who are you?", "I am a lamp."),))
    front, text = card_of(checkpoint, story, tmp_path)
    assert front["language"] == ["en", "zh"] and front["library_name"] == "transformers"
    assert front["pipeline_tag"] == "text-generation" and "license" not in front
    config = ModelConfig.from_dict(Manifest.read(checkpoint).model)
    for said in ("# Harbour\n", f"| Parameters | {config.num_parameters():,} |", "| Tides | supervised fine-tuning | "
                 "1,234 | 5.6 MB | CC0 |", "| pretraining | First | 600 | 98,304 | 2.7500 |",
                 "Held-out loss: 1.6251 nats per token, 0.7312 bits per byte.", "| tokenizer | Small words |",
                 "Who are you?\n\n    I am a lamp.", "![Loss by step](training-curve.svg)", "| 600 | 1.0000 | 1.6251 |",
                 'AutoTokenizer.from_pretrained(\'./my-model\')', "vllm serve ./my-model"):
        assert said in text, said
    assert (tmp_path / "training-curve.svg").exists()


def test_without_a_story_the_card_is_short_and_true(checkpoint: Path, tmp_path: Path) -> None:
    front, text = card_of(checkpoint, Story(), tmp_path)
    assert "language" not in front and text.startswith("\n# my\\-model\n")
    assert not any(word in text for word in ("## Training", "## Evaluation", "## What it learnt", "None", "nan"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["README.md"], "no curve of nothing"


def test_nobody_s_text_means_anything(checkpoint: Path, tmp_path: Path) -> None:
    named = Named(HOSTILE, (DataSource(HOSTILE, 1, 10, HOSTILE),), HOSTILE)
    story = Story((stage(named=named, stage=HOSTILE),), ("en", "x\n- evil: 1"), ((1, 2.0),), (), None,
                  tuple((f"{HOSTILE}{i}", f"ok\n\n{HOSTILE}") for i in range(9)))
    front, text = card_of(checkpoint, story, tmp_path)
    assert set(front) == {"language", "library_name", "pipeline_tag", "tags"} and front["language"][1] == "x\n- evil: 1"
    outside = re.sub(r"```.*?```|^    .*$", "", text, flags=re.DOTALL | re.MULTILINE)
    assert "<script" not in outside and not re.search(r"(?<!\\)\]\((?!training-curve\.svg)", outside)
    assert not re.search(r"^# Heading", outside, re.MULTILINE) and "www.evil" not in outside
    assert outside.count("![") == 1 + outside.count("!\\[") - outside.count("\\!\\["), "the curve alone is a picture"
    rows = [line for line in outside.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} <= {3, 4, 6}, "no cell makes two"
    assert text.count("    ok\n") == MOST_SAMPLES


def test_plain_text_stays_readable() -> None:
    assert plain("Harbour 2 é 你好") == "Harbour 2 é 你好"
    assert plain("a\n\x1b b\u2028c") == "a b c" and plain("<b>*x*") == r"&lt;b\>\*x\*"


# -- what a run says ------------------------------------------------------------------------------------------------


def write_events(run: RunDir, attempt: int, *events: tuple) -> None:
    directory = run.path / "attempts" / str(attempt)
    directory.mkdir(parents=True)
    writer = EventWriter(directory / "events.jsonl", attempt)
    for kind, step, data in events:
        writer.write(kind, data, step=step)
    writer.close()


def test_a_story_is_read_from_the_runs_that_are_there(tmp_path: Path) -> None:
    """Up to the step of the checkpoint; of steps that were done twice, the last time."""
    first = make_checkpoint(tmp_path / "first" / "checkpoints" / "step-00000004-a1", seed=1)
    last = make_checkpoint(tmp_path / "second" / "checkpoints" / "step-00000004-a2", seed=2)
    manifest = Manifest.read(last)
    manifest.step, manifest.eval_loss = 4, 1.25
    manifest.lineage = {"base": str(first), "world": {"languages": ["en", "pt"]}}
    manifest.seal(last)
    run = RunDir(tmp_path / "second")
    write_json(run.config, {"data_path": str(tmp_path / "tides.jsonl")})
    (tmp_path / "tides.jsonl").write_text("x" * 700)
    write_events(run, 1, ("metrics", 1, {"loss": 3.0}), ("metrics", 2, {"loss": 2.9}), ("metrics", 3, {"loss": 9.9}),
                 ("eval", 3, {"eval_loss": 9.9}), ("sample", 3, {"prompt": "Who?", "text": "old"}))
    write_events(run, 2, ("metrics", 3, {"loss": 2.5}), ("sample", 3, {"prompt": "Who?", "text": "Ana."}),
                 ("metrics", 4, {"loss": None}), ("eval", 4, {"eval_loss": 1.25, "bits_per_byte": 0.5}),
                 ("metrics", 5, {"loss": 1.0}), ("eval", 5, {"eval_loss": 1.0}),
                 ("sample", 5, {"prompt": "Who?", "text": "later"}))
    story = story_of(last)
    assert [(s.stage, s.step, s.named.run) for s in story.stages] == [("sft", 1, "first"), ("sft", 4, "second")]
    assert story.stages[1].named.data == (DataSource("tides.jsonl", bytes=700),) and story.languages == ("en", "pt")
    assert story.curve == ((1, 3.0), (2, 2.9), (3, 2.5)) and story.held_out == ((4, 1.25),)
    assert story.bits_per_byte == 0.5 and story.samples == (("Who?", "Ana."),)


def test_what_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    assert story_of(tmp_path / "nothing") == Story()
    path = make_checkpoint(tmp_path / "run" / "checkpoints" / "step-00000001-a1", seed=1)
    manifest = Manifest.read(path)
    manifest.lineage = {"base": str(path)}  # in a circle
    manifest.seal(path)
    assert len(story_of(path).stages) == 1
    manifest.lineage = {"base": str(tmp_path / "gone" / "checkpoints" / "step-00000001-a1")}
    manifest.seal(path)
    assert [s.named for s in story_of(path).stages] == [Named("run")]


def test_a_long_curve_is_thinned_to_means() -> None:
    points = [(step, float(step % 2)) for step in range(4800)]
    made = thinned(points)
    assert len(made) == CURVE_POINTS and made[-1][0] == 4799 and {loss for _, loss in made} == {0.5}
    assert thinned(points[:10]) == tuple(points[:10])


# -- the picture and the commands --------------------------------------------------------------------------------------


@pytest.mark.parametrize("lines", [
    [("training loss", [(0, 3.0), (10, 2.0)]), ("held-out loss", [(5, 2.5)])], [("one", [(7, 1.0)]), ("none", [])],
    [("<b> & \"q\"", [(0, 1.0), (1, 1.0)])]])
def test_a_curve_is_a_picture_whose_points_lie_within(lines: list) -> None:
    picture = ElementTree.fromstring(curve_svg("Loss <1>", lines))
    drawn = [(name, points) for name, points in lines if points]
    found = picture.findall("{*}polyline")
    assert len(found) == len(drawn)
    for line, (_, points) in zip(found, drawn, strict=True):
        places = [tuple(map(float, point.split(","))) for point in line.get("points").split()]
        assert len(places) == len(points) and all(0 < x < WIDTH and 0 < y < HEIGHT for x, y in places)
        by_loss = sorted(zip((loss for _, loss in points), (y for _, y in places), strict=True))
        assert [y for _, y in by_loss] == sorted((y for _, y in places), reverse=True), "a lower loss stands lower"
    words = [text.text for text in picture.findall("{*}text")]
    assert all(name in words for name, _ in drawn) and curve_svg("Loss <1>", lines) == curve_svg("Loss <1>", lines)


@pytest.mark.parametrize("name", ["my-model.gguf", "it's $(x) `y`;.gguf"])
def test_commands_mean_one_file_whatever_its_name(name: str) -> None:
    said = {one["tool"]: one["text"] for one in commands("gguf", name)}
    assert shlex.split(said["llama.cpp"])[:3] == ["llama-cli", "-m", name]
    assert shlex.split(said["llama.cpp server"])[2] == name
    create, run = said["ollama"].splitlines()
    stem = name.removesuffix(".gguf")
    assert shlex.split(create) == ["ollama", "create", stem.lower(), "-f", f"{stem}.Modelfile"]
    assert shlex.split(run) == ["ollama", "run", stem.lower()]


@pytest.mark.parametrize("format", ["hf", "merged", "peft"])
def test_programs_are_python(format: str) -> None:
    said = {one["tool"]: one["text"] for one in commands(format, "it's")}
    program = ast.unparse(ast.parse(said["peft" if format == "peft" else "transformers"]))
    assert json.dumps("./it's") in program
    assert format == "peft" or shlex.split(said["vLLM"]) == ["vllm", "serve", "./it's", "--served-model-name", "it's"]
    assert commands("pth", "x.pth") == commands("minimind_lora", "x.pth") == []
