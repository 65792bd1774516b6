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
    this.tokens = []; // their ids
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
      ...Object.fromEntries(this.listKeptStreams().map((layer) => [`stream${layer}`, width])),
    }).map(([name, size]) => [name, floats(MAX_TOKENS * size)]));
    this.scores = floats(context + 4);
    this.logits = floats(config.vocab_size);
    this.vectors = new Map(); // name -> address of its values in fp32
    for (const [name, { shape }] of Object.entries(tensors)) if (shape.length === 1 || name.endsWith(".gate.weight")) this.vectors.set(name, this.widenVector(name));
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
    const { shape, begin } = this.tensors[name];
    const count = shape.reduce((a, b) => a * b, 1);
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

  scalars(name, count) {
    return this.floats(this.vectors.get(name), count);
  }

  // Computes at most MAX_TOKENS tokens that follow those of the cache.
  extend(tokens) {
    const { at, config } = this;
    const { width } = config;
    const count = tokens.length * width;
    this.tokens = [...this.tokens.slice(0, this.length), ...tokens];
    tokens.forEach((token, t) => this.embed(token, at.x + 4 * t * width));
    if (config.smear) this.smear(tokens.length);
    if (config.positions === "learned") tokens.forEach((_, t) => {
      this.readRow("positions.weight", this.length + t, at.row);
      this.add(at.x + 4 * t * width, at.row, width);
    });
    if (config.residual_scalars) this.functions.mix(at.x, 1, at.x, 0, count, at.start);
    this.layers.forEach((layer, number) => {
      this.takeShortcuts(number, count);
      this.runBlock(layer, number, tokens);
    });
    this.takeShortcuts(config.depth, count);
    this.length += tokens.length;
    this.normalize("norm", at.x + 4 * (tokens.length - 1) * width, 1, width, at.normed);
  }

  embed(token, x) {
    const { config, functions } = this;
    const { width } = config;
    this.readRow(config.tie_embeddings ? "head.weight" : "embedding.weight", token, x);
    if (config.embedding_norm) functions.normalize(x, 1, width, config.norm_eps, 0, 0, 0, x);
    else if (config.embedding_multiplier !== 1) functions.mix(x, config.embedding_multiplier, x, 0, width, x);
  }

  // model/smear.py: every embedded token takes a gated share of the one before; from the last to the first, in place.
  smear(T) {
    const { at, config: { width }, functions } = this;
    const [scale] = this.scalars("smear.scale.weight", 1);
    const gate = this.computeGates("smear.gate.weight", at.x, T, 1);
    for (let t = T - 1; t >= 0; t--) {
      const x = at.x + 4 * t * width;
      if (t) functions.mix(x, 1, x - 4 * width, scale * gate[t], width, x);
      else if (this.length) {
        this.embed(this.tokens[this.length - 1], at.row);
        functions.mix(x, 1, at.row, scale * gate[0], width, x);
      }
    }
  }

  // model/scalars.py: sigmoid(W x) of the first values of x (T, C), for each token and head.
  computeGates(name, x, T, heads) {
    const { width } = this.config;
    const size = this.tensors[name].shape[1];
    const weight = this.scalars(name, heads * size);
    const values = this.floats(x, T * width);
    return Float32Array.from({ length: T * heads }, (_, at) => {
      const [t, h] = [Math.floor(at / heads), at % heads];
      let z = 0;
      for (let i = 0; i < size; i++) z += weight[h * size + i] * values[t * width + i];
      return 1 / (1 + Math.exp(-z));
    });
  }

  // The layers before which the stream is kept for a later one (model/residual.py).
  listKeptStreams() {
    const { depth, num_skips: skips, back_out: backOut } = this.config;
    return Array.from({ length: depth + 1 }, (_, layer) => layer)
      .filter((layer) => (1 <= layer && layer <= skips) || (backOut && layer === Math.floor(depth / 2)));
  }

  takeShortcuts(layer, count) {
    const { at, config: { depth, num_skips: skips, back_out: backOut }, functions } = this;
    if (at[`stream${layer}`]) functions.mix(at.x, 1, at.x, 0, count, at[`stream${layer}`]);
    const skip = depth - 2 - layer;
    if (0 <= skip && skip < skips) functions.mix(at.x, 1, at[`stream${skip + 1}`], this.scalars("skip_connections.skips.weight", skips)[skip], count, at.x);
    if (backOut && layer === depth) functions.mix(at.x, 1, at[`stream${Math.floor(depth / 2)}`], -this.scalars("skip_connections.back_out.weight", 1)[0], count, at.x);
  }

  runBlock(layer, number, tokens) {
    const { at, config } = this;
    const { width, norm_placement: placement } = config;
    const name = `blocks.${number}`;
    const T = tokens.length;
    const count = T * width;
    if (config.residual_scalars) {
      const [a, b] = this.scalars(`${name}.residual.weight`, 2);
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
    if (hasValueEmbedding) this.addValueEmbeddings(`${name}.value_embedding`, x, tokens);
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
    if (config.exclusive_attention) this.excludeOwnValues(T);
    if (config.head_gates) {
      const gates = this.computeGates(`${name}.gate.weight`, x, T, heads);
      const attended = this.floats(at.attended, T * heads * D);
      for (let i = 0; i < attended.length; i++) attended[i] *= 2 * gates[Math.floor(i / D)];
    }
    this.multiply(`${name}.o_proj`, at.attended, T, at.output);
  }

  // model/value_embedding.py: an embedding of the token, gated for each head or not, is added to its values.
  addValueEmbeddings(name, x, tokens) {
    const { at, config: { kv_heads: groups, head_width: D, value_gates: isGated } } = this;
    const gates = isGated ? this.computeGates(`${name}.gate.weight`, x, tokens.length, groups) : null;
    tokens.forEach((token, t) => {
      this.readRow(`${name}.weight`, token, at.row);
      for (let g = 0; g < groups; g++)
        this.functions.mix(at.value + 4 * (t * groups + g) * D, 1, at.row + 4 * g * D, gates ? 2 * gates[t * groups + g] : 1, D, at.value + 4 * (t * groups + g) * D);
    });
  }

  // `exclude_own_value` of model/attention.py: each head's result without its part along the token's own value.
  excludeOwnValues(T) {
    const { at, config: { heads, kv_heads: groups, head_width: D } } = this;
    const attended = this.floats(at.attended, T * heads * D);
    const values = this.floats(at.value, T * groups * D);
    for (let job = 0; job < T * heads; job++) {
      const own = values.subarray(Math.floor(job * groups / heads) * D).subarray(0, D);
      const y = attended.subarray(job * D, (job + 1) * D);
      const squares = own.reduce((sum, value) => sum + value * value, 0);
      const share = y.reduce((sum, value, i) => sum + value * own[i], 0) / Math.max(squares, 1e-12);
      for (let i = 0; i < D; i++) y[i] -= share * own[i];
    }
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
    const { logit_softcap: cap, logit_shift: shift, vocab_size: size } = this.config;
    this.multiply("head", this.at.normed, 1, this.logits);
    const logits = this.floats(this.logits, size).slice();
    return cap ? logits.map((value) => cap * Math.tanh((value + shift) / cap)) : logits;
  }
}
