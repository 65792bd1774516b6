// Generates one answer into a message of a conversation. Whatever happens (an error, a cut stream, a stop, an empty
// answer), the message ends in a state that can be shown and asked again, and nothing of it reaches a later request but
// the text that has arrived.

import { RequestError, streamAnswer } from "./api.js";
import { answerMessage, appendChunk, hasAnswer, hasText, openCall, requestMessages } from "./conversation.js";
import { saveMessages } from "./store.js";
import { callAllowedTool } from "./tools.js";

const ALTERNATIVES = 4;
const MAX_CALLS = 8; // of offered tools, in one answer
const SAVE_SECONDS = 1; // between two times that an unfinished answer is stored

// Fills `node`, the answer to `question`. Calls `changed()` when there is more to show. Resolves when the answer has
// ended and is stored: to an error of the storage, or null.
export async function generateAnswer({ conversation, question, node, fields, system, key, signal, changed }) {
  const { messages, omitted } = requestMessages(conversation, question, system);
  const body = { messages, logprobs: true, top_logprobs: ALTERNATIVES, truncation: "auto", ...fields };
  let [spent, counted] = [0, 0]; // milliseconds and tokens of the requests before
  let saved = performance.now();
  let problem = null;
  try {
    for (let calls = 0; ; calls++) {
      const sent = performance.now(); // not when the first part arrives: all of them may arrive at once
      for await (const chunk of streamAnswer(body, key, signal)) {
        appendChunk(node, chunk);
        const now = performance.now();
        if (hasText(node)) node.seconds = (spent + now - sent) / 1000;
        if (chunk.usage) node.count = counted + chunk.usage.completion_tokens;
        if (now - saved > 1000 * SAVE_SECONDS && hasText(node)) {
          saved = now;
          saveMessages(conversation, [node]).catch((error) => { problem = error; });
        }
        changed();
      }
      spent += performance.now() - sent;
      counted = node.count;
      const call = openCall(node);
      if (!call || node.reason === "length") break; // a call that was cut is not made
      const text = calls < MAX_CALLS ? await callAllowedTool(call, key, signal) : "error: too many calls in one answer";
      node.parts.push({ type: "output", text });
      if (calls >= MAX_CALLS) break;
      body.messages = [...messages, answerMessage(node)]; // the server continues it
      changed();
    }
    if (!hasAnswer(node)) node.failed = `The model ${hasText(node) ? "thought, and gave no" : "gave an empty"} answer.`;
  } catch (error) {
    if (fields.tools && error.code === "context_length_exceeded" && !hasText(node)) {
      const { tools, parallel_tool_calls, ...others } = fields; // they have filled the context
      const problem = await generateAnswer({ conversation, question, node, fields: others, system, key, signal, changed });
      node.withoutTools = hasText(node); // else the conversation alone is too long, and the tools are not to blame
      return problem;
    }
    if (error.name === "AbortError") node.reason = "stopped";
    else node.failed = error instanceof RequestError ? error.message : `The answer cannot be shown: ${error.message}`;
  }
  node.dropped += omitted;
  try {
    if (hasText(node)) await saveMessages(conversation, [node]);
  } catch (error) {
    problem = error;
  }
  return problem;
}
