// The decoder of model/transformer.py: which products and norms run in which order, on the functions of engine.cpp.
// One cache holds the keys and values of one row; `extend` appends tokens to it.
//
// T tokens, C width, H heads, G key/value heads, D head width, K columns of a matrix, V vocabulary.

const PAGE_BYTES = 65_536; // of WebAssembly's memory
const ACTIVATIONS = { relu2: 0, gelu: 1, gelu_exact: 2, swiglu: 3, geglu: 1 }; // the numbers of engine.cpp
export const MAX_TOKENS = 16; // of one call of `extend`

const align = (address) => (address + 63) & ~63;

export class Network {
  // engine: the bytes of engine.wasm; file: of `readModelFile`.
  static async load(engine, file) {
    const { instance } = await WebAssembly.instantiate(engine, {});
    return new Network(instance.exports, file);
  }

  constructor(functions, { config, layers, rotary, tensors, data }) {
    Object.assign(this, { functions, config, layers, tensors });
    this.length = 0; // tokens in the cache
    this.memory = functions.memory;
    this.end = align(functions.__heap_base.value);
    this.data = this.reserve(data.length);
    new Uint8Array(this.memory.buffer).set(data, this.data);
    const { width, heads, kv_heads: groups, head_width: D, intermediate_size: F, context } = config;
    const floats = (count) => this.reserve(4 * count);
    this.cache = layers.map(() => [floats(groups * context * D), floats(groups * context * D)]);
    this.rotary = rotary.map((table) => this.makeRotaryTable(table));
    this.at = Object.fromEntries(Object.entries({
      x: width, start: width, normed: width, read: width, query: heads * D, key: groups * D, value: groups * D, attended: heads * D,
      output: width, up: F, gate: F, row: Math.max(width, groups * D),
    }).map(([name, size]) => [name, floats(MAX_TOKENS * size)]));
    this.scores = floats(context + 4);
    this.logits = floats(config.vocab_size);
    this.vectors = new Map(); // name -> address of its values in fp32
    for (const [name, { shape }] of Object.entries(tensors)) if (shape.length === 1) this.vectors.set(name, this.widenVector(name));
  }

  reserve(bytes) {
    const address = this.end;
    this.end = align(address + bytes);
    const missing = this.end - this.memory.buffer.byteLength;
    if (missing > 0) this.memory.grow(Math.ceil(missing / PAGE_BYTES));
    return address;
  }

  floats(address, count) {
    return new Float32Array(this.memory.buffer, address, count);
  }

  widenVector(name) {
    const { shape: [count], begin } = this.tensors[name];
    const address = this.reserve(4 * count); // before the view: memory that grows detaches all of them
    const raw = new Uint16Array(this.memory.buffer, this.data + begin, count);
    new Uint32Array(this.memory.buffer, address, count).set(Uint32Array.from(raw, (value) => value << 16));
    return address;
  }

  // Cosines and sines (context, d / 2), as model/positions.py has them.
  makeRotaryTable({ frequencies, scale }) {
    const { context, rope_direction: direction } = this.config;
    const angles = Float32Array.from({ length: context * frequencies.length }, (_, at) =>
      Math.fround(Math.floor(at / frequencies.length)) * Math.fround(frequencies[at % frequencies.length]));
    const [cosine, sine] = [Math.cos, (angle) => -direction * Math.sin(angle)].map((value) => {
      const address = this.reserve(4 * angles.length);
      this.floats(address, angles.length).set(angles.map((angle) => Math.fround(value(angle)) * scale));
      return address;
    });
    return { cosine, sine, width: 2 * frequencies.length };
  }

  matrix(name) {
    const values = this.tensors[`${name}.values`];
    if (!values) {
      const { shape: [rows, columns], begin } = this.tensors[name];
      return { bits: 16, values: this.data + begin, scales: 0, rows, columns, group: 16 };
    }
    const { shape: [rows, groups], begin } = this.tensors[`${name}.scales`];
    const bits = values.dtype === "I8" ? 8 : 4;
    const columns = values.shape[1] * (8 / bits);
    return { bits, values: this.data + values.begin, scales: this.data + begin, rows, columns, group: columns / groups };
  }

  multiply(name, x, T, out) {
    const { bits, values, scales, rows, columns, group } = this.matrix(`${name}.weight`);
    this.functions.multiply(bits, values, scales, this.vectors.get(`${name}.bias`) ?? 0, rows, columns, group, x, T, out);
  }

  readRow(name, row, out) {
    const { bits, values, scales, columns, group } = this.matrix(name);
    this.functions.read_row(bits, values, scales, columns, group, row, out);
  }

  normalize(name, x, rows, width, out, centered = this.config.norm === "layer") {
    const [weight, bias] = ["weight", "bias"].map((part) => this.vectors.get(`${name}.${part}`) ?? 0);
    this.functions.normalize(x, rows, width, this.config.norm_eps, Number(centered), weight, bias, out);
  }

  add(x, y, count) {
    this.functions.mix(x, 1, y, 1, count, x);
  }

