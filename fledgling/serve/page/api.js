// The server's side of a conversation: one request, and what it says as it says it.

export class Refused extends Error {}

export async function models(key) {
  const answer = await fetch("v1/models", { headers: headers(key) });
  if (!answer.ok) throw new Refused(await reason(answer));
  return (await answer.json()).data.map((model) => model.id);
}

function headers(key) {
  return { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
}

async function reason(answer) {
  try {
    return String((await answer.json()).error.message);
  } catch {
    return `the server answered ${answer.status}`;
  }
}

// Yields {text, parts, tokens, reason} for every chunk; throws Refused with the server's own words.
export async function* ask(body, key, signal) {
  const answer = await fetch("v1/chat/completions", {
    method: "POST", headers: headers(key), signal, body: JSON.stringify({ ...body, stream: true }),
  });
  if (!answer.ok) throw new Refused(await reason(answer));
  let rest = "";
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Refused("the server ended the answer early");
    const lines = (rest + value).split("\n\n");
    rest = lines.pop();
    for (const line of lines) {
      const data = line.replace(/^data: /, "");
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Refused(String(chunk.error.message));
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
