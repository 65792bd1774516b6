// Nodes and texts that the parts of the watcher's page share.

import { colorOf } from "./charts.js";

export const element = (name, className, text) => {
  const node = document.createElement(name);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
};

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  const [hours, minutes] = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60];
  return hours ? `${hours} h ${minutes} min` : minutes ? `${minutes} min ${Math.floor(seconds % 60)} s` : `${Math.floor(seconds)} s`;
}

// The square in the color of a run, by its number.
export function makeSwatch(number) {
  const swatch = element("span", "swatch");
  swatch.style.setProperty("background", colorOf(number));
  return swatch;
}

// A table of rows of cells; a cell is a text, or {run, text} with the run's color.
export function makeTable(head, rows) {
  const table = element("table");
  const row = (cells, kind) => {
    const line = element("tr");
    line.append(...cells.map((cell) => { const node = element(kind); node.append(...(cell.text ? [makeSwatch(cell.run), cell.text] : [cell])); return node; }));
    return line;
  };
  const [top, body] = [element("thead"), element("tbody")];
  top.append(row(head, "th"));
  body.append(...rows.map((cells) => row(cells, "td")));
  table.append(top, body);
  return table;
}