  // Computes at most MAX_TOKENS tokens that follow those of the cache.
  extend(tokens) {
    const { at, config } = this;
    const { width } = config;
    this.embed(tokens);
    if (config.residual_scalars) this.functions.mix(at.x, 1, at.x, 0, tokens.length * width, at.start);
    this.layers.forEach((layer, number) => this.runBlock(layer, number, tokens));
    this.length += tokens.length;
    this.normalize("norm", at.x + 4 * (tokens.length - 1) * width, 1, width, at.normed);
  }

  embed(tokens) {
    const { at, config, functions } = this;
    const { width } = config;
    tokens.forEach((token, t) => {
      const x = at.x + 4 * t * width;
      this.readRow(config.tie_embeddings ? "head.weight" : "embedding.weight", token, x);
      if (config.embedding_norm) functions.normalize(x, 1, width, config.norm_eps, 0, 0, 0, x);
      else if (config.embedding_multiplier !== 1) functions.mix(x, config.embedding_multiplier, x, 0, width, x);
      if (config.positions !== "learned") return;
      this.readRow("positions.weight", this.length + t, at.row);
      this.add(x, at.row, width);
    });
  }

  runBlock(layer, number, tokens) {
    const { at, config } = this;
    const { width, norm_placement: placement } = config;
    const name = `blocks.${number}`;
    const T = tokens.length;
    const count = T * width;
    if (config.residual_scalars) {
      const [a, b] = this.floats(this.vectors.get(`${name}.residual.weight`), 2);
      this.functions.mix(at.x, a, at.start, b, count, at.x);
    }
    const normalized = (part) => {
      if (placement === "post") return at.read;
      this.normalize(`${name}.${part}`, at.read, T, width, at.normed);
      return at.normed;
    };
    const addOutput = (part) => {
      if (placement !== "pre") this.normalize(`${name}.${part}`, at.output, T, width, at.output);
      this.add(at.x, at.output, count);
    };
    const copyStream = () => this.functions.mix(at.x, 1, at.x, 0, count, at.read);
    copyStream();
    this.attend(`${name}.attention`, layer, number, normalized("attention_norm"), tokens);
    addOutput("attention_output_norm");
    if (!config.parallel_residual) copyStream();
    this.feedForward(`${name}.mlp`, normalized("mlp_norm"), T);
    addOutput("mlp_output_norm");
  }

  attend(name, { window, rotary, value_embedding: hasValueEmbedding }, number, x, tokens) {
    const { at, config, functions, length } = this;
    const { heads, kv_heads: groups, head_width: D, context } = config;
    const T = tokens.length;
    this.multiply(`${name}.q_proj`, x, T, at.query);
    this.multiply(`${name}.k_proj`, x, T, at.key);
    this.multiply(`${name}.v_proj`, x, T, at.value);
    if (hasValueEmbedding) tokens.forEach((token, t) => {
      this.readRow(`${name}.value_embedding.weight`, token, at.row);
      this.add(at.value + 4 * t * groups * D, at.row, groups * D);
    });
    for (const [part, vector, count] of [["q", at.query, heads], ["k", at.key, groups]]) {
      const norm = `${name}.query_key.${part}_norm`;
      if (config.qk_norm && config.qk_norm_weights === "layer") this.normalize(norm, vector, T, count * D, vector, false);
      if (config.qk_norm && config.qk_norm_weights === "head") this.normalize(norm, vector, T * count, D, vector, false);
      if (rotary !== null) {
        const { cosine, sine, width } = this.rotary[rotary];
        functions.rotate(vector, T, count, D, width, cosine, sine, length);
      }
      if (config.qk_norm && config.qk_norm_weights === "none") functions.normalize(vector, T * count, D, config.norm_eps, 0, 0, 0, vector);
    }
    const [keys, values] = this.cache[number];
    functions.store(at.key, T, groups, D, context, length, keys);
    functions.store(at.value, T, groups, D, context, length, values);
    for (let t = 0; t < T; t++) {
      const last = length + t;
      const first = window === null ? 0 : Math.max(0, last - window + 1);
      const by = 4 * t * heads * D;
      functions.attend(at.query + by, keys, values, heads, groups, D, context, first, last, this.scores, at.attended + by);
    }
    this.multiply(`${name}.o_proj`, at.attended, T, at.output);
  }

  feedForward(name, x, T) {
    const { at, config, functions } = this;
    const count = T * config.intermediate_size;
    const gated = config.activation in { swiglu: 0, geglu: 0 };
    this.multiply(`${name}.${gated ? "gate_proj" : "fc1"}`, x, T, at.gate);
    if (gated) this.multiply(`${name}.up_proj`, x, T, at.up);
    functions.activate(ACTIVATIONS[config.activation], at.gate, gated ? at.up : 0, count);
    this.multiply(`${name}.${gated ? "down_proj" : "fc2"}`, at.gate, T, at.output);
  }

  // The logits (V) after the last token, soft-capped where the model has a cap; a copy.
  computeLogits() {
    const { logit_softcap: cap, vocab_size: size } = this.config;
    this.multiply("head", this.at.normed, 1, this.logits);
    const logits = this.floats(this.logits, size).slice();
    return cap ? logits.map((value) => cap * Math.tanh(value / cap)) : logits;
  }
}
