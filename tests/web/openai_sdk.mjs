// Calls a service with OpenAI's own client for JavaScript, and prints what came back as JSON.
import OpenAI from "openai";

const client = new OpenAI({
  baseURL: process.argv[2],
  apiKey: "none",
  maxRetries: 0,
  defaultHeaders: { "x-reactune-user": "u-7-raw", "x-reactune-kind": encodeURIComponent("focus") },
});
const messages = [
  { role: "system", content: "You help." },
  { role: "user", content: "Mail anna@example.com today?" },
];

const models = [];
for await (const model of await client.models.list()) models.push(model.id);
const whole = await client.chat.completions.create({ model: "any", messages, n: 1 });
let streamed = "";
const stream = await client.chat.completions.create({ model: "any", messages, stream: true });
for await (const chunk of stream) streamed += chunk.choices[0]?.delta?.content ?? "";
const tools = await client.chat.completions.create({
  model: "any",
  messages: [
    ...messages,
    { role: "assistant", content: null, tool_calls: [
      { id: "1", type: "function", function: { name: "clock", arguments: "{}" } } ] },
    { role: "tool", tool_call_id: "1", content: "9 am" },
    { role: "user", content: "And now?" },
  ],
  tool_choice: "none",
});
let refused = null;
try {
  await client.chat.completions.create({
    model: "any", messages, response_format: { type: "json_object" } });
} catch (error) {
  refused = { status: error.status, message: error.message, type: error.constructor.name };
}
console.log(JSON.stringify({
  models,
  whole: whole.choices[0].message.content,
  finish: whole.choices[0].finish_reason,
  id: whole.id,
  streamed,
  tools: tools.choices[0].message.content,
  refused,
}));
