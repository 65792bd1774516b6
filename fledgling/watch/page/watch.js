// The watcher's page: asks the server for what is new every two seconds and shows it. It continues by itself when the
// server or the run was away. Texts of a run become text nodes, never markup.

import { Chart, colorOf, formatMemory, formatNumber, formatShare, smooth } from "./charts.js";
import { duration, element, makeSwatch, makeTable } from "./elements.js";

const $ = (id) => document.getElementById(id);
const SECONDS = 2;
const SMOOTHING = 0.9;
const QUANTITIES = [
  ["tokens_per_second", "Tokens a second"], ["mfu", "MFU, share of the measured peak", formatShare], ["lr_multiplier", "Learning rate, of its full value", formatShare],
  ["gradient_norm", "Gradient norm"], ["memory", "Peak memory", formatMemory], ["reward", "Reward"], ["kl", "KL to the reference, nats"],
  ["length", "Tokens of an answer"], ["accuracy", "Accuracy of pairs", formatShare],
];
const ACTIONS = [["stop", "Stop (saves)"], ["sample", "Sample now"], ["evaluate", "Evaluate now"]];

let cursor = "";
let runs = []; // as the server describes them, with all their stages
let stage = null; // the stage that is shown
let chosen = false; // whether the user has chosen it
let key = "";
let lastMachine = null;
let newestRequest = null; // the newest request for a batch
const evalName = [null, null]; // of the two charts of evaluations

// ---- the server ----------------------------------------------------------------------------------------------------

async function request(path, options = {}) {
  const headers = { ...(key ? { Authorization: `Bearer ${key}` } : {}), ...(options.body ? { "Content-Type": "application/json" } : {}) };
  const response = await fetch(path, { ...options, headers });
  const body = await response.json();
  if (response.status === 401) throw new Error(key ? "The key is not the watcher's (--api-key): give it again." : "Give the watcher's key (--api-key) in the field Key.");
  if (!response.ok) throw new Error(body.error?.message ?? `the server answered ${response.status}`);
  return body;
}

async function poll() {
  try {
    const state = await request(`api/runs?since=${encodeURIComponent(cursor)}`);
    cursor = state.cursor;
    runs = state.runs.map((run, number) => {
      const before = runs[number]?.path === run.path ? runs[number].stages : [];
      const stages = new Map(before.map((each) => [each.name, each]));
      for (const each of run.stages) stages.set(each.name, each);
      const begun = run.order.filter((name) => stages.has(name) && run.begun.includes(name)); // a directory may be deleted
      return { ...run, stages: begun.map((name) => stages.get(name)) };
    });
    $("status").className = "";
    $("status").textContent = `Read at ${new Date(1000 * state.time).toLocaleTimeString()}.`;
    show(state);
  } catch (error) {
    $("status").className = "lost";
    $("status").textContent = error instanceof TypeError ? "The watcher cannot be reached; trying again …" : error.message;
  }
}

async function sendAction(run, action) {
  try {
    await request("api/requests", { method: "POST", body: JSON.stringify({ run, action }) });
    $("status").textContent = `Sent to ${runs[run].name}: ${action}; it does so after its next step, which comes later while a stage ends or begins.`;
    return true;
  } catch (error) {
    $("status").className = "lost";
    $("status").textContent = error.message;
    return false;
  }
}

// ---- what is shown ---------------------------------------------------------------------------------------------------

const charts = new Map();

function show({ machine }) {
  lastMachine = machine;
  const names = [...new Set(runs.flatMap((run) => run.order))];
  const active = runs.map((run) => run.stages.findLast((each) => each.steps.length)?.name).find(Boolean);
  if (!chosen || !names.includes(stage)) stage = active ?? names[0] ?? null;
  showRuns();
  showMachine(machine);
  showStages(names);
  showCharts();
  showTables();
  showTexts();
}

