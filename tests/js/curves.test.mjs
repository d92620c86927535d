import assert from "node:assert/strict";
import { test } from "node:test";
import { aligned, csv, Curve, extent, widened } from "../../static/js/lib/curves.js";

/** The average as its definition says it, over everything. */
function plainAverage(values, s) {
  let mean = 0;
  let weight = 0;
  return values.map((value) => {
    if (value === null) return null;
    mean = s * mean + (1 - s) * value;
    weight = s * weight + (1 - s);
    return mean / weight;
  });
}

test("live points go on exactly where the server's average ended", () => {
  const values = Array.from({ length: 50 }, (_, i) => (i === 20 ? null : 5 / (i + 1)));
  for (const s of [0, 0.5, 0.9, 0.99]) {
    const whole = plainAverage(values, s);
    const head = 30;
    const curve = Curve.of({ x: [...Array(head).keys()], y: values.slice(0, head), smooth: whole.slice(0, head),
                             smooth_points: head - 1, total_points: head }, s);
    for (let i = head; i < values.length; i++) curve.append(i, values[i]);
    assert.equal(curve.total, 50);
    curve.smooth.forEach((value, i) => (whole[i] === null ? assert.equal(value, null) : assert.ok(Math.abs(value - whole[i]) < 1e-9)));
  }
});

test("points before the range that is shown count for the average alone", () => {
  const values = [4, 3, 2, 5];
  const whole = plainAverage(values, 0.9);
  const curve = Curve.of({ x: [], y: [], smooth: [], smooth_points: 2, smooth_last: whole[1], total_points: 0 }, 0.9);
  curve.skip(values[2]);
  curve.append(100, values[3]);
  assert.deepEqual(curve.x, [100]);
  assert.ok(Math.abs(curve.smooth[0] - whole[3]) < 1e-12);
});

test("a point that is known already is not added twice", () => {
  const curve = new Curve(0.5);
  assert.ok(curve.append(1, 2));
  assert.ok(!curve.append(1, 2));
  assert.ok(!curve.append(0, 3));
  assert.ok(curve.append(2, null));
  assert.deepEqual(curve.y, [2, null]);
  assert.deepEqual(curve.smooth, [2, null]);
});

test("curves with points of their own share one axis", () => {
  const [x, dense, sparse] = aligned([{ x: [1, 2, 3], values: [1, null, 3] }, { x: [2, 5], values: [9, 8] }]);
  assert.deepEqual(x, [1, 2, 3, 5]);
  assert.deepEqual(dense, [1, null, 3, undefined]);
  assert.deepEqual(sparse, [undefined, 9, undefined, 8]);
});

test("the axis holds all finite values, only positive ones where it is logarithmic", () => {
  const [low, high] = extent([[1, null, undefined, 3]], false);
  assert.ok(low < 1 && high > 3);
  const [least] = extent([[-1, 0, 0.5, 2]], true);
  assert.ok(least > 0 && least < 0.5);
  assert.deepEqual(extent([[null]], false), [0, 1]);
  const [below, above] = extent([[2, 2]], false);
  assert.ok(below < 2 && above > 2);
});

test("tables say where a number was not finite", () => {
  assert.equal(csv(["step", "loss"], [[1, 2, 3], [0.5, null, undefined]]), "step,loss\n1,0.5\n2,nan\n3,\n");
});

test("an axis with a floor begins there", () => {
  assert.deepEqual(extent([[0.5, 1]], false, undefined, { floor: 0 }), [0, 1.06]);
  assert.deepEqual(extent([[0, 0]], false, undefined, { floor: 0 }), [0, 1]);
  assert.deepEqual(extent([[1, 10]], true, undefined, { floor: 0 }), [1 / 1.15, 11.5], "a logarithmic one cannot");
  assert.deepEqual(extent([[0.4, 0.6]], false, undefined, { floor: 0, ceiling: 1 }), [0, 1], "a share of all");
  assert.deepEqual(extent([[0.4, 1.5]], false, undefined, { floor: 0, ceiling: 1 }), [0, 1.5]);
});

test("numbers that differ by their last bit alone make no axis between them", () => {
  // its steps would be too small to be added to 5.1: uPlot would draw lines until the page has no memory left
  for (const [low, high] of [[5.1, 5.1 + 2 ** -50], [0.7, 0.7000000000000001], [-3, -3 + 2 ** -51], [1e18, 1e18 + 256]]) {
    const [from, to] = extent([[low], [high]], false);
    assert.ok(to - from > Math.abs(low) * 0.1, `${from} ${to}`);
    const [left, right] = widened(low, high);
    assert.ok(right - left > Math.abs(low) * 1e-9 && left < low && right > high, `${left} ${right}`);
  }
  assert.deepEqual(widened(3, 3), [2, 4]);
  assert.deepEqual(widened(3, 4), [3, 4]);
  const [from, to] = extent([[2, 2.001]], false);
  assert.ok(to - from < 0.002, "what can be told apart keeps its axis");
});
