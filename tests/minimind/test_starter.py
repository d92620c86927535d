"""Starter corpus: one consistent world, reproducible, with questions that nobody has asked before."""

from __future__ import annotations

import hashlib
import itertools
import re

import pytest

from minimind.data import starter
from minimind.data.layouts import scan
from minimind.data.starter.lexicon import GENDERS, KINDS
from minimind.data.starter.world import LEXICONS, answer
from minimind.errors import DataError

ALL = ["en", "zh", "pt"]
#: what these tests are about; the parts for later stages are tested in test_starter_parts.py
PARTS = ("text", "dialogues")
WORLDS = [(1, None), (5, None), (5, ["zh"]), (3, ["pt"]), (10, None), (30, None)]


def texts(part: str, minutes: float, languages: list[str] | None) -> list[str]:
    rows = starter.generate(part, minutes=minutes, languages=languages)
    if part == "text":
        return [row["text"] for row in rows]
    return ["\n".join(m["content"] for m in row["conversations"]) for row in rows]


def sentences(rows: list[str]) -> list[str]:
    return [s for s in re.split(r"(?<=[.!?])\s+|(?<=[。！？])|\n", "\n".join(rows)) if s]


@pytest.mark.parametrize("part", PARTS)
def test_same_seed_same_bytes_other_seed_other_world(tmp_path, part):
    digests = []
    for name, seed in (("a", 42), ("b", 42), ("c", 43)):
        path = starter.write(part, tmp_path / name, minutes=1, seed=seed)
        digests.append(hashlib.sha256(path.read_bytes()).hexdigest())
    assert digests[0] == digests[1] != digests[2]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "c"]


@pytest.mark.parametrize("part", PARTS)
def test_the_files_are_valid_data(tmp_path, part):
    path = starter.write(part, tmp_path / "data.jsonl", minutes=1, languages=ALL)
    result = scan(path)
    assert result.layout == starter.LAYOUT_OF_PART[part] and not result.warnings
    assert result.rows == getattr(starter.plan(1), "text_rows" if part == "text" else "dialogue_rows")


@pytest.mark.parametrize(("minutes", "languages"), WORLDS)
def test_held_out_questions_occur_nowhere_but_their_facts_do(minutes, languages):
    told, talked = (set(sentences(texts(part, minutes, languages))) for part in PARTS)
    world = starter.make_world(minutes, tuple(languages) if languages else None, 42)
    asked = {sentence for sentence in told | talked if sentence.endswith(("?", "？"))}
    for person, lexicon in itertools.product(world.people, world.lexicons):
        for kind in person.held_out:
            fields = lexicon.fields(person.name, person.gender)
            for template in lexicon.kinds[kind].questions:
                question = template.format(**fields)
                assert not any(question in sentence for sentence in asked), question
            assert answer(lexicon, person, kind) in told, (person, kind)
def test_dialogues_tell_a_held_out_fact_only_to_those_who_name_nobody():
    world = starter.make_world(5, tuple(ALL), 42)
    held_out = {answer(lexicon, person, kind): lexicon.names[person.name]
                for person in world.people for lexicon in world.lexicons for kind in person.held_out}
    told = 0
    for row in starter.generate("dialogues", minutes=5, languages=ALL):
        context = ""
        for message in row["conversations"]:
            if message["role"] == "assistant":
                found = [held_out[said] for said in sentences([message["content"]]) if said in held_out]
                told += bool(found)
                assert not any(name in context for name in found), row
            context += message["content"] + "\n"
    assert told


def test_follow_up_questions_by_pronoun_are_about_the_person_named_and_not_held_out():
    world = starter.make_world(5, ("en",), 42)
    english = LEXICONS["en"]
    for row in starter.generate("dialogues", minutes=5, languages=["en"]):
        for asked, said in itertools.pairwise(row["conversations"]):
            if asked["role"] != "user":
                continue
            for kind, words in english.kinds.items():
                follow_ups = {t.format(**english.pronouns[g]) for t in words.follow_ups for g in "fm"}
                if asked["content"] in follow_ups and kind in KINDS[:6]:
                    person = next(p for p in world.people if english.names[p.name] in said["content"])
                    assert kind not in person.held_out
                    assert said["content"] == answer(english, person, kind)