function showRuns() {
  if ($("runs").childElementCount !== runs.length) $("runs").replaceChildren(...runs.map(makeRun));
  runs.forEach((run, number) => {
    const article = $("runs").children[number];
    const part = (name) => article.querySelector(`.${name}`);
    const last = run.stages.findLast((each) => each.steps.length) ?? run.stages.at(-1);
    const finished = run.stages.filter((each) => each.finished).length;
    part("name").textContent = run.name;
    const state = !run.exists ? "this directory does not exist" : run.is_running ? "running" : run.order.length && finished === run.order.length ? "finished" : "not running";
    part("state").textContent = `${state}${run.holder ? `: ${run.holder}` : ""}; ${run.path}`;
    part("progress").max = last?.total_steps ?? 1;
    part("progress").value = last?.step ?? 0;
    const speed = last?.series.tokens_per_second?.at(-1);
    const memory = last?.series.memory?.findLast((value) => value !== null);
    const later = Object.values(run.planned_seconds).reduce((sum, seconds) => sum + (seconds ?? 0), 0);
    const entries = [
      ["stage", last ? `${last.name} (${run.order.indexOf(last.name) + 1} of ${run.order.length})` : "–"],
      ["step", last ? `${last.step}${last.total_steps ? ` of ${last.total_steps}` : ""}` : "–"],
      ["loss, smoothed", formatNumber(smooth(last?.series.loss ?? [null], SMOOTHING).at(-1))],
      ["tokens a second", formatNumber(speed ?? null)],
      ["memory", formatMemory(memory)],
      ["elapsed", duration(last?.seconds)], ["remaining in this stage", run.is_running ? duration(last?.seconds_left) : "–"],
      ["steps of later stages, planned", later ? `${duration(later)}${run.planned_seconds.rl ? " + answers of rl" : ""}` : "–"],
    ];
    part("numbers").replaceChildren(...entries.map(([name, value]) => {
      const entry = element("div");
      entry.append(element("dt", "", name), element("dd", "", value));
      return entry;
    }));
    for (const button of article.querySelectorAll(".actions button")) button.disabled = !run.is_running;
  });
  $("batch-button").disabled = !runs.some((run) => run.is_running);
}

// What tells a run from the others, before a text of it: nothing where there is one.
const nameRun = (number, end) => (runs.length > 1 ? [makeSwatch(number), `${runs[number].name}${end}`] : []);

function makeRun(run, number) {
  const article = element("article", "run");
  const head = element("h2");
  head.append(makeSwatch(number), element("span", "name"));
  const progress = element("progress", "progress");
  progress.setAttribute("aria-label", "Steps of the stage");
  const actions = element("div", "actions");
  for (const [action, text] of ACTIONS) {
    const button = element("button", "", text);
    button.type = "button";
    button.addEventListener("click", () => (action !== "stop" || confirm(`Save and stop ${runs[number].name}?`)) && sendAction(number, action));
    actions.append(button);
  }
  article.append(head, element("p", "state"), progress, element("dl", "numbers"), actions);
  return article;
}

function showMachine(machine) {
  const memory = machine.memory_total ? `, memory ${((machine.memory_total - machine.memory_free) / 2 ** 30).toFixed(1)} of ${(machine.memory_total / 2 ** 30).toFixed(1)} GiB` : "";
  const busy = machine.cpu === null ? "" : `: ${(100 * machine.cpu).toFixed(0)} % busy`;
  const gpus = machine.gpus.map((gpu, number) => `GPU ${number} ${gpu.name} ${gpu.busy === null ? "" : `${(100 * gpu.busy).toFixed(0)} %`}, ` +
    `${((gpu.memory_used ?? 0) / 2 ** 30).toFixed(1)} of ${((gpu.memory_total ?? 0) / 2 ** 30).toFixed(1)} GiB${gpu.watts ? `, ${gpu.watts} W` : ""}${gpu.celsius ? `, ${gpu.celsius} °C` : ""}`);
  $("machine").textContent = [`This machine, ${machine.cores} cores${busy}, load ${machine.load.toFixed(2)}${memory}`, ...gpus].join("; ");
}

