// The settings: read from the browser's storage, each checked and kept within its field's range, and bound to the fields.

const STORAGE_KEY = `fledgling${document.documentElement.dataset.store ?? ""}.settings`;
export const DEFAULTS = {
  temperature: 0.8, top_p: 1, top_k: 50, min_p: 0, repetition_penalty: 1, max_tokens: 256, seed: "", system: "", key: "",
  calculator: true, tools: true, theme: "auto", model: "", compare: false,
  b_temperature: 0, b_top_p: 1, b_top_k: 50, b_min_p: 0, b_repetition_penalty: 1, b_seed: "", b_system: "", b_model: "",
};
const SAMPLED = ["temperature", "top_p", "top_k", "min_p", "repetition_penalty"];

export const settings = { ...DEFAULTS };
const $ = (id) => document.getElementById(id);

// Returns a value that the field allows: a number within its range, one of its options, text, or the default.
function allowed(name, value) {
  const field = $(name);
  const fallback = DEFAULTS[name];
  if (field.type === "checkbox") return typeof value === "boolean" ? value : fallback;
  if (["range", "number"].includes(field.type)) {
    if (value === "" || value === null || !Number.isFinite(Number(value))) return fallback;
    const whole = field.type === "number" ? Math.trunc(Number(value)) : Number(value);
    return Math.min(Math.max(whole, Number(field.min)), Number(field.max));
  }
  if (field.tagName === "SELECT") return [...field.options].some((option) => option.value === value) ? value : fallback;
  return typeof value === "string" ? value : fallback;
}

function show(name) {
  const field = $(name);
  if (field.type === "checkbox") field.checked = settings[name];
  else field.value = settings[name];
}

// Says what is used instead of what was typed into a field of a number: out of range, no number, or not whole.
function describeCorrection(name) {
  const field = $(name);
  const [typed, used] = [field.value, settings[name]];
  if (field.type !== "number" || (typed === "" ? used === "" && !field.validity.badInput : Number(typed) === used)) return "";
  const given = typed === "" ? (field.validity.badInput ? "no number" : "empty") : typed;
  const expected = `expected a whole number from ${field.min} to ${field.max}`;
  return `${field.labels[0].firstChild.textContent.trim()}: ${given}; ${expected}; ${used === "" ? "none" : used} is used.`;
}

function readStored() {
  try {
    return JSON.parse(localStorage.getItem(STORAGE_KEY) ?? "{}") ?? {};
  } catch {
    return {}; // unreadable settings are the defaults
  }
}

// Stores one setting; those that another tab has changed stay as they are stored. The API key is never stored.
function store(name) {
  try {
    localStorage.setItem(STORAGE_KEY, JSON.stringify({ ...readStored(), [name]: name === "key" ? "" : settings[name] }));
  } catch { /* storage is full: the settings last until the page closes */ }
}

function apply() {
  for (const output of document.querySelectorAll("#settings output")) output.textContent = $(output.htmlFor.value).value;
  document.documentElement.dataset.theme = settings.theme;
  $("compare-settings").hidden = !settings.compare;
}

// Reads the stored settings and follows the fields; `notify` gets a line about each value that is corrected.
export function bindSettings(notify) {
  const stored = readStored();
  for (const name of Object.keys(DEFAULTS)) {
    settings[name] = name in stored ? allowed(name, stored[name]) : DEFAULTS[name];
    show(name);
    const field = $(name);
    field.addEventListener("input", () => {
      settings[name] = allowed(name, field.type === "checkbox" ? field.checked : field.value);
      store(name);
      apply();
    });
    for (const event of ["change", "blur"]) field.addEventListener(event, () => { // text that is no number is no change
      const correction = describeCorrection(name);
      if (correction) notify(correction);
      show(name);
    });
  }
  apply();
}

// Offers the server's models where there are several.
export function offerModels(models) {
  for (const name of ["model", "b_model"]) {
    const options = models.map(({ id }) => {
      const option = document.createElement("option");
      option.value = option.textContent = id;
      return option;
    });
    $(name).replaceChildren(...options);
    if (!models.some(({ id }) => id === settings[name])) settings[name] = models[name === "model" ? 0 : models.length - 1]?.id ?? "";
    $(name).value = settings[name];
    $(name).parentElement.hidden = models.length < 2;
  }
}

const hasSeveralModels = () => $("model").options.length > 1; // a single one need not be named

// The fields of a request; of the second setting for `side` "b".
export function requestFields(side = "") {
  const own = (name) => settings[side ? `${side}_${name}` : name];
  const seed = own("seed");
  return {
    ...Object.fromEntries(SAMPLED.map((name) => [name, own(name)])),
    max_tokens: settings.max_tokens, calculator: settings.calculator,
    ...(seed === "" ? {} : { seed }), ...(hasSeveralModels() ? { model: own("model") } : {}),
  };
}

export const getSystemPrompt = (side = "") => settings[side ? `${side}_system` : "system"] || settings.system;

export function getSideLabel(side = "") {
  const { model, temperature, top_p: topP, top_k: topK } = requestFields(side);
  return `${model ? `${model}, ` : ""}temperature ${temperature}, top-p ${topP}, top-k ${topK}`;
}
