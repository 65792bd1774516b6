// Charts of uPlot: the same quantity of several runs in one, redrawn when there are new values.

import uPlot from "./vendor/uplot.bundle.js";

const COLORS = ["#c8640a", "#2b6cb0", "#2f855a", "#8a3ab9", "#b7323c", "#00838f", "#8d6e00", "#5d6470", "#d53f8c", "#4a5568", "#6b8e23", "#a0522d"];
const HEIGHT = 220;
const BYTE_STEPS = Array.from({ length: 40 }, (_, power) => 2 ** power); // of an axis in MiB and GiB

export const colorOf = (run) => COLORS[run % COLORS.length];
const cssColor = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// A short text of a value: 1.23, 45.6k.
export function formatNumber(value) {
  if (value === null || value === undefined) return "–";
  for (const [size, unit] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e4, "k"]])
    if (Math.abs(value) >= size) return `${(value / (unit === "k" ? 1e3 : size)).toPrecision(3)}${unit}`;
  return Number.isInteger(value) ? String(value) : value.toPrecision(4);
}

export const formatShare = (value) => (value === null || value === undefined ? "–" : `${(100 * value).toFixed(1)} %`);

// Bytes of memory, as the terminal shows them: 0.5 KiB, 184.0 MiB, 39.1 GiB.
export function formatMemory(value) {
  if (value === null || value === undefined) return "–";
  const power = value >= 2 ** 30 ? 3 : value >= 2 ** 20 ? 2 : 1;
  return `${(value / 1024 ** power).toFixed(1)} ${"KMG"[power - 1]}iB`;
}

// A single value is no line: it is drawn as a point.
const isLone = (values) => values.filter((value) => value !== null).length === 1;

// The exponential mean of the values so far, whose weights sum to 1 from the first one on; gaps change nothing.
export function smooth(values, share) {
  let [total, weight] = [0, 0];
  return values.map((value) => {
    if (value !== null) [total, weight] = [share * total + (1 - share) * value, share * weight + (1 - share)];
    return weight ? total / weight : null;
  });
}

// Where the cursor's value of a line is: the nearest there is; of a line that has ended or not begun there, none.
export function findNearest(values, index) {
  const has = (at) => values[at] !== null && values[at] !== undefined;
  let [before, after] = [index, index];
  while (before >= 0 && !has(before)) before--;
  while (after < values.length && !has(after)) after++;
  if (before < 0 || after >= values.length) return index;
  return index - before <= after - index ? before : after;
}

export class Chart {
  // `format` returns a value as text; `note` says what the values at the right of the title are.
  constructor(parent, title, format = formatNumber, note = "") {
    this.root = document.createElement("div");
    this.root.className = "chart";
    this.head = document.createElement("h2");
    this.name = document.createElement("span");
    this.name.textContent = title;
    this.last = document.createElement("span");
    this.last.className = "last";
    this.head.append(this.name, this.last);
    this.area = document.createElement("div");
    this.area.setAttribute("role", "img");
    this.root.append(this.head, this.area);
    parent.append(this.root);
    this.format = format;
    this.note = note;
    this.shape = "";
    new ResizeObserver(() => this.plot?.setSize({ width: this.width(), height: HEIGHT })).observe(this.area);
  }

  width() { return Math.max(200, this.area.clientWidth); }

  // lines: [{label, color, steps, values, low, high, faint}]; low and high, where given, are drawn as a band.
  show(lines) {
    this.root.hidden = !lines.some(({ values }) => values.some((value) => value !== null));
    if (this.root.hidden) return;
    const tables = lines.map(({ steps, values, low, high }) => (low ? [steps, values, low, high] : [steps, values]));
    const data = tables.length > 1 ? uPlot.join(tables) : tables[0];
    const shown = lines.filter(({ faint }) => !faint);
    this.last.replaceChildren(this.note, ...shown.map(({ label, color, values }) => {
      const value = document.createElement("span");
      value.title = label;
      value.style.setProperty("--line", color);
      value.textContent = this.format(values.findLast((each) => each !== null));
      return value;
    }));
    this.area.setAttribute("aria-label", `${this.name.textContent}: ${shown.map(({ label, steps, values }) =>
      `${label} ${this.format(values.findLast((value) => value !== null))} at step ${steps.at(-1)}`).join(", ")}`);
    const shape = JSON.stringify([document.documentElement.dataset.theme, matchMedia("(prefers-color-scheme: dark)").matches,
      lines.map(({ label, color, low, values }) => [label, color, Boolean(low), isLone(values)])]);
    if (this.plot && shape === this.shape) return this.plot.setData(data);
    this.shape = shape;
    this.plot?.destroy();
    this.plot = new uPlot(this.options(lines), data, this.area);
  }

  options(lines) {
    const text = cssColor("--muted");
    const axis = { stroke: text, grid: { stroke: cssColor("--border"), width: 1 }, ticks: { stroke: cssColor("--border"), width: 1 } };
    const series = [{ label: "step" }];
    const [bands, lone] = [[], []];
    const value = (_, raw) => this.format(raw);
    for (const { label, color, low, faint, values } of lines) {
      series.push({ label, value, stroke: faint ? `${color}55` : color, width: faint ? 1 : 2, spanGaps: true, points: { show: Boolean(low) || isLone(values), size: 5 } });
      if (!low) continue;
      if (isLone(values)) lone.push({ at: series.length, color }); // no band: it has no width
      series.push({ label: `${label}, low`, value, stroke: "transparent", spanGaps: true, points: { show: false } },
        { label: `${label}, high`, value, stroke: "transparent", spanGaps: true, points: { show: false } });
      bands.push({ series: [series.length - 1, series.length - 2], fill: `${color}33` });
    }
    return {
      width: this.width(), height: HEIGHT, series, bands, scales: { x: { time: false } },
      axes: [axis, { ...axis, ...(this.format === formatMemory ? { incrs: BYTE_STEPS } : {}), size: 80, values: (_, splits) => splits.map((split) => this.format(split)) }],
      hooks: { draw: [(plot) => lone.forEach((interval) => drawInterval(plot, interval))] },
      cursor: {
        drag: { x: true, y: false },
        dataIdx: (plot, number, index) => (number ? findNearest(plot.data[number], index) : index),
      },
      legend: { live: true },
    };
  }
}

// The interval of a line's only value, from the series `at` (low) to the next one (high), as a vertical bar.
function drawInterval(plot, { at, color }) {
  const index = plot.data[at].findIndex((value) => value !== null && value !== undefined);
  if (index < 0) return;
  const x = plot.valToPos(plot.data[0][index], "x", true);
  const [low, high] = [at, at + 1].map((number) => plot.valToPos(plot.data[number][index], "y", true));
  const width = 4 * devicePixelRatio;
  plot.ctx.save();
  plot.ctx.strokeStyle = color;
  plot.ctx.lineWidth = devicePixelRatio;
  plot.ctx.beginPath();
  for (const [fromX, fromY, toX, toY] of [[x, low, x, high], [x - width, low, x + width, low], [x - width, high, x + width, high]]) {
    plot.ctx.moveTo(fromX, fromY);
    plot.ctx.lineTo(toX, toY);
  }
  plot.ctx.stroke();
  plot.ctx.restore();
}
