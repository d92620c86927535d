"""Curves against plain Python: attempts resolved, every spike and every NaN kept, zoom, axes."""

from __future__ import annotations

import math
import random
import time

import numpy as np
import pytest

from app.core.db import transaction
from app.core.models import Attempt, Event, MetricChunk
from app.core.settings import get_settings
from app.runs.metrics import smoothed, thin
from minimind.presets import ModelConfig
from minimind.run_dir import write_json
from tests.app.conftest import Api
from tests.app.test_runs import new_run


def add_attempt(run_id: str, number: int, resumed_from: int | None, steps: range, *, t0: float = 0.0,
                value=lambda step: float(step), key: str = "loss", chunk: int = 7) -> None:
    """An attempt with one point of ``key`` a step, one second apart, stored in chunks."""
    with transaction() as session:
        if session.get(Attempt, (run_id, number)) is None:
            session.add(Attempt(run_id=run_id, number=number, state="closed", host_id="h", boot_id="b",
                                started_at=t0, resumed_from_step=resumed_from))
        session.flush()
        for first in range(0, len(steps), chunk):
            part = list(steps)[first:first + chunk]
            session.add(MetricChunk(run_id=run_id, attempt=number, first_step=part[0], last_step=part[-1], data={
                "step": part, "tokens": [s * 100 for s in part], "t": [t0 + s for s in part],
                key: [v if v is not None and math.isfinite(v) else None for v in map(value, part)]}))


def series(api: Api, run_id: str, key: str = "loss", **params: object) -> dict:
    answer = api.get(f"/runs/{run_id}/metrics", keys=key, **params)
    assert answer.status_code == 200, answer.text
    return answer.json()["series"][key]


def test_each_step_is_answered_by_its_highest_attempt(api: Api) -> None:
    id = new_run(api)["id"]
    add_attempt(id, 1, 0, range(1, 31), value=lambda s: 100 + s)
    add_attempt(id, 2, 20, range(21, 26), value=lambda s: 200 + s)
    add_attempt(id, 3, 10, range(11, 16), value=lambda s: 300 + s)  # its last checkpoint was older still
    add_attempt(id, 4, None, range(0), value=lambda s: 0)  # began, but said nothing yet
    expected = {s: 100 + s for s in range(1, 11)} | {s: 300 + s for s in range(11, 16)}
    found = series(api, id)
    assert dict(zip(found["x"], found["y"], strict=True)) == expected
    assert found["total_points"] == 15 and found["x"] == sorted(expected)


def test_a_later_attempt_hides_what_was_beyond_its_start_at_once(api: Api) -> None:
    id = new_run(api)["id"]
    add_attempt(id, 1, 0, range(1, 31))
    add_attempt(id, 2, 12, range(0))
    assert series(api, id)["x"] == list(range(1, 13))


def test_two_values_of_one_step_are_one_point(api: Api) -> None:
    id = new_run(api)["id"]
    add_attempt(id, 1, 0, range(1, 11), key="eval_loss", value=lambda s: 1.0)
    add_attempt(id, 2, 10, range(10, 12), key="eval_loss", value=lambda s: 2.0)
    found = series(api, id, "eval_loss")
    assert found["x"] == list(range(1, 12)) and found["y"] == [1.0] * 9 + [2.0] * 2


def test_axes(api: Api) -> None:
    id = new_run(api)["id"]
    add_attempt(id, 1, 0, range(1, 11), t0=1000)
    add_attempt(id, 2, 5, range(6, 9), t0=90_000)  # a night later
    assert series(api, id, x="tokens")["x"] == [s * 100 for s in range(1, 9)]
    assert series(api, id, x="time")["x"] == [0, 1, 2, 3, 4, 4, 5, 6], "the pause is no time"
    assert api.get(f"/runs/{id}/metrics").json()["x"] == "step"
    assert api.get(f"/runs/{id}/metrics", x="watts").status_code == 422
    zoomed = series(api, id, **{"from": 3, "to": 5})
    assert zoomed == {"x": [3, 4, 5], "y": [3.0, 4.0, 5.0], "total_points": 3}
    assert series(api, id, x="tokens", **{"from": 250})["x"][0] == 300


def test_flops_are_tokens_times_what_one_costs(api: Api) -> None:
    id = new_run(api)["id"]
    add_attempt(id, 1, 0, range(1, 4))
    model = ModelConfig(hidden_size=64, num_hidden_layers=2)
    path = get_settings().runs_dir / id / "resolved.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"model": model.as_dict(), "max_seq_len": 128})
    assert series(api, id, x="flops")["x"] == [s * 100 * model.flops_per_token(128) for s in range(1, 4)]
    assert len(series(api, id, x="flops", **{"from": 200 * model.flops_per_token(128)})["x"]) == 2


