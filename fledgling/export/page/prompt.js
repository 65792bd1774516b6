// Messages to token ids: the layout of text/conversation.py, and the rule of text/truncation.py that drops the oldest
// turns. A message is {role, content} or {role, parts}; user and assistant alternate, after at most one system message.

const ANSWER_DIVISOR = 4; // an answer's part of the context, at most

const partsOf = ({ content, parts }) => parts ?? [{ type: "text", text: content }];

export function maxPromptTokens(context, maxNewTokens) {
  const reserved = Math.floor(context / ANSWER_DIVISOR);
  return context - Math.min(maxNewTokens ?? reserved, reserved);
}

// The ids of a conversation. Special tokens are inserted by id, so that no text becomes one.
export function renderConversation(tokenizer, messages) {
  const special = (name) => tokenizer.special[`<|${name}|>`];
  const ids = [special("bos")];
  let system = "";
  for (const message of messages) {
    if (message.role === "system") system = `${message.content}\n\n`;
    else if (message.role === "user") {
      ids.push(special("user_start"), ...tokenizer.encode(system + message.content), special("user_end"));
      system = "";
    } else {
      ids.push(special("assistant_start"));
      for (const { type, text } of partsOf(message)) {
        const encoded = tokenizer.encode(text);
        ids.push(...(type === "text" ? encoded : [special(`${type}_start`), ...encoded, special(`${type}_end`)]));
      }
      ids.push(special("assistant_end"));
    }
  }
  return ids;
}

// The ids after which an answer is sampled; a conversation that ends with the model's message is continued.
export function renderPrompt(tokenizer, messages) {
  const ids = renderConversation(tokenizer, messages);
  return messages.at(-1).role === "assistant" ? ids.slice(0, -1) : [...ids, tokenizer.special["<|assistant_start|>"]];
}

// Returns the messages without the oldest turns, so that prompt and answer fit, and the number of dropped turns.
export function dropOldestTurns(tokenizer, messages, context, maxNewTokens) {
  const head = messages.filter(({ role }) => role === "system");
  const turns = [];
  for (const message of messages.slice(head.length)) {
    if (message.role === "user") turns.push([]);
    turns.at(-1).push(message);
  }
  const limit = maxPromptTokens(context, maxNewTokens);
  const count = (turn) => renderConversation(tokenizer, turn).length;
  let kept = turns.length - 1;
  let used = count([...head, ...turns[kept]]) + 1;
  while (kept && (used += count(turns[kept - 1]) - 1) <= limit) kept--;
  const rest = () => [...head, ...turns.slice(kept).flat()];
  while (kept < turns.length - 1 && count(rest()) >= limit) kept++;
  return { messages: rest(), dropped: kept };
}