function showStages(names) {
  $("stages").replaceChildren(...names.map((name) => {
    const button = element("button", "", name);
    button.type = "button";
    button.setAttribute("aria-pressed", String(name === stage));
    button.disabled = !runs.some((run) => run.stages.some((each) => each.name === name));
    button.addEventListener("click", () => { stage = name; chosen = true; show({ machine: lastMachine }); });
    return button;
  }));
}

// The shown stage of every run that has it, with its number.
const shownStages = () => runs.flatMap((run, number) => run.stages.filter((each) => each.name === stage).map((each) => ({ run, number, each })));

function makeChart(name, title, format, note) {
  if (!charts.has(name)) charts.set(name, new Chart($("charts"), title, format, note));
  return charts.get(name);
}

function showCharts() {
  const stages = shownStages();
  const loss = makeChart("loss", "Loss: nats a token, in RL of the policy", formatNumber, "smoothed ");
  loss.show(stages.flatMap(({ run, number, each }) => (each.series.loss ? [
    { label: `${run.name}, each step`, color: colorOf(number), steps: each.steps, values: each.series.loss, faint: true },
    { label: `${run.name}, smoothed`, color: colorOf(number), steps: each.steps, values: smooth(each.series.loss, SMOOTHING) },
  ] : [])));
  for (const which of [0, 1]) showEvaluation(stages, which);
  for (const [name, title, format] of QUANTITIES) makeChart(name, title, format).show(stages
    .filter(({ each }) => each.series[name])
    .map(({ run, number, each }) => ({ label: run.name, color: colorOf(number), steps: each.steps, values: each.series[name] })));
}

// One of two charts of evaluations, whose name the user may choose; of one name the series with the most points.
function showEvaluation(stages, which) {
  const chart = makeChart(`evaluation ${which}`, "Evaluation");
  const names = [...new Set(stages.flatMap(({ each }) => each.evals.map((one) => one.name)))];
  if (!chart.select) {
    chart.select = element("select");
    chart.select.setAttribute("aria-label", "Evaluation");
    chart.select.addEventListener("change", () => { evalName[which] = chart.select.value; showCharts(); });
    chart.name.replaceChildren(chart.select);
  }
  if ([...chart.select.options].map(({ value }) => value).join("\n") !== names.join("\n"))
    chart.select.replaceChildren(...names.map((name) => { const option = element("option", "", name); option.value = name; return option; }));
  const scores = names.filter((name) => name !== "bits_per_byte" && !name.startsWith("zeros"));
  if (!names.includes(evalName[which])) evalName[which] = which ? scores[0] ?? names[1] : names.includes("bits_per_byte") ? "bits_per_byte" : names[0];
  chart.select.value = evalName[which] ?? "";
  const lines = stages.map(({ run, number, each }) => {
    const byCount = Map.groupBy(each.evals.filter((one) => one.name === evalName[which]), (one) => one.n);
    const longest = [...byCount.values()].reduce((best, one) => (one.length >= best.length ? one : best), []);
    return {
      label: run.name, color: colorOf(number), steps: longest.map((one) => one.step), values: longest.map((one) => one.value),
      low: longest.map((one) => one.low), high: longest.map((one) => one.high),
    };
  }).filter(({ steps }) => steps.length);
  chart.show(lines);
}

