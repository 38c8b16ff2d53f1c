// The official OpenAI client for Node against a running server.
//
//     npm ci
//     node openai_client.mjs http://127.0.0.1:3000

import assert from "node:assert/strict";
import OpenAI from "openai";

const url = process.argv[2] ?? "http://127.0.0.1:3000";
// No retries: what fails once is what is looked for.
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0, timeout: 120_000 });
const model = (await client.models.list()).data[0].id;
const story = { model, messages: [{ role: "user", content: "Tell me a story about a fox." }] };

const schema = {
  type: "object",
  properties: { name: { enum: ["fox", "owl"] }, legs: { enum: [2, 4] } },
  required: ["name", "legs"],
  additionalProperties: false,
};
const tool = { type: "function", function: { name: "feed", parameters: schema, strict: true } };

const checks = {
  async "an answer in one piece"() {
    const answer = await client.chat.completions.create({ ...story, max_tokens: 16 });
    assert.ok(answer.choices[0].message.content);
    assert.ok(answer.usage.completion_tokens <= 16);
  },

  async "the same answer in pieces"() {
    const options = { ...story, max_tokens: 24, temperature: 0 };
    const whole = await client.chat.completions.create(options);
    let text = "";
    for await (const chunk of await client.chat.completions.create({ ...options, stream: true })) {
      text += chunk.choices[0]?.delta?.content ?? "";
    }
    assert.equal(text, whole.choices[0].message.content);
  },

  async "an answer in a form"() {
    const response_format = { type: "json_schema", json_schema: { name: "animal", strict: true, schema } };
    const answer = await client.chat.completions.create({ ...story, max_tokens: 128, response_format });
    const animal = JSON.parse(answer.choices[0].message.content);
    assert.deepEqual(Object.keys(animal).sort(), ["legs", "name"]);
  },

  async "a call of a tool, whole and streamed"() {
    const options = { ...story, tools: [tool], tool_choice: "required", parallel_tool_calls: false, max_tokens: 128, seed: 5 };
    const [choice] = (await client.chat.completions.create(options)).choices;
    assert.equal(choice.finish_reason, "tool_calls");
    const [call] = choice.message.tool_calls;
    assert.equal(call.function.name, "feed");
    const runner = client.chat.completions.stream(options);
    const streamed = (await runner.finalChatCompletion()).choices[0].message.tool_calls;
    assert.equal(streamed.length, 1);
    assert.deepEqual(JSON.parse(streamed[0].function.arguments), JSON.parse(call.function.arguments));
  },

  async "what is wrong raises the class that says so"() {
    const refused = client.chat.completions.create({ ...story, temperature: -1 });
    await assert.rejects(refused, (error) => error instanceof OpenAI.BadRequestError && error.param === "temperature");
    const unknown = client.chat.completions.create({ ...story, model: "no-such-model" });
    await assert.rejects(unknown, (error) => error instanceof OpenAI.NotFoundError);
  },
};

for (const [name, check] of Object.entries(checks)) {
  await check();
  console.log(`ok  ${name}`);
}