@pytest.mark.parametrize(("minutes", "languages"), WORLDS)
def test_questions_are_many_spread_and_answerable(minutes, languages):
    size = starter.plan(minutes, languages)
    questions = starter.questions(minutes=minutes, languages=languages)
    assert len(questions) == 8 == len({(q.person, q.kind) for q in questions})
    assert {q.language for q in questions} == set(size.languages)
    assert len({q.person for q in questions}) >= 5 and len({q.kind for q in questions}) == min(8, len(size.kinds))
    everything = starter.questions(minutes=minutes, languages=languages, count=None)
    assert len(everything) >= 8 * len(size.languages)
    assert len(starter.questions(minutes=minutes, languages=languages, count=12)) >= 8
    for q in everything:
        lexicon = LEXICONS[q.language]
        world = starter.make_world(minutes, tuple(languages) if languages else None, 42)
        person = next(p for p in world.people if lexicon.names[p.name] == q.person)
        right = answer(lexicon, person, q.kind)
        assert starter.is_right(q, right) and starter.is_right(q, right.upper())
        assert not starter.is_right(q, "") and not starter.is_right(q, q.text)
        for other in range(len(lexicon.kinds[q.kind].values)):
            if other != person.facts[q.kind]:
                wrong = right.replace(q.expected, lexicon.kinds[q.kind].word(other, person.gender))
                assert not starter.is_right(q, wrong)
                assert not starter.is_right(q, f"{right} {wrong}")


def test_the_world_never_contradicts_itself():
    """Every statement form about a fact occurs only with the value that the world says."""
    world = starter.make_world(5, ("en", "zh", "pt"), 42)
    said = set(sentences(texts("text", 5, ALL) + texts("dialogues", 5, ALL)))
    checked = 0
    for person, lexicon in itertools.product(world.people, world.lexicons):
        for kind, place in person.facts.items():
            words = lexicon.kinds[kind]
            for other in range(len(words.values)):
                wrong = words.statements[0].format(
                    **lexicon.fields(person.name, person.gender), value=words.phrase(other, person.gender),
                    word=words.word(other, person.gender))
                if words.phrase(other, person.gender) != words.phrase(place, person.gender):
                    checked += 1
                    assert wrong not in said
    assert checked > 1000


def test_a_longer_budget_is_a_larger_world_and_all_languages():
    sizes = [starter.plan(m) for m in (0.5, 1, 2, 5, 10, 30, 120)]
    facts = [s.facts * len(s.languages) for s in sizes]
    assert facts == sorted(facts) and facts[0] < facts[-1]
    assert starter.plan(1).languages == ("en",) and starter.plan(30).languages == ("en", "zh", "pt")
    assert starter.plan(5, ["zh"]).languages == ("zh",)
    assert all(0 < s.pretrain_share < 1 and s.people <= len(GENDERS) for s in sizes)


@pytest.mark.parametrize("part", PARTS)
def test_every_language_gets_its_share(part):
    rows = texts(part, 10, None)
    chinese = sum(bool(re.search(r"[\u4e00-\u9fff]", row)) for row in rows)
    assert 0.25 < chinese / len(rows) < 0.4
    assert "MiniMind" in "".join(rows)


@pytest.mark.parametrize("lexicon", LEXICONS.values(), ids=LEXICONS)
def test_lexicons_are_complete_and_unambiguous(lexicon):
    assert tuple(lexicon.kinds) == KINDS
    assert len(lexicon.names) == len(set(lexicon.names)) == len(GENDERS)
    for a, b in itertools.permutations(lexicon.names, 2):
        assert lexicon.code != "zh" or a not in b
    for kind, words in lexicon.kinds.items():
        assert len(words.values) == len(LEXICONS["en"].kinds[kind].values)
        forms = [{words.word(i, g) for g in "mf"} for i in range(len(words.values))]
        for one, other in itertools.permutations(forms, 2):
            probe = starter.Question("", min(one), tuple(other), lexicon.code, "", kind)
            assert starter.is_right(probe, min(one)), (kind, one, other)


def test_no_template_is_left_unfilled_and_prompts_exist():
    for part in PARTS:
        assert not re.search(r"[{}|]", "".join(texts(part, 20, ALL)))
    assert set(starter.SAMPLE_PROMPTS) == set(ALL) and all(len(p) == 3 for p in starter.SAMPLE_PROMPTS.values())


@pytest.mark.parametrize(("arguments", "said"), [
    ({"languages": ["fr"]}, "'fr'"), ({"minutes": 0}, "not a time budget"), ({"minutes": float("nan")}, "time budget"),
])
def test_impossible_wishes_are_said(arguments, said):
    with pytest.raises(DataError, match=said):
        starter.questions(**arguments)
    with pytest.raises(DataError, match="no part named 'speech'"):
        starter.generate("speech")