function showTables() {
  const stages = shownStages();
  const names = [...new Set(stages.flatMap(({ each }) => each.evals.map((one) => one.name)))];
  $("evals").replaceChildren(makeTable(["", ...stages.map(({ run, number }) => ({ run: number, text: run.name }))], names.map((name) => {
    const last = stages.map(({ each }) => each.evals.findLast((one) => one.name === name));
    const cells = last.map((one) => (!one ? "–" : `${formatNumber(one.value)}${one.low === null ? "" : ` (${formatNumber(one.low)} to ${formatNumber(one.high)})`}${one.n === null ? "" : `, n ${one.n}`}`));
    return [name, ...cells];
  })));
  const pairs = runs.flatMap((run, number) => run.pairs.map((pair) => [runs.length > 1 ? { run: number, text: `${run.name}: ${pair.label}` } : pair.label,
    pair.predicted_text, pair.measured_text, pair.error === null ? pair.differs : `${(100 * pair.error).toFixed(1)} %`]));
  $("pairs").replaceChildren(makeTable(["", "predicted", "measured", "error"], pairs));
}

function showTexts() {
  const samples = shownStages().flatMap(({ number, each }) => each.samples.map((sample) => ({ ...sample, run: number })));
  samples.sort((a, b) => b.step - a.step);
  $("samples").replaceChildren(...samples.slice(0, 40).map((sample) => {
    const item = element("div", "sample");
    const where = element("div", "where");
    where.append(...nameRun(sample.run, ", "), `step ${sample.step}`);
    item.append(where, element("span", "prompt", sample.prompt), " ", sample.text);
    return item;
  }));
  const notices = shownStages().flatMap(({ number, each }) => each.notices.map((text) => ({ run: number, text }))).reverse();
  $("notices").replaceChildren(...notices.slice(0, 40).map(({ run, text }) => {
    const item = element("li");
    item.append(...nameRun(run, ": "), text);
    return item;
  }));
}

// Asks a run for rows of a batch, and waits for them as long as it runs: between two stages that may take minutes.
async function showBatch() {
  const run = runs.findIndex((each) => each.is_running);
  if (run < 0) return;
  const say = (...nodes) => { const line = element("div", "where"); line.append(...nameRun(run, ", "), ...nodes); return line; };
  const nameOf = (batch) => `${batch?.stage} ${batch?.step}`;
  const before = nameOf((await request(`api/batch?run=${run}`)).batch);
  if (!(await sendAction(run, "batch"))) return;
  $("batch").replaceChildren(say("comes after the run's next step …"));
  const own = (newestRequest = Symbol());
  while (own === newestRequest) { // else the button was pressed again
    await new Promise((resolve) => setTimeout(resolve, 1000));
    const { batch } = await request(`api/batch?run=${run}`);
    const hasCome = batch && nameOf(batch) !== before;
    if (!hasCome && runs[run]?.is_running) continue;
    $("batch").replaceChildren(say(!hasCome ? "the run has ended before its next step" : batch.problem ?? `${batch.stage}, step ${batch.step}`),
      ...((hasCome && batch.rows) || []).map(makeRow));
    return;
  }
}

function makeRow(row) {
  const line = element("p");
  line.tabIndex = 0;
  for (const { text, learned } of row) line.append(learned ? element("mark", "", text) : text);
  return line;
}

async function loop() {
  if (!document.hidden) await poll();
  setTimeout(loop, 1000 * SECONDS);
}

$("theme").addEventListener("input", () => {
  document.documentElement.dataset.theme = $("theme").value;
  try { localStorage.setItem("fledgling.watch.theme", $("theme").value); } catch { /* the theme lasts until the page closes */ }
  showCharts();
});
try { $("theme").value = localStorage.getItem("fledgling.watch.theme") ?? "auto"; } catch { /* as the system */ }
if (!$("theme").value) $("theme").value = "auto";
document.documentElement.dataset.theme = $("theme").value;
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", showCharts);
$("key").addEventListener("change", () => { key = $("key").value; cursor = ""; poll(); });
$("batch-button").addEventListener("click", () => showBatch().catch((error) => { $("status").textContent = error.message; }));
document.addEventListener("visibilitychange", () => { if (!document.hidden) poll(); });
loop();