def test_keys(api: Api) -> None:
    id = new_run(api)["id"]
    add_attempt(id, 1, 0, range(1, 5))
    add_attempt(id, 1, 0, range(1, 5), key="lr")
    assert api.get(f"/runs/{id}/metrics").json()["series"].keys() == {"loss", "lr"}
    answer = api.get(f"/runs/{id}/metrics", keys="loss,nothing").json()["series"]
    assert answer["nothing"] == {"x": [], "y": [], "total_points": 0} and len(answer["loss"]["x"]) == 4
    assert api.get("/runs/nope/metrics").status_code == 404
    assert api.get(f"/runs/{id}/metrics", points=0).status_code == 422


def test_a_long_curve_keeps_its_extremes(api: Api) -> None:
    """Against the plain definition: every bin's smallest and largest value is among the points sent."""
    id = new_run(api)["id"]
    source = random.Random(1)
    values = [source.gauss(0, 1) for _ in range(20_000)]
    for spike in (5_000, 5_001, 12_345):
        values[spike] = 50.0 if spike != 5_001 else -50.0
    broken = {77, 9_000, 9_001, 19_999}
    add_attempt(id, 1, 0, range(1, len(values) + 1), chunk=4_000,
                value=lambda s: math.nan if s - 1 in broken else values[s - 1])
    found = series(api, id, points=1000)
    assert found["total_points"] == 20_000 and 500 < len(found["x"]) <= 1000
    shown = dict(zip(found["x"], found["y"], strict=True))
    assert shown[5_001] == 50.0 and shown[5_002] == -50.0 and shown[12_346] == 50.0
    assert shown[78] is None and shown[20_000] is None and (shown.get(9_001, 0) is None or shown.get(9_002, 0) is None)
    assert found["x"][0] == 1 and found["x"][-1] == 20_000
    for x, y in shown.items():
        assert y is None if x - 1 in broken else y == values[x - 1]


@pytest.mark.parametrize("length, points", [(17, 16), (100, 33), (1_000, 64), (5_003, 500), (50_000, 2_000)])
@pytest.mark.parametrize("broken", [0.0, 0.001, 0.3, 1.0])
def test_thinning_against_brute_force(length: int, points: int, broken: float) -> None:
    source = np.random.default_rng(length)
    y = source.standard_cauchy(length)
    y[source.random(length) < broken] = np.nan
    kept = thin(y, points)
    assert len(kept) <= points and (np.diff(kept) > 0).all() and {0, length - 1} <= set(kept.tolist())
    finite = y[np.isfinite(y)]
    if len(finite):
        assert np.nanmax(y[kept]) == finite.max() and np.nanmin(y[kept]) == finite.min()
    if np.isnan(y).any():
        assert np.isnan(y[kept]).any()


def plain_average(y: list[float], weight: float) -> list[float]:
    """The definition: an average that begins at 0, divided by the weight that it has seen."""
    mean, share, found = 0.0, 0.0, []
    for value in y:
        if math.isfinite(value):
            mean, share = weight * mean + (1 - weight) * value, weight * share + (1 - weight)
            found.append(mean / share)
        else:
            found.append(math.nan)
    return found


@pytest.mark.parametrize("weight", [0.0, 1e-300, 0.5, 0.9, 0.999, 0.999999])
@pytest.mark.parametrize("length", [0, 1, 2, 128, 129, 192, 1_000, 9_003])
@pytest.mark.parametrize("broken", [0.0, 0.2, 1.0])
def test_smoothing_against_a_plain_loop(weight: float, length: int, broken: float) -> None:
    source = np.random.default_rng(length)
    y = 5 + source.standard_normal(length)
    y[source.random(length) < broken] = [np.nan, np.inf][length % 2]
    np.testing.assert_allclose(smoothed(y, weight), plain_average(y.tolist(), weight), rtol=1e-9)


def test_smoothing_of_a_million_points_is_quick() -> None:
    y = np.random.default_rng(0).standard_normal(1_000_000)
    began = time.perf_counter()
    smoothed(y, 0.99)
    assert time.perf_counter() - began < 0.5, "about 0.015 s on an idle core"


