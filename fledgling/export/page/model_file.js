// The model's part of the page: base64 of gzip of safetensors, with the description of model and tokenizer as metadata.

// text: base64, possibly in lines.
export function decodeBase64(text) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  const parts = [];
  for (let at = 0; at < text.length; at += 1 << 20) parts.push(Uint8Array.from(atob(text.slice(at, at + (1 << 20))), (c) => c.charCodeAt(0)));
  const bytes = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  parts.reduce((at, part) => { bytes.set(part, at); return at + part.length; }, 0);
  return bytes;
}

// Returns the description, `tensors` {name: {dtype, shape, begin, end}}, and the bytes `data` in which they lie.
export async function readModelFile(base64) {
  const stream = new Blob([decodeBase64(base64)]).stream().pipeThrough(new DecompressionStream("gzip"));
  const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
  const size = Number(new DataView(bytes.buffer).getBigUint64(0, true));
  const { __metadata__: metadata, ...header } = JSON.parse(new TextDecoder().decode(bytes.subarray(8, 8 + size)));
  const data = bytes.subarray(8 + size);
  const tensors = Object.fromEntries(Object.entries(header).map(([name, { dtype, shape, data_offsets: [begin, end] }]) =>
    [name, { dtype, shape, begin, end }]));
  const { begin, end } = tensors["tokenizer.merges"];
  return { ...JSON.parse(metadata.description), tensors, data, merges: new Int32Array(data.slice(begin, end).buffer) };
}
