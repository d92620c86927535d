"""Recipes: every stage of each is possible, all of them speak about one world, and one request starts the line."""

from __future__ import annotations

from typing import get_args

import pytest

from app.pipelines.recipes import RECIPES, Recipe, line_of
from minimind.config import STAGES, RunConfig, TrainConfig, field_kind, parse_api_config
from minimind.data.starter import LAYOUT_OF_PART
from minimind.presets import PRESETS, model_config
from tests.app.conftest import Api
from tests.app.test_pipelines import end
from tests.app.test_runs import problems

EVERY = pytest.mark.parametrize("recipe", RECIPES.values(), ids=list(RECIPES))


@EVERY
@pytest.mark.parametrize("preset", PRESETS)
def test_every_stage_of_every_recipe_is_valid_for_every_size(recipe: Recipe, preset: str) -> None:
    for stage in line_of(recipe, minutes=0.1, preset=preset, languages=["pt"], seed=7):
        config = parse_api_config(stage["stage"], stage["config"])
        part = config.starter or config.starter_part
        assert LAYOUT_OF_PART[part] in STAGES[stage["stage"]].layouts
        assert (config.languages, config.seed) == (["pt"], 7)
        if "hidden_size" in stage["config"]:  # it is a model of its own, smaller than the one that teaches it
            small = model_config(preset, config.model_overrides())
            assert small.num_parameters() < 0.6 * PRESETS[preset].model.num_parameters()


def test_every_part_that_a_stage_can_learn_from_can_be_asked_for() -> None:
    layouts = {layout for stage in STAGES.values() for layout in stage.layouts}
    offered = get_args(field_kind(RunConfig.model_fields["starter"].annotation)[0])
    assert set(offered) == {part for part, layout in LAYOUT_OF_PART.items() if layout in layouts}


@EVERY
def test_the_stages_share_the_time_and_one_world(recipe: Recipe) -> None:
    stages = line_of(recipe, minutes=20)
    minutes = [s["config"]["max_minutes"] for s in stages if issubclass(STAGES[s["stage"]], TrainConfig)]
    assert sum(minutes) == pytest.approx(20) and min(minutes) > 1
    worlds = {(s["config"]["starter_minutes"], s["config"]["seed"]) for s in stages}
    assert len(worlds) == 1 and 10 < worlds.pop()[0] <= 20


@EVERY
def test_a_recipe_starts_with_one_request(api: Api, recipe: Recipe) -> None:
    answer = api.post("/pipelines", {"recipe": recipe.name, "minutes": 3, "languages": ["en"]})
    assert answer.status_code == 201, answer.text
    line = answer.json()
    assert line["name"] == f"{recipe.title}, 3 minutes"
    assert [s["stage"] for s in line["stages"]] == [s.stage for s in recipe.steps]
    for number in range(1, len(recipe.steps) + 1):
        assert (line["state"], len(line["runs"])) == ("running", number), line["error"]
        end(line["runs"][-1]["id"], "starting", "running", "completed", eval_loss=1.0, accuracy=0.95)
        line = api.get(f"/pipelines/{line['id']}").json()
    assert line["state"] == "completed"
    assert not api.get("/datasets").json()["items"], "the trainers write their data themselves"


def test_what_a_recipe_is_made_of_can_be_chosen(api: Api) -> None:
    body = {"recipe": "teacher_student", "name": "mine", "minutes": 40, "languages": ["zh", "en"], "seed": 3,
            "preset": "small-cpu"}
    line = api.post("/pipelines", body).json()
    assert line["name"] == "mine"
    vocabulary, teacher, _, student, distill = (stage["config"] for stage in line["stages"])
    assert {stage["config"]["starter_minutes"] for stage in line["stages"]} == {28.0}
    assert vocabulary["vocab_size"] == PRESETS["small-cpu"].model.vocab_size
    assert (teacher["preset"], teacher["num_hidden_layers"], teacher["max_minutes"]) == ("small-cpu", None, 18.0)
    assert (student["preset"], student["num_hidden_layers"], student["hidden_size"]) == ("small-cpu", 3, 128)
    assert distill["seed"] == 3 and distill["languages"] == ["zh", "en"] and distill["preset"] == "auto"


@pytest.mark.parametrize("body, fields", [
    ({"recipe": "soup"}, {"recipe"}),
    ({"recipe": "tools", "stages": [{"stage": "pretrain"}]}, {"stages"}),
    ({"recipe": "tools", "minutes": 0, "languages": ["fr"], "seed": -1, "preset": "huge"},
     {"minutes", "languages.0", "seed", "preset"}),
    ({"recipe": "tools", "languages": []}, {"languages"}),
    ({"name": "x", "stages": [{"stage": "pretrain"}], "minutes": 3, "seed": 1}, {"minutes", "seed"}),
    ({"minutes": 3}, {"name", "stages", "minutes"}),
    ({"recipe": 5}, {"recipe", "name"}),
])
def test_a_request_that_makes_no_sense_hears_all_of_it(api: Api, body: dict, fields: set) -> None:
    assert problems(api.post("/pipelines", body)).keys() == fields
    assert api.get("/pipelines").json()["items"] == []


def test_recipes_are_listed_and_shown(api: Api) -> None:
    items = api.get("/recipes").json()["items"]
    assert [item["name"] for item in items] == list(RECIPES)
    for item in items:
        assert item["gives"].endswith(".") and 0.99 < sum(stage["share"] for stage in item["stages"]) < 1.01
    html = api.browser().get("/pipelines/new").text
    for recipe in RECIPES.values():
        assert f'value="{recipe.name}"' in html and recipe.gives in html
    assert html.count('class="track"') == len(RECIPES) + 1, "teacher and student are two models"
