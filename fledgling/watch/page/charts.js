// Charts of uPlot: the same quantity of several runs in one, redrawn when there are new values.

import uPlot from "./vendor/uplot.bundle.js";

const COLORS = ["#c8640a", "#2b6cb0", "#2f855a", "#8a3ab9", "#b7323c", "#00838f", "#8d6e00", "#5d6470", "#d53f8c", "#4a5568", "#6b8e23", "#a0522d"];
const HEIGHT = 220;

export const colorOf = (run) => COLORS[run % COLORS.length];
const cssColor = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// A short text of a value: 1.23, 45.6k.
export function formatNumber(value) {
  if (value === null || value === undefined) return "–";
  for (const [size, unit] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e4, "k"]])
    if (Math.abs(value) >= size) return `${(value / (unit === "k" ? 1e3 : size)).toPrecision(3)}${unit}`;
  return Number.isInteger(value) ? String(value) : value.toPrecision(4);
}

// A single value is no line: it is drawn as a point.
const isLone = (values) => values.filter((value) => value !== null).length === 1;

// Moving average that begins with the first value and skips gaps.
export function smooth(values, share) {
  let mean = null;
  return values.map((value) => {
    if (value === null) return mean;
    mean = mean === null ? value : share * mean + (1 - share) * value;
    return mean;
  });
}

export class Chart {
  // `head` is what comes above the chart; `percent` shows values as shares.
  constructor(parent, title, percent = false) {
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
    this.percent = percent;
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
    this.last.textContent = shown.map(({ values }) => this.format(values.findLast((value) => value !== null))).join("  ");
    this.area.setAttribute("aria-label", `${this.name.textContent}: ${shown.map(({ label, steps, values }) =>
      `${label} ${this.format(values.findLast((value) => value !== null))} at step ${steps.at(-1)}`).join(", ")}`);
    const shape = JSON.stringify([document.documentElement.dataset.theme, matchMedia("(prefers-color-scheme: dark)").matches,
      lines.map(({ label, color, low, values }) => [label, color, Boolean(low), isLone(values)])]);
    if (this.plot && shape === this.shape) return this.plot.setData(data);
    this.shape = shape;
    this.plot?.destroy();
    this.plot = new uPlot(this.options(lines), data, this.area);
  }

  format(value) {
    return this.percent && value !== null && value !== undefined ? `${(100 * value).toFixed(1)} %` : formatNumber(value);
  }

  options(lines) {
    const text = cssColor("--muted");
    const axis = { stroke: text, grid: { stroke: cssColor("--border"), width: 1 }, ticks: { stroke: cssColor("--border"), width: 1 } };
    const series = [{ label: "step" }];
    const bands = [];
    const value = (_, raw) => this.format(raw);
    for (const { label, color, low, faint, values } of lines) {
      series.push({ label, value, stroke: faint ? `${color}55` : color, width: faint ? 1 : 2, spanGaps: true, points: { show: Boolean(low) || isLone(values), size: 5 } });
      if (!low) continue;
      series.push({ label: `${label}, low`, value, stroke: "transparent", spanGaps: true, points: { show: false } },
        { label: `${label}, high`, value, stroke: "transparent", spanGaps: true, points: { show: false } });
      bands.push({ series: [series.length - 1, series.length - 2], fill: `${color}33` });
    }
    return {
      width: this.width(), height: HEIGHT, series, bands, scales: { x: { time: false } },
      axes: [axis, { ...axis, size: 72, values: (_, splits) => splits.map((split) => this.format(split)) }],
      cursor: { drag: { x: true, y: false } }, legend: { live: true },
    };
  }
}
