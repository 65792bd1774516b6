// Requests to the server's API: the list of models, and answers as a stream of chunks.

export class RequestError extends Error {}

export async function listModels(key) {
  const response = await fetch("v1/models", { headers: requestHeaders(key) });
  if (!response.ok) throw new RequestError(await errorMessage(response));
  return (await response.json()).data.map((model) => model.id);
}

function requestHeaders(key) {
  return { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
}

async function errorMessage(response) {
  try {
    return String((await response.json()).error.message);
  } catch {
    return `the server answered ${response.status}`;
  }
}

// Yields {text, parts, tokens, reason} for every chunk; throws RequestError with the server's message.
export async function* streamAnswer(body, key, signal) {
  const response = await fetch("v1/chat/completions", {
    method: "POST", headers: requestHeaders(key), signal, body: JSON.stringify({ ...body, stream: true }),
  });
  if (!response.ok) throw new RequestError(await errorMessage(response));
  let buffer = "";
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new RequestError("the server ended the answer early");
    const lines = (buffer + value).split("\n\n");
    buffer = lines.pop();
    for (const line of lines) {
      const data = line.replace(/^data: /, "");
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new RequestError(String(chunk.error.message));
      const choice = chunk.choices[0];
      if (choice) yield {
        text: choice.delta.content ?? "",
        parts: choice.delta.parts ?? (choice.delta.content ? [{ type: "text", text: choice.delta.content }] : []),
        tokens: choice.logprobs?.content ?? [],
        reason: choice.finish_reason,
      };
    }
  }
}
