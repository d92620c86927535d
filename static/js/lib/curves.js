// The numbers of a run as a chart needs them: what the server sent, and the new points behind it as they come.

/**
 * One curve. `smooth` is the debiased exponential moving average of all finite points, also of those that were thinned
 * out, so it goes on exactly where the server's ended: m = s m + (1 - s) y, shown as m / (1 - s^n).
 */
export class Curve {
  constructor(smoothing = 0) {
    this.smoothing = smoothing;
    this.x = [];
    this.y = [];
    this.smooth = [];
    this.total = 0;
    this.seen = 0;
    this.mean = 0;
  }

  /** @param series {{x: number[], y: (number|null)[], smooth?: (number|null)[], smooth_points?: number, total_points: number}} */
  static of(series, smoothing) {
    const curve = new Curve(smoothing);
    curve.x = [...series.x];
    curve.y = [...series.y];
    curve.smooth = series.smooth ? [...series.smooth] : [...series.y];
    curve.total = series.total_points;
    curve.seen = series.smooth_points ?? series.total_points;
    const last = series.smooth_last ?? curve.smooth.findLast((value) => value !== null) ?? 0;
    curve.mean = last * (1 - smoothing ** curve.seen);
    return curve;
  }

  get lastX() {
    return this.x.length ? this.x[this.x.length - 1] : -Infinity;
  }

  /** A point before the range that is shown: it counts for the average alone. */
  skip(y) {
    if (typeof y !== "number" || !Number.isFinite(y)) return;
    this.seen += 1;
    this.mean = this.smoothing * this.mean + (1 - this.smoothing) * y;
  }

  /** A new point; one that is not behind the last is known already. Returns whether it was new. */
  append(x, y) {
    if (!(x > this.lastX)) return false;
    this.x.push(x);
    this.total += 1;
    if (typeof y !== "number" || !Number.isFinite(y)) {
      this.y.push(null);
      this.smooth.push(null);
      return true;
    }
    this.seen += 1;
    this.mean = this.smoothing * this.mean + (1 - this.smoothing) * y;
    this.y.push(y);
    this.smooth.push(this.mean / (1 - this.smoothing ** this.seen));
    return true;
  }
}

/**
 * Curves on one common x axis, as uPlot wants them: `[x, ...columns]`. A column's value is null where the number was
 * not finite (the line breaks there) and undefined where the curve has no point (the line goes on).
 * @param parts {{x: number[], values: (number|null)[]}[]}
 */
export function aligned(parts) {
  const all = new Set();
  for (const part of parts) for (const x of part.x) all.add(x);
  const axis = [...all].sort((a, b) => a - b);
  if (parts.every((part) => part.x.length === axis.length)) return [axis, ...parts.map((part) => part.values)];
  const place = new Map(axis.map((x, index) => [x, index]));
  const columns = parts.map((part) => {
    const column = new Array(axis.length).fill(undefined);
    part.x.forEach((x, index) => (column[place.get(x)] = part.values[index]));
    return column;
  });
  return [axis, ...columns];
}

/**
 * The smallest and largest finite value, a little widened; on a logarithmic axis only positive ones count. With a
 * `floor` a linear axis begins there, and with a `ceiling` it reaches up to it.
 */
export function extent(columns, isLog, [low, high] = [0, Infinity], { floor = null, ceiling = null } = {}) {
  let least = Infinity;
  let most = -Infinity;
  for (const column of columns) {
    for (let index = low; index <= Math.min(high, column.length - 1); index++) {
      const value = column[index];
      if (typeof value !== "number" || !Number.isFinite(value) || (isLog && value <= 0)) continue;
      if (value < least) least = value;
      if (value > most) most = value;
    }
  }
  if (least > most) return isLog ? [0.1, 1] : [0, 1];
  if (isLog) return [least / 1.15, most * 1.15];
  if (floor !== null && ceiling !== null) return [floor, Math.max(ceiling, most)];
  if (floor !== null) return [floor, most > floor ? most + (most - floor) * 0.06 : floor + 1];
  const size = Math.max(Math.abs(least), Math.abs(most));
  const room = (isWide(least, most) ? most - least : size || 1) * 0.06;
  return [least - room, most + room];
}

/**
 * Whether numbers between `low` and `high` can be told apart. A loss and its average may differ by the last bit alone;
 * an axis from one to the other would have steps that are too small to be added to where it begins, and never end.
 */
function isWide(low, high) {
  return high - low > Math.max(Math.abs(low), Math.abs(high)) * 1e-9;
}

/** [low, high] of an x axis, with room around what would be a single place. */
export function widened(low, high) {
  if (isWide(low, high)) return [low, high];
  const room = Math.max(1, Math.abs(low) * 1e-6, Math.abs(high) * 1e-6);
  return [low - room, high + room];
}

/** Rows of comma-separated values with a header, the x axis first. */
export function csv(names, columns) {
  const rows = [names.join(",")];
  for (let index = 0; index < columns[0].length; index++) {
    rows.push(columns.map((column) => (column[index] === null ? "nan" : column[index] ?? "")).join(","));
  }
  return `${rows.join("\n")}\n`;
}
