// Text to token ids and back: the byte-level BPE of text/tokenizer.py. The ids of the first 256 tokens are the bytes,
// every merge makes one more, and no text becomes a special token. Which characters are letters, numbers and white space
// is part of the model's file, so that it does not depend on the browser's version of Unicode.

const MAX_CACHED_PIECES = 20_000;

// The split regex of text/bpe.py, GPT-4's with groups of at most `maxDigits` digits; the classes are ranges of a regex.
// A long s is an s where case is ignored.
export function makeSplitter({ letters, numbers, spaces, maxDigits }) {
  const digits = maxDigits === 1 ? "" : `{1,${maxDigits}}`;
  return new RegExp(
    `'(?:[sS\u017ftTmMdD]|[rR][eE]|[vV][eE]|[lL][lL])|[^\\r\\n${letters}${numbers}]?[${letters}]+|[${numbers}]${digits}` +
    `| ?[^${spaces}${letters}${numbers}]+[\\r\\n]*|[${spaces}]*[\\r\\n]+|[${spaces}]+(?![^${spaces}])|[${spaces}]+`, "gu");
}

export class Tokenizer {
  // merges: Int32Array of (left, right, merged) in order; special: {name: id}; vocabSize: all ids.
  constructor({ merges, special, vocabSize, splitter }) {
    this.vocabSize = vocabSize;
    this.special = special;
    this.splitter = makeSplitter(splitter);
    this.ranks = new Map(); // left * vocabSize + right -> rank
    this.merged = new Int32Array(merges.length / 3); // by rank
    this.bytes = Array.from({ length: vocabSize }, (_, id) => (id < 256 ? Uint8Array.of(id) : new Uint8Array()));
    for (let rank = 0; rank < this.merged.length; rank++) {
      const [left, right, id] = merges.subarray(3 * rank, 3 * rank + 3);
      this.ranks.set(left * vocabSize + right, rank);
      this.merged[rank] = id;
      if (!this.bytes[id].length) this.bytes[id] = Uint8Array.of(...this.bytes[left], ...this.bytes[right]);
    }
    this.names = new Map(Object.entries(special).map(([name, id]) => [id, name]));
    this.pieces = new Map(); // text of a piece -> its ids
  }

  encode(text) {
    const ids = [];
    for (const [piece] of text.toWellFormed().matchAll(this.splitter)) {
      let found = this.pieces.get(piece);
      if (!found) {
        found = this.mergePairs(new TextEncoder().encode(piece));
        if (this.pieces.size >= MAX_CACHED_PIECES) this.pieces.clear();
        if (piece.length < 100) this.pieces.set(piece, found);
      }
      for (const id of found) ids.push(id);
    }
    return ids;
  }

  // Merges the pair of the lowest rank, of equal ones the first, until none is left; n log n for any text.
  mergePairs(bytes) {
    const count = bytes.length;
    const ids = Int32Array.from(bytes);
    const next = Int32Array.from(ids, (_, at) => at + 1);
    const before = Int32Array.from(ids, (_, at) => at - 1);
    const rankAt = (at) => (next[at] < count ? this.ranks.get(ids[at] * this.vocabSize + ids[next[at]]) : undefined);
    const queue = new MinHeap();
    const offer = (at) => {
      const rank = rankAt(at);
      if (rank !== undefined) queue.push(rank * count + at);
    };
    for (let at = 0; at < count; at++) offer(at);
    for (let entry; (entry = queue.pop()) !== undefined;) {
      const at = entry % count;
      const rank = (entry - at) / count;
      if (ids[at] < 0 || rankAt(at) !== rank) continue; // one of the two has been merged since
      const right = next[at];
      ids[at] = this.merged[rank];
      ids[right] = -1;
      next[at] = next[right];
      if (next[at] < count) before[next[at]] = at;
      if (before[at] >= 0) offer(before[at]);
      offer(at);
    }
    return [...ids].filter((id) => id >= 0);
  }

  // The text of one token, as it is shown alone.
  name(id) {
    return this.names.get(id) ?? new TextDecoder("utf-8", { ignoreBOM: true }).decode(this.bytes[id]);
  }

  decode(ids) {
    return new TextDecoder("utf-8", { ignoreBOM: true }).decode(Uint8Array.from(ids.flatMap((id) => [...this.bytes[id]])));
  }
}

class MinHeap {
  items = [];

  push(value) {
    const { items } = this;
    let at = items.push(value) - 1;
    for (let up; at && items[up = (at - 1) >> 1] > value; at = up) items[at] = items[up];
    items[at] = value;
  }

  pop() {
    const { items } = this;
    const top = items[0];
    const value = items.pop();
    if (!items.length) return top;
    let at = 0;
    for (let down; (down = 2 * at + 1) < items.length; at = down) {
      if (items[down + 1] < items[down]) down++;
      if (items[down] >= value) break;
      items[at] = items[down];
    }
    items[at] = value;
    return top;
  }
}
