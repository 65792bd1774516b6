// Requests to the server's API: the list of models, and answers as a stream of chunks.

export class RequestError extends Error {
  constructor(message, code = null) {
    super(message);
    this.code = code;
  }
}

const UNREACHABLE = "The server cannot be reached; is it running?";

// Returns the models of the server: [{id, max_model_len, examples}, ...].
export async function listModels(key) {
  const response = await request("v1/models", { headers: requestHeaders(key) });
  try {
    return (await response.json()).data.filter((model) => typeof model.id === "string");
  } catch {
    throw new RequestError("the server's list of models cannot be read");
  }
}

// Returns the tools of MCP servers: [{type, function: {name, description, parameters}, allowed}, ...].
export async function listTools(key) {
  const { tools } = await (await request("mcp/tools", { headers: requestHeaders(key) })).json();
  return tools.filter((tool) => typeof tool?.function?.name === "string");
}

// Returns the text of a tool's result, or of why there is none.
export async function callTool(name, values, key, signal) {
  try {
    const body = JSON.stringify({ name, arguments: values });
    const response = await request("mcp/call", { method: "POST", headers: requestHeaders(key), signal, body });
    return String((await response.json()).result);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    return `error: ${error.message}`;
  }
}

export const describeConnection = async (models) => `Connected to ${models.map(({ id }) => id).join(", ")}.`;

function requestHeaders(typed) {
  const key = typed.trim();
  if (/[^ -~]/.test(key)) throw new RequestError("the API key has a character that no key has", "invalid_api_key"); // fetch would fail
  return { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
}

async function request(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    throw error.name === "AbortError" ? error : new RequestError(UNREACHABLE, "unreachable");
  }
  if (!response.ok) throw await responseError(response);
  return response;
}

async function responseError(response) {
  let message = `the server answered ${response.status}`;
  let code = null;
  try {
    const { error } = await response.json();
    message = String(error.message);
    code = error.code;
  } catch { /* a body that is not the API's: the status is all there is */ }
  const wait = response.headers.get("retry-after");
  if (/^\d{1,5}$/.test(wait ?? "")) message += ` (in ${wait} s)`;
  return new RequestError(message, code);
}

// Yields {text, parts, calls, tokens, reason, usage, dropped} for every chunk. Throws RequestError with the server's message,
// and where the stream ends before the answer did.
export async function* streamAnswer(body, key, signal) {
  const response = await request("v1/chat/completions", {
    method: "POST", headers: requestHeaders(key), signal,
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
  });
  let finished = false;
  try {
    for await (const data of readEvents(response)) {
      if (data === "[DONE]") return;
      const chunk = parseChunk(data);
      finished ||= Boolean(chunk.reason);
      yield chunk;
    }
  } catch (error) {
    if (error.name === "AbortError" || error instanceof RequestError) throw error;
    if (!finished) throw new RequestError("the connection broke before the answer ended", "cut");
    return;
  }
  if (!finished) throw new RequestError("the server ended the answer early", "cut");
}

// Yields the data of server-sent events; the end of a line may be CR LF, and an event may arrive in any pieces.
async function* readEvents(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const events = (buffer + value).split(/\r?\n\r?\n/);
    buffer = events.pop();
    for (const event of events) {
      const lines = event.split(/\r?\n/).filter((line) => line.startsWith("data:"));
      if (lines.length) yield lines.map((line) => line.slice(5).replace(/^ /, "")).join("\n");
    }
  }
}

function parseChunk(data) {
  let chunk;
  try {
    chunk = JSON.parse(data);
  } catch {
    throw new RequestError("the server sent a chunk that is not JSON");
  }
  if (chunk?.error) throw new RequestError(String(chunk.error.message), chunk.error.code);
  const choice = chunk?.choices?.[0];
  const delta = choice?.delta ?? {};
  const text = typeof delta.content === "string" ? delta.content : "";
  const thought = typeof delta.reasoning_content === "string" ? delta.reasoning_content : "";
  const parts = thought ? [{ type: "thinking", text: thought }] : []; // which precedes the answer
  parts.push(...(Array.isArray(delta.parts) ? delta.parts : text ? [{ type: "text", text }] : []));
  return {
    text,
    parts: parts.map((part) => ({ type: String(part?.type), text: String(part?.text ?? ""), index: part?.index })),
    calls: (Array.isArray(delta.tool_calls) ? delta.tool_calls : []).map(({ function: called }) => (
      { name: called?.name ?? null, args: String(called?.arguments ?? "") })),
    tokens: choice?.logprobs?.content ?? [],
    reason: choice?.finish_reason ?? null,
    usage: chunk?.usage ?? null,
    dropped: chunk?.dropped_turns ?? 0,
  };
}
