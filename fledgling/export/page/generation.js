// One answer: samples token by token, runs the calculator inside the answer, and reports text by kind, as the engine of
// infer/ does. Answers are generated one after the other; what the cache holds of a prompt is not recomputed.

import { calculate } from "./calculator.js";
import { MAX_TOKENS, Network } from "./network.js";
import { dropOldestTurns, renderPrompt } from "./prompt.js";
import { hashToUniform, listTop, penalizeRepetition, sampleToken } from "./sampling.js";
import { Tokenizer } from "./tokenizer.js";

const SLICE_MS = 15; // of computing between two moments in which the page reacts
const MAX_CALL_TOKENS = 200; // a longer call of the calculator is not run
const KINDS = { python_start: "python", python_end: "text", output_start: "output", output_end: "text" };

export class ContextError extends Error {}

export class Model {
  // engine: the bytes of engine.wasm; file: of `readModelFile`.
  static async load(engine, file) {
    return new Model(file, await Network.load(engine, file));
  }

  constructor(file, network) {
    const { special, splitter } = file.tokenizer;
    this.description = file;
    this.network = network;
    this.tokenizer = new Tokenizer({ merges: file.merges, special, splitter, vocabSize: file.config.vocab_size });
    this.context = file.config.context;
    this.stops = new Set(["bos", "assistant_end"].map((name) => special[`<|${name}|>`]));
    this.cached = []; // the tokens whose keys and values the network holds
    this.busy = Promise.resolve(); // until the answer before has ended
  }

  // Computes the tokens that the cache lacks, a few at a time; `pause()` lets the page react in between.
  async prefill(tokens, pause) {
    let same = 0;
    while (same < tokens.length - 1 && this.cached[same] === tokens[same]) same++;
    this.cached.length = this.network.length = same;
    while (this.cached.length < tokens.length) {
      this.append(tokens.slice(this.cached.length, this.cached.length + MAX_TOKENS));
      await pause();
    }
  }

  append(tokens) {
    this.network.extend(tokens);
    this.cached.push(...tokens);
  }

  // Yields {text, parts, calls, tokens, reason, usage, dropped} for every slice of time, as the server's API does.
  async *answer(body, signal) {
    const before = this.busy;
    let release;
    this.busy = new Promise((resolve) => { release = resolve; });
    try {
      await before;
      yield* this.generate(body, signal);
    } finally {
      release();
    }
  }

  async *generate({ messages, max_tokens: maxTokens = null, calculator = true, seed, repetition_penalty: penalty = 1, top_logprobs: numTop = 0, ...sampling }, signal) {
    const { tokenizer, network, context } = this;
    const fitting = dropOldestTurns(tokenizer, messages, context, maxTokens);
    const prompt = renderPrompt(tokenizer, fitting.messages);
    if (prompt.length >= context) throw new ContextError(`the message has ${prompt.length} tokens and the model's whole context is ${context}: shorten it`);
    seed ??= crypto.getRandomValues(new Uint32Array(1))[0];
    const limit = Math.min(maxTokens ?? Infinity, context - prompt.length);
    const seen = new Set(prompt);
    const tool = new ToolState(tokenizer, calculator);
    const text = new AnswerText(tokenizer);
    const usage = { prompt_tokens: prompt.length, completion_tokens: 0 };
    let sliceEnd = performance.now() + SLICE_MS;
    const pause = async () => {
      signal?.throwIfAborted();
      if (performance.now() < sliceEnd) return;
      await nextTask();
      signal?.throwIfAborted();
      sliceEnd = performance.now() + SLICE_MS;
    };
    await this.prefill(prompt, pause);
    let chunk = emptyChunk(fitting.dropped);
    for (let count = 0, reason = null; !reason;) {
      const isForced = tool.forced.length > 0;
      let id = tool.forced.shift();
      let logprob = 0;
      let top = [];
      if (!isForced) {
        const logits = network.computeLogits();
        penalizeRepetition(logits, seen, penalty);
        ({ id, logprob } = sampleToken(logits, sampling, hashToUniform(seed, count)));
        top = listTop(logits, numTop);
      }
      count++;
      seen.add(id);
      const stops = !isForced && this.stops.has(id);
      if (!isForced && !stops) tool.feed(id);
      text.push(id, chunk.parts);
      if (numTop) chunk.tokens.push({ token: tokenizer.name(id), logprob, top_logprobs: top.map((other) => ({ token: tokenizer.name(other.id), logprob: other.logprob })) });
      reason = stops ? "stop" : count >= limit ? "length" : null;
      if (reason) text.finish(chunk.parts);
      if (reason || performance.now() >= sliceEnd) {
        usage.completion_tokens = count;
        yield finishChunk(chunk, reason, reason ? usage : null);
        chunk = emptyChunk(fitting.dropped);
        await pause();
      }
      if (!reason) this.append([id]);
    }
  }
}

const emptyChunk = (dropped) => ({ parts: [], calls: [], tokens: [], dropped }); // calls: of a server's tools

function finishChunk(chunk, reason, usage) {
  const text = chunk.parts.filter(({ type }) => type === "text").map((part) => part.text).join("");
  return { ...chunk, text, reason, usage };
}

// Resolves in a later task, before which the page handles its events; unlike a timer it is not slowed in a hidden tab.
function nextTask() {
  return new Promise((resolve) => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => { port1.close(); resolve(); };
    port2.postMessage(null);
  });
}

// Detects `python_start expression python_end` and queues the tokens that must follow it.
class ToolState {
  forced = [];
  expression = null; // its tokens; null outside of a call

  constructor(tokenizer, enabled) {
    this.tokenizer = tokenizer;
    this.enabled = enabled;
  }

  feed(id) {
    const { special } = this.tokenizer;
    if (!this.enabled || special["<|python_start|>"] === undefined) return;
    if (id === special["<|python_start|>"]) this.expression = [];
    else if (this.expression && id === special["<|python_end|>"]) {
      const isLong = this.expression.length > MAX_CALL_TOKENS;
      const result = isLong ? "error: too long" : calculate(this.tokenizer.decode(this.expression));
      this.forced = [special["<|output_start|>"], ...this.tokenizer.encode(result), special["<|output_end|>"]];
      this.expression = null;
    } else if (this.expression && this.expression.length <= MAX_CALL_TOKENS) this.expression.push(id);
  }
}

// Tokens to text by kind. The bytes of an incomplete character are held back; a control token begins another part.
class AnswerText {
  kind = "text";
  index = 0;
  decoder = new TextDecoder("utf-8", { ignoreBOM: true });

  constructor(tokenizer) {
    this.tokenizer = tokenizer;
  }

  push(id, parts) {
    const kind = KINDS[this.tokenizer.names.get(id)?.slice(2, -2)];
    if (!kind) return this.add(this.decoder.decode(this.tokenizer.bytes[id], { stream: true }), parts);
    this.finish(parts);
    this.kind = kind;
    this.index++;
  }

  finish(parts) {
    this.add(this.decoder.decode(), parts);
  }

  add(text, parts) {
    if (text) parts.push({ type: this.kind, text, index: this.index });
  }
}
