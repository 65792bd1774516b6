// Checks of JavaScript clients against a server: `node client_checks.mjs ADDRESS`, run by clients.py in a folder whose
// node_modules has the packages. Each prints a line of JSON, as client_checks.py does.
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";
import path from "node:path";

const [address, modules] = process.argv.slice(2);
const require = createRequire(pathToFileURL(path.join(modules, "package.json")));
const load = (name) => import(pathToFileURL(require.resolve(name)));
const print = (client, version, what, result) => console.log(JSON.stringify({ client, version, what, result }));
const question = "What is 2 + 3?";
const model = "tiny";
const messages = [{ role: "user", content: question }];

async function drain(stream) { for await (const part of stream) if (part?.type === "error") throw part.error; }

async function checkOpenai() {
  const { default: OpenAI } = await load("openai");
  const { zodResponseFormat } = await load("openai/helpers/zod");
  const { z } = await load("zod");
  const api = new OpenAI({ baseURL: `${address}/v1`, apiKey: "none", maxRetries: 0 });
  const size = z.object({ size: z.enum(["small", "large"]), fits: z.boolean() });
  return {
    "chat": () => api.chat.completions.create({ model, messages, max_tokens: 20 }),
    "chat, .stream()": () => api.chat.completions.stream({ model, messages, max_tokens: 20 }).finalChatCompletion(),
    "chat, .parse()": async () => {
      const answer = await api.chat.completions.parse({ model, messages, response_format: zodResponseFormat(size, "size") });
      size.parse(answer.choices[0].message.parsed);
    },
    ".runTools()": () => api.chat.completions.runTools({
      model, messages, tool_choice: { type: "function", function: { name: "pick" } }, parallel_tool_calls: false,
      tools: [{ type: "function", function: {
        name: "pick", description: "Picks.", parse: JSON.parse, function: ({ size }) => size,
        parameters: { type: "object", properties: { size: { enum: ["small", "large"] } }, required: ["size"], additionalProperties: false },
      } }],
    }, { maxChatCompletions: 2 }).done(),
    "responses": () => api.responses.create({ model, input: question, max_output_tokens: 20 }),
    "responses, streamed": async () => drain(await api.responses.create({ model, input: question, max_output_tokens: 20, stream: true })),
    "embeddings": () => api.embeddings.create({ model, input: ["a", "b"] }),
  };
}

async function checkAiSdk() {
  const ai = await load("ai");
  const { createOpenAICompatible } = await load("@ai-sdk/openai-compatible");
  const { z } = await load("zod");
  const provider = createOpenAICompatible({ name: "fledgling", baseURL: `${address}/v1`, apiKey: "none", supportsStructuredOutputs: true });
  const schema = z.object({ size: z.enum(["small", "large"]), fits: z.boolean() });
  const settings = { model: provider(model), prompt: question, maxRetries: 0 };
  const pick = ai.tool({ description: "Picks.", inputSchema: z.object({ size: z.enum(["small", "large"]) }), execute: async ({ size }) => size });
  return {
    "generateText": () => ai.generateText({ ...settings, maxOutputTokens: 20 }),
    "streamText": async () => drain(ai.streamText({ ...settings, maxOutputTokens: 20 }).fullStream),
    "generateObject": async () => ai.generateObject ? ai.generateObject({ ...settings, schema }) : ai.generateText({ ...settings, output: ai.Output.object({ schema }) }),
    "tools, two steps": () => ai.generateText({
      ...settings, tools: { pick }, toolChoice: "required", maxOutputTokens: 400, ...(ai.isStepCount ? { stopWhen: ai.isStepCount(2) } : { stopWhen: ai.stepCountIs(2) }),
    }),
    "embedMany": () => ai.embedMany({ model: provider.textEmbeddingModel ? provider.textEmbeddingModel(model) : provider.embeddingModel(model), values: ["a", "b"], maxRetries: 0 }),
  };
}

for (const [client, check] of Object.entries({ "openai (JavaScript)": checkOpenai, "ai, @ai-sdk/openai-compatible": checkAiSdk })) {
  let checks, version;
  try {
    version = require(path.join(modules, "node_modules", client.split(/[ ,]/)[0], "package.json")).version;
    checks = await check();
  } catch (error) {
    print(client, "", "", error.code === "MODULE_NOT_FOUND" ? "not installed" : String(error).slice(0, 200));
    continue;
  }
  for (const [what, run] of Object.entries(checks)) {
    try {
      await run();
      print(client, version, what, "answered");
    } catch (error) {
      print(client, version, what, String(error).replace(/\s+/g, " ").slice(0, 200));
    }
  }
}
