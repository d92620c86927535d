// What stands on the canvas of a chart beside its lines. `u` is the uPlot; places on the canvas are in device pixels.

/** Checkpoints as small marks at the foot. */
export function drawMarks(u, marks, colour) {
  const { ctx, bbox } = u;
  ctx.save();
  ctx.fillStyle = colour;
  for (const x of marks) {
    const at = u.valToPos(x, "x", true);
    if (at >= bbox.left && at <= bbox.left + bbox.width) ctx.fillRect(at - 1.5, bbox.top + bbox.height - 9, 3, 9);
  }
  ctx.restore();
}

/** A value to compare with, dashed, with its name: `line` is {at, label}, or nothing. */
export function drawLine(u, line, colour) {
  if (!line || u.data[0].length === 0) return;
  const { ctx, bbox } = u;
  const pixel = devicePixelRatio;
  const y = Math.round(u.valToPos(line.at, "y", true));
  ctx.save();
  ctx.strokeStyle = ctx.fillStyle = colour;
  ctx.setLineDash([6 * pixel, 4 * pixel]);
  ctx.beginPath();
  ctx.moveTo(bbox.left, y);
  ctx.lineTo(bbox.left + bbox.width, y);
  ctx.stroke();
  ctx.font = `${12 * pixel}px system-ui, sans-serif`;
  ctx.textAlign = "right";
  ctx.fillText(line.label, bbox.left + bbox.width - 4 * pixel, y - 5 * pixel);
  ctx.restore();
}
