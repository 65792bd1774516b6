// From logits to one token: penalties, temperature, truncation and the random number of infer/sampling.py.

const MASK = (1n << 64n) - 1n;
const MIN_TEMPERATURE = 1e-30;

function splitmix64(word) {
  word = (word + 0x9E3779B97F4A7C15n) & MASK;
  word = ((word ^ (word >> 30n)) * 0xBF58476D1CE4E5B9n) & MASK;
  word = ((word ^ (word >> 27n)) * 0x94D049BB133111EBn) & MASK;
  return word ^ (word >> 31n);
}

// One number in [0, 1) for each (seed, position): request 0 of `hash_to_uniform`.
export function hashToUniform(seed, position) {
  const request = splitmix64(splitmix64(BigInt(seed) & MASK));
  return Number(splitmix64(request ^ BigInt(position)) >> 41n) * 2 ** -23;
}

// Divides positive logits and multiplies negative ones, in place, of every token of prompt and answer.
export function penalizeRepetition(logits, seen, penalty) {
  if (penalty === 1) return;
  for (const id of seen) logits[id] = logits[id] > 0 ? logits[id] / penalty : logits[id] * penalty;
}

// logits (V) -> probabilities (V) at a temperature.
function softmax(logits, temperature) {
  const most = logits.reduce((a, b) => Math.max(a, b), -Infinity);
  const weights = Float64Array.from(logits, (value) => Math.exp((value - most) / temperature));
  const total = weights.reduce((a, b) => a + b, 0);
  return weights.map((weight) => weight / total);
}

export function argmax(values) {
  let best = 0;
  for (let id = 1; id < values.length; id++) if (values[id] > values[best]) best = id;
  return best;
}

// Returns the sampled token and its log-probability over the whole vocabulary (of temperature 1 where it is greedy).
export function sampleToken(logits, { temperature = 1, top_k: topK = 0, top_p: topP = 1, min_p: minP = 0 }, noise) {
  const probabilities = softmax(logits, temperature ? Math.max(temperature, MIN_TEMPERATURE) : 1);
  const id = temperature ? invertCdf(truncate(probabilities, topK, topP, minP), noise) : argmax(logits);
  return { id, logprob: Math.log(probabilities[id]) };
}

// Sets probabilities outside the allowed sets to 0; tokens that tie with the last allowed one stay.
function truncate(probabilities, topK, topP, minP) {
  let threshold = 0;
  const sorts = (topK > 0 && topK < probabilities.length) || topP < 1;
  const descending = sorts ? probabilities.slice().sort().reverse() : null;
  if (topK > 0 && topK < probabilities.length) threshold = descending[topK - 1];
  if (topP < 1) {
    let before = 0;
    let last = 0;
    for (; last < descending.length && before < topP; last++) before += descending[last];
    threshold = Math.max(threshold, descending[last - 1]);
  }
  if (minP > 0) threshold = Math.max(threshold, minP * probabilities.reduce((a, b) => Math.max(a, b), 0));
  return threshold ? probabilities.map((value) => (value < threshold ? 0 : value)) : probabilities;
}

function invertCdf(weights, noise) {
  const target = noise * weights.reduce((a, b) => a + b, 0);
  let sum = 0;
  for (let id = 0; id < weights.length; id++) {
    sum += weights[id];
    if (weights[id] && sum > target) return id;
  }
  return argmax(weights);
}

// The `count` most likely tokens and their log-probabilities at temperature 1, the most likely first.
export function listTop(logits, count) {
  const top = [];
  for (let id = 0; id < logits.length; id++) {
    if (top.length === count && logits[id] <= logits[top.at(-1)]) continue;
    if (top.length === count) top.pop();
    let at = top.length;
    while (at && logits[top[at - 1]] < logits[id]) at--;
    top.splice(at, 0, id);
  }
  const most = logits[top[0]];
  const total = most + Math.log(logits.reduce((sum, value) => sum + Math.exp(value - most), 0));
  return top.map((id) => ({ id, logprob: logits[id] - total }));
}
