// In place of the server's API (serve/page/api.js): the model that this page holds.

import { ContextError, Model } from "./generation.js";
import { decodeBase64, readModelFile } from "./model_file.js";

export class RequestError extends Error {
  constructor(message, code = null) {
    super(message);
    this.code = code;
  }
}

let loading = null;

const loadModel = () => (loading ??= load());

async function load() {
  const read = (id) => {
    const node = document.getElementById(id);
    const text = node.textContent;
    node.remove(); // it is as large as the model
    return text;
  };
  try {
    const file = await readModelFile(read("model-file"));
    return await Model.load(decodeBase64(read("engine")), file);
  } catch (error) {
    throw new RequestError(`This browser cannot run the model: ${error.message}. It needs WebAssembly with SIMD and DecompressionStream: any browser of 2023 or later.`);
  }
}

export async function listModels() {
  const { description: { name, examples }, context } = await loadModel();
  return [{ id: name, max_model_len: context, examples }];
}

// No server, no tools but the calculator.
export const listTools = async () => [];
export const callTool = async () => "error: this page has no tools";

export async function describeConnection() {
  const { description } = await loadModel();
  return `${description.name}: ${description.size}, inside this page.`;
}

export async function* streamAnswer(body, key, signal) {
  try {
    yield* (await loadModel()).answer(body, signal);
  } catch (error) {
    throw error instanceof ContextError ? new RequestError(error.message) : error;
  }
}
