// A line for each loss, in SVG; the figures stand beside it.

import { h, svg } from "./dom.js";

const WIDTH = 320, HEIGHT = 120, LEFT = 34, BOTTOM = 16;

export function chart(title, curves, steps) {
  const all = Object.values(curves).flat();
  if (!all.length) return null;
  const top = Math.max(...all.map(([, value]) => value)) * 1.05 || 1;
  const far = Math.max(steps ?? 1, ...all.map(([step]) => step + 1));
  const x = (step) => LEFT + (WIDTH - LEFT - 6) * ((step + 1) / far);
  const y = (value) => (HEIGHT - BOTTOM) * (1 - value / top) + 4;
  const lines = Object.entries(curves).map(([, points], index) => svg("polyline", {
    points: smooth(points).map(([step, value]) => `${x(step).toFixed(1)},${y(value).toFixed(1)}`).join(" "), class: `line line-${index % 4}` }));
  const text = (at, down, said, anchor) => svg("text", { x: at, y: down, "text-anchor": anchor, class: "axis" }, said);
  const drawing = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `${title}: loss by step` },
    svg("path", { d: `M${LEFT},4V${HEIGHT - BOTTOM + 4}H${WIDTH - 6}`, class: "axis-line" }),
    text(LEFT - 4, 12, top.toFixed(2), "end"), text(LEFT - 4, HEIGHT - BOTTOM + 4, "0", "end"),
    text(WIDTH - 6, HEIGHT - 1, String(far), "end"), text(LEFT, HEIGHT - 1, "step", "start"), ...lines);
  const legend = Object.entries(curves).map(([name, points], index) => h("li", {}, h("span", { class: `key line-${index % 4}` }),
    `${name.replace(/^loss_/, "").replaceAll("_", " ")} ${points.length ? smooth(points).at(-1)[1].toFixed(3) : ""}`));
  return h("figure", { class: "chart" }, h("figcaption", {}, title), drawing, h("ul", {}, legend));
}

// The mean of the last points before each, as losses jump with the timesteps that are drawn.
function smooth(points) {
  const width = Math.max(1, Math.round(points.length / 12));
  return points.map(([step], index) => {
    const near = points.slice(Math.max(0, index - width + 1), index + 1);
    return [step, near.reduce((sum, [, value]) => sum + value, 0) / near.length];
  });
}