def test_smoothing_never_changes_with_the_zoom(api: Api) -> None:
    id = new_run(api)["id"]
    source = random.Random(2)
    values = [source.gauss(3, 1) if i % 50 else math.nan for i in range(3_000)]
    add_attempt(id, 1, 0, range(1, 3_001), chunk=1_000, value=lambda s: values[s - 1])
    expected = plain_average(values, 0.95)
    for params in ({}, {"points": 100}, {"points": 64, "from": 1_500, "to": 2_222.5}, {"from": 7, "to": 7}):
        found = series(api, id, smooth=0.95, **params)
        assert len(found["smooth"]) == len(found["x"]) == len(found["y"]) > 0
        for x, y, mean in zip(found["x"], found["y"], found["smooth"], strict=True):
            assert (mean is None) == (y is None)
            assert mean is None or mean == pytest.approx(expected[x - 1], rel=1e-9)
        last = found["x"][-1]
        assert found["smooth_points"] == sum(map(math.isfinite, values[:last]))
        assert found["smooth_last"] == pytest.approx([m for m in expected[:last] if math.isfinite(m)][-1])
        unsmoothed = series(api, id, **params)
        assert unsmoothed == {k: found[k] for k in ("x", "y", "total_points")}
    part = series(api, id, smooth=0.95, to=1_001)  # step 1,001 is a NaN
    k, mean, value = part["smooth_points"], part["smooth_last"], values[1_001]
    onward = (0.05 * value + 0.95 * (1 - 0.95**k) * mean) / (1 - 0.95**(k + 1))
    assert onward == pytest.approx(expected[1_001])
    nothing = series(api, id, smooth=0.5, **{"from": 9_000})
    whole = [m for m in plain_average(values, 0.5) if math.isfinite(m)]  # points to come go on with the whole curve's
    assert nothing == {"x": [], "y": [], "total_points": 0, "smooth": [], "smooth_points": len(whole),
                       "smooth_last": pytest.approx(whole[-1])}
    assert series(api, id, smooth=0.5, to=0)["smooth_last"] is None
    for wrong in (1, -0.1, "nan", "much"):
        assert api.get(f"/runs/{id}/metrics", smooth=wrong).status_code == 422


def test_samples_are_resolved_like_metrics(api: Api) -> None:
    id = new_run(api)["id"]
    add_attempt(id, 1, 0, range(1, 3))
    add_attempt(id, 2, 10, range(11, 12))
    with transaction() as session:
        for seq, (attempt, step, index, text) in enumerate([
                (1, 10, 0, "old"), (1, 20, 0, "beyond"), (2, 20, 0, "new"), (2, 20, 1, "<b>new</b>")], 100):
            session.add(Event(topic=f"run:{id}", seq=seq, attempt=attempt, t=1.0, type="sample", step=step, tokens=0,
                              data={"prompt": f"p{index}", "text": text, "prompt_index": index}))
    items = api.get(f"/runs/{id}/samples").json()["items"]
    assert [(s["step"], s["prompt"], s["text"]) for s in items] == [
        (10, "p0", "old"), (20, "p0", "new"), (20, "p1", "<b>new</b>")]


def test_events_come_in_pages(api: Api) -> None:
    id = new_run(api)["id"]
    with transaction() as session:
        for seq in range(2, 12):
            session.add(Event(topic=f"run:{id}", seq=seq, attempt=1, t=1.5, type="log", step=seq, tokens=0,
                              data={"message": "x"}))
    first = api.get(f"/runs/{id}/events", limit=4).json()
    assert [e["seq"] for e in first["items"]] == [1, 2, 3, 4] and first["next_cursor"] == "4"
    rest = api.get(f"/runs/{id}/events", after=first["next_cursor"]).json()
    assert [e["seq"] for e in rest["items"]] == list(range(5, 12)) and rest["next_cursor"] is None
    assert rest["items"][0]["data"] == {"message": "x", "attempt": 1, "t": 1.5, "step": 5, "tokens": 0}
    assert len(api.get(f"/runs/{id}/events", type="state").json()["items"]) == 1
    assert api.get(f"/runs/{id}/events", after=-1).status_code == 422


def test_logs_go_on_where_they_were_read(api: Api) -> None:
    id = new_run(api)["id"]
    logs = [api.data_dir / "runs" / id / "attempts" / str(n) / "logs" / "rank0.log" for n in (1, 2)]
    for log in logs:
        log.parent.mkdir(parents=True)
    logs[0].write_bytes("first ünïcode\nhalf a li".encode())

    def read(after: str | None = None) -> tuple[list[tuple[int, str]], str]:
        page = api.get(f"/runs/{id}/logs", **({"after": after} if after else {})).json()
        return [(line["attempt"], line["text"]) for line in page["items"]], page["next_cursor"]

    logs[1].parent.rmdir()
    logs[1].parent.parent.rmdir()
    lines, cursor = read()
    assert lines == [(1, "first ünïcode")]
    assert read(cursor) == ([], cursor), "half a line is not told"
    logs[1].parent.mkdir(parents=True)
    logs[1].write_bytes(b"second <script>\n\xff\xfe\n")
    lines, cursor = read(cursor)
    assert lines == [(1, "half a li"), (2, "second <script>"), (2, "\ufffd\ufffd")]
    with open(logs[1], "ab") as log:
        log.write(b"x" * 300_000 + b"\nend\n")
    told = ""
    while True:
        lines, following = read(cursor)
        if following == cursor:
            break
        told, cursor = told + "".join(text for _, text in lines), following
    assert told == "x" * 300_000 + "end"
    assert api.get(f"/runs/{id}/logs", rank=3).json()["items"] == []
    assert api.get(f"/runs/{id}/logs", after="../1").status_code == 422
    assert api.get(f"/runs/{id}/logs", rank=-1).status_code == 422
