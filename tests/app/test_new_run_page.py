"""The form of a new run: made from the schema, prefilled by its address, kind about what it cannot use."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from app.core.db import transaction
from app.core.models import Dataset
from app.runs.form import BUDGETS, stage_form, text_of
from app.runs.prefill import PLACES
from minimind.config import ADAPTABLE, PATH_KEYS, STAGES, stage_schema
from tests import database_rig
from tests.app.conftest import Api
from tests.app.test_pages import HOSTILE, assert_clean
from tests.app.test_runs import add_checkpoint, add_dataset, add_tokenizer, new_run

VOID = {"input", "link", "meta", "img", "br"}


class Node:
    """An element with its attributes, its text and what is in it."""

    def __init__(self, tag: str, attributes: dict, parent: Node | None):
        self.tag, self.attributes, self.parent, self.children, self.own = tag, attributes, parent, [], []

    def all(self, *tags: str, **attributes: str) -> list[Node]:
        here = [c for c in self.children if (not tags or c.tag in tags)
                and all(c.attributes.get(k.replace("_", "-")) == v for k, v in attributes.items())]
        return here + [n for c in self.children for n in c.all(*tags, **attributes)]

    @property
    def text(self) -> str:
        return "".join(p if isinstance(p, str) else p.text for p in self.own)


class Tree(HTMLParser):
    def __init__(self, html: str):
        super().__init__()
        self.root = self.at = Node("", {}, None)
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        node = Node(tag, dict(attrs), self.at)
        self.at.children.append(node)
        self.at.own.append(node)
        if tag not in VOID:
            self.at = node

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        while self.at.tag != tag and self.at.parent:
            self.at = self.at.parent
        self.at = self.at.parent or self.at

    def handle_data(self, data: str) -> None:
        self.at.own.append(data)


def form(api: Api, query: str = "") -> Node:
    answer = api.browser().get(f"/runs/new{query}")
    assert answer.status_code == 200, answer.text
    assert_clean(answer.text)
    return Tree(answer.text).root


def field(page: Node, name: str) -> Node:
    found = page.all("div", data_field=name)
    assert len(found) == 1, name
    return found[0]


def value(page: Node, name: str) -> str:
    """What stands in a control, of an option or of the request."""
    for select in page.all("select", name=name):
        return next((o.attributes["value"] for o in select.all("option") if "selected" in o.attributes), "")
    controls = page.all("input", "textarea", name=name)
    if controls[0].attributes.get("type") in ("checkbox", "radio"):
        return ",".join(c.attributes["value"] for c in controls if "checked" in c.attributes)
    return controls[0].text if controls[0].tag == "textarea" else controls[0].attributes.get("value", "")


def said(page: Node) -> str:
    return " ".join(p.text for p in page.all("p", **{"class": "notice warn"}))


@pytest.mark.parametrize("stage", STAGES)
def test_each_option_has_one_labelled_control_with_its_help(api: Api, stage: str) -> None:
    page = form(api, f"?stage={stage}")
    properties = stage_schema(stage)["schema"]["properties"]
    shown = [n.attributes["data-field"] for n in page.all("div") if "data-field" in n.attributes]
    assert sorted(shown) == sorted(properties) and not set(shown) & set(PATH_KEYS)
    ids = [n.attributes["id"] for n in page.all() if "id" in n.attributes]
    assert len(ids) == len(set(ids))
    for name, schema in properties.items():
        found = field(page, name)
        controls = found.all("input", "select", "textarea")
        groups = found.all("fieldset")
        assert len(groups) == 1 or len(controls) == 1, name
        control = groups[0] if groups else controls[0]
        if groups:
            labels = groups[0].all("legend")
            assert all(c.parent and c.parent.tag == "label" for c in controls)
        else:
            labels = found.all("label", **{"for": control.attributes["id"]})
        assert len(labels) == 1 and f"--{name}" in labels[0].text and len(labels[0].text) > len(f"--{name}") + 2
        described = control.attributes["aria-describedby"].split()
        assert found.all(id=described[0])[0].text == schema["description"]
        assert found.all(id=described[-1])[0].attributes["class"] == "field-error"
        assert set(described) <= set(ids)
        if schema.get("unit"):
            assert schema["unit"] in found.text
        assert {c.attributes["name"] for c in controls} == {name}


@pytest.mark.parametrize("stage", STAGES)
def test_a_link_can_say_every_option(api: Api, stage: str) -> None:
    """And the form shows it, so that a reload and a switch of the stage keep it."""
    examples = {"choice": lambda f: f.options[-1].value, "choices": lambda f: f.options[0].value,
                "flag": lambda f: "1", "switch": lambda f: "0", "integer": lambda f: "321",
                "number": lambda f: "1e-1", "text": lambda f: "<b>"}
    wanted = {f.name: examples[f.kind](f) for f in stage_form(stage).fields}
    shown = form(api, "?" + "&".join(f"{k}={v}" for k, v in {"stage": stage, **wanted}.items()))
    assert {name: value(shown, name) for name in wanted} == wanted


def test_long_texts_of_a_link_are_kept(api: Api) -> None:
    tags, notes = ",".join(f"tag-{n:04}" for n in range(110)), "n" * 3000
    page = form(api, f"?tags={tags}&notes={notes}")
    assert (value(page, "tags"), value(page, "notes")) == (tags, notes)


def test_limits_are_numbers_as_one_types_them() -> None:
    for stage in STAGES:
        assert not any("," in part for f in stage_form(stage).fields for part in f.limits.split(", ")), stage


def test_an_option_never_has_the_name_of_something_else() -> None:
    for stage in STAGES:
        assert not set(stage_schema(stage)["schema"]["properties"]) & set(PLACES)
    budgets = {name for names in BUDGETS.values() for name in names}
    assert budgets <= set(stage_schema("pretrain")["schema"]["properties"])


def test_every_option_has_a_group_and_a_label() -> None:
    for stage in STAGES:
        for group in stage_form(stage).groups:
            assert group.title and group.sentence, group.name
    labels = [f.label for f in stage_form("pretrain").fields]
    assert len(labels) == len(set(labels))
    assert [text_of(v) for v in (1.0, 1e-05, None, True, ["en", "zh"])] == ["1", "1e-05", "", "1", "en,zh"]


def test_what_fits_the_stage_can_be_chosen(api: Api, tmp_path: Path) -> None:
    text, dialogues = add_dataset("text"), add_dataset("conversations")
    add_dataset("text", "importing")
    base = add_checkpoint(tmp_path, new_run(api, name="older")["id"], step=1000)
    tokenizer = add_tokenizer()
    page = form(api, f"?stage=pretrain&dataset_id={text}&base_checkpoint_id={base}&tokenizer={tokenizer}&name=mine"
                     "&devices=cpu&ranks=2&priority=5&tags=a,b&notes=why&max_minutes=2.5&unknown=1")
    options = {o.attributes["value"] for o in page.all("select", name="dataset_id")[0].all("option")}
    assert options == {"", text}
    assert [o.text for o in page.all("optgroup")[0].all("option")] == ["older, step 1,000 · loss 2.5"]
    expected = {"dataset_id": text, "base_checkpoint_id": base, "tokenizer": tokenizer, "name": "mine",
                "devices": "cpu", "ranks": "2", "priority": "5", "tags": "a,b", "notes": "why", "max_minutes": "2.5",
                "budget": "minutes", "stage": "pretrain"}
    assert {name: value(page, name) for name in expected} == expected
    other = form(api, f"?stage=sft&dataset_id={text}")
    assert "harbour has the layout text" in said(other) and value(other, "dataset_id") == ""
    assert value(form(api, f"?stage=sft&dataset_id={dialogues}"), "dataset_id") == dialogues
    none = form(api, "?stage=tokenizer")
    assert not none.all(name="base_checkpoint_id") and not none.all(name="budget")


def test_a_stage_asks_for_what_it_cannot_do_without(api: Api, tmp_path: Path) -> None:
    pairs = add_dataset("dpo")
    text = add_dataset("text")
    first = form(api, "?stage=lora")
    (needed,) = first.all("div", data_place="base_checkpoint_id")
    assert "data-required" in needed.attributes and "There is no checkpoint yet" in needed.text
    id = add_checkpoint(tmp_path, new_run(api, name="older")["id"])
    for stage, places in {"pretrain": [], "sft": [], "lora": ["base_checkpoint_id"], "dpo": ["base_checkpoint_id"],
                          "distill": ["teacher_checkpoint_id"], "tokenizer": []}.items():
        page = form(api, f"?stage={stage}&base_checkpoint_id={id}&teacher_checkpoint_id={id}")
        found = [n.attributes["data-place"] for n in page.all("div") if "data-required" in n.attributes]
        assert found == places, stage
        if stage != "tokenizer":
            assert value(page, "base_checkpoint_id") == id
        assert bool(page.all("select", name="teacher_checkpoint_id")) == (stage == "distill")
        if stage == "distill":
            assert value(page, "teacher_checkpoint_id") == id
    options = {o.attributes["value"] for o in form(api, "?stage=dpo").all("select", name="dataset_id")[0].all("option")}
    assert options == {"", pairs} and text not in options
    assert "teacher of this link is not there" in said(form(api, "?stage=distill&teacher_checkpoint_id=nope"))
    run = new_run(api, stage="distill", teacher_checkpoint_id=id, config={"max_steps": 3})
    assert value(form(api, f"?clone={run['id']}"), "teacher_checkpoint_id") == id


def test_the_options_of_one_stage_come_first_and_open(api: Api) -> None:
    for stage, group in {"lora": "adapter", "dpo": "preference", "distill": "teacher"}.items():
        page = form(api, f"?stage={stage}")
        groups = [d for d in page.all("section", data_stage_part="options")[0].all("details")]
        assert groups[0].attributes["data-group"] == group and "open" in groups[0].attributes
        assert not any("open" in d.attributes for d in groups[1:])
    assert value(form(api, "?stage=lora"), "lora_targets") == ",".join(ADAPTABLE)
    assert value(form(api, "?stage=lora&lora_targets=k_proj,up_proj"), "lora_targets") == "k_proj,up_proj"


def test_a_wrong_link_says_so_kindly(api: Api) -> None:
    importing = add_dataset("text", "importing")
    page = form(api, "?stage=%3Cb%3E&clone=nope&dataset_id=nope&base_checkpoint_id=%00&preset=huge&devices=quantum"
                     "&tokenizer=nope&budget=%F0%9F%98%80&attention=magic&max_steps=many&languages=en,xx")
    for words in ("There is no stage “<b>”", "The run to copy", "The dataset of this link", "There is no preset “huge”",
                  "no kind of device “quantum”", "The tokenizer of this link"):
        assert words in said(page), words
    assert (value(page, "stage"), value(page, "preset"), value(page, "devices")) == ("pretrain", "auto", "auto")
    assert value(page, "attention") == "auto" and value(page, "languages") == "en"
    assert value(page, "max_steps") == "many"  # shown as typed; the form itself says what is wrong with it
    assert "still being imported" in said(form(api, f"?dataset_id={importing}"))


def test_a_copy_has_the_values_of_its_original(api: Api) -> None:
    config = {"preset": "small-cpu", "max_steps": 60, "learning_rate": 0.001, "use_compile": True,
              "languages": ["en", "pt"], "grad_clip": 0.5, "seed": 42}
    dataset = add_dataset("text")
    run = new_run(api, name="first", config=config, dataset_id=dataset, devices={"kind": "cpu", "count": 2}, priority=3,
                  tags=["a", "b"], notes="why")
    page = form(api, f"?clone={run['id']}")
    expected = {"stage": "pretrain", "name": "first (copy)", "preset": "small-cpu", "max_steps": "60",
                "budget": "steps", "learning_rate": "0.001", "use_compile": "1", "languages": "en,pt",
                "grad_clip": "0.5", "dataset_id": dataset, "devices": "cpu", "ranks": "2", "priority": "3",
                "tags": "a, b", "notes": "why", "seed": "", "batch_size": ""}
    assert {name: value(page, name) for name in expected} == expected
    assert page.all("a", href=f"/runs/{run['id']}")[0].text == "first"
    assert value(form(api, f"?clone={run['id']}&grad_clip=2"), "grad_clip") == "2"
    edited = form(api, f"?clone={run['id']}&edited=1&grad_clip=2")
    assert (value(edited, "grad_clip"), value(edited, "preset"), value(edited, "name")) == ("2", "auto", "")
    assert edited.all("run-form")[0].attributes["data-clone"] == run["id"]
    foxes = new_run(api, notes="🦊" * 600)["id"]  # two of a script's characters each
    assert value(form(api, f"?clone={foxes}&edited=1"), "notes") == "🦊" * 600
    long = new_run(api, notes="why " * 500)["id"]
    assert value(form(api, f"?clone={long}&edited=1"), "notes").strip() == ("why " * 500).strip()
    assert value(form(api, f"?clone={long}&edited=1&notes="), "notes") == "", "they were taken away"
    assert value(form(api, f"?clone={run['id']}&edited=1"), "notes") == "", "short ones stand in the address"
    both = new_run(api, config={"max_steps": 5, "max_minutes": 1})
    assert value(form(api, f"?clone={both['id']}"), "budget") == "both"


def test_machines_decide_which_devices_are_offered(api: Api) -> None:
    def offered() -> dict[str, str]:
        choices = form(api).all("select", name="devices")[0].all("option")
        return {o.attributes["value"]: o.attributes["data-most"] for o in choices}

    assert offered() == {"auto": "", "cpu": "", "cuda": ""}
    database_rig.add_host(cpu_slots=2)
    assert offered() == {"auto": "", "cpu": "16"}
    database_rig.add_host("big", cpu_slots=8, devices=[{"id": "cuda:0", "name": "H<b>", "memory_bytes": 8}])
    assert offered() == {"auto": "", "cpu": "32", "cuda": "1", "cuda:0": ""}
    named = form(api, "?devices=cuda:7")
    assert value(named, "devices") == "cuda:7"
    hosts = json.loads(named.all("run-form")[0].attributes["data-machines"])["hosts"]
    assert [h["is_alive"] for h in hosts] == [True, True]


def test_hostile_names_are_text(api: Api, tmp_path: Path) -> None:
    for name in HOSTILE:
        id = add_dataset()
        with transaction() as session:
            session.get_one(Dataset, id).name = name
        run = new_run(api, name=name, notes=name)
        add_checkpoint(tmp_path, run["id"])
        database_rig.add_host(name[:30], cpu_slots=2)
        page = form(api, f"?clone={run['id']}&dataset_id={id}&wandb_project=%22%3E%3Cscript%3Ealert(1)%3C/script%3E")
        assert value(page, "notes") == name and value(page, "wandb_project") == '"><script>alert(1)</script>'
        assert any(name in o.text for o in page.all("option"))
        assert len(page.all("h1")) == 1 and not page.all("script", src=None)


def test_the_part_of_a_stage_and_who_may_not_write(api: Api) -> None:
    part = api.browser().get("/runs/new", params={"stage": "sft", "part": "stage", "batch_size": "8"}).text
    assert "<html" not in part and 'data-stage-part="basics"' in part and 'data-stage-part="options"' in part
    assert value(Tree(part).root, "batch_size") == "8"
    assert "data-may-not-write" not in api.http.get("/runs/new").text
    viewer = api.as_role("guest", "viewer").get("/runs/new")
    assert viewer.status_code == 200 and "data-may-not-write" in viewer.text
    assert api.anonymous().get("/runs/new").status_code == 401
