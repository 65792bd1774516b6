// For Node.js: reads a page in one file, and calls the functions that its script has. Input and output are JSON:
// {page, calls: [[name, ...arguments], ...]} -> [result, ...]. node_calls.py starts it.

import { calculate } from "./calculator.js";
import { Model } from "./generation.js";
import { decodeBase64, readModelFile } from "./model_file.js";
import { dropOldestTurns, renderPrompt } from "./prompt.js";
import { argmax, hashToUniform, sampleToken } from "./sampling.js";

const { readFileSync, writeSync } = process.getBuiltinModule("node:fs");

async function callAll({ page, calls }) {
  const html = readFileSync(page, "utf8");
  const block = (id) => html.match(new RegExp(`id="${id}">([^<]*)`))[1];
  const model = await Model.load(decodeBase64(block("engine")), await readModelFile(block("model-file")));
  const { network, tokenizer } = model;
  const read = async (ids) => {
    await model.prefill(ids, () => {});
    return network.computeLogits();
  };
  const functions = {
    calculate, hashToUniform,
    encode: (text) => tokenizer.encode(text),
    name: (id) => tokenizer.name(id),
    prompt: (messages) => renderPrompt(tokenizer, messages),
    dropOldestTurns: (messages, most) => dropOldestTurns(tokenizer, messages, model.context, most),
    sample: (logits, sampling, noise) => sampleToken(Float32Array.from(logits), sampling, noise),
    logits: async (ids) => { // after each token, as base64 of fp32
      const rows = [];
      for (let count = 1; count <= ids.length; count++) rows.push(Buffer.from((await read(ids.slice(0, count))).buffer));
      return Buffer.concat(rows).toString("base64");
    },
    lastLogits: async (ids) => { // after the last token, with nothing in the cache before
      model.cached = [];
      return Buffer.from((await read(ids)).buffer).toString("base64");
    },
    greedy: async (prompt, count) => {
      const ids = [...prompt];
      while (ids.length < prompt.length + count) ids.push(argmax(await read(ids)));
      return ids.slice(prompt.length);
    },
    answer: (body) => collect(model.answer(body)),
    speed: async (prompt, count) => { // [seconds of the prompt, seconds of `count` tokens after it]
      model.cached = [];
      const start = performance.now();
      let logits = await read(prompt);
      const middle = performance.now();
      const ids = [...prompt];
      for (let n = 0; n < count; n++) {
        ids.push(argmax(logits));
        logits = await read(ids);
      }
      return [(middle - start) / 1000, (performance.now() - middle) / 1000];
    },
  };
  const results = [];
  for (const [name, ...given] of calls) results.push(await functions[name](...given));
  return results;
}

async function collect(iterable) {
  const items = [];
  for await (const item of iterable) items.push(item);
  return items;
}

callAll(JSON.parse(readFileSync(0, "utf8"))).then((results) => {
  const output = Buffer.from(JSON.stringify(results));
  for (let at = 0; at < output.length;) at += writeSync(1, output, at);
  process.exit(0);
});
