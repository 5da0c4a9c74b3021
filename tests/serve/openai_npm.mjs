// What test_other_clients.py has Node's client do: PROGRAM URL WORDS...; prints one line of JSON.
import OpenAI from "openai";

const [program, url, word] = process.argv.slice(2);
const client = new OpenAI({ baseURL: url + "/v1", apiKey: "x", maxRetries: 0 });
const said = (content) => [{ role: "user", content }];

async function text() {
  const body = { model: "tiny", messages: said(word), temperature: 0, max_tokens: 20 };
  const whole = await client.chat.completions.create(body);
  let text = "", usage = null, newerText = "", code = null;
  const stream = await client.chat.completions.create(
    { ...body, stream: true, stream_options: { include_usage: true } });
  for await (const chunk of stream) {
    text += chunk.choices[0]?.delta?.content ?? "";
    usage = chunk.usage ?? usage;
  }
  const asked = { model: "tiny", input: word, temperature: 0, max_output_tokens: 20 };
  const response = await client.responses.create(asked);
  for await (const event of await client.responses.create({ ...asked, stream: true }))
    if (event.type === "response.output_text.delta") newerText += event.delta;
  try { await client.chat.completions.create({ ...body, model: "other" }); }
  catch (error) { code = error.code; }
  const models = [];
  for await (const model of client.models.list()) models.push(model.id);
  return { whole: whole.choices[0].message.content, text, tokens: usage.completion_tokens,
           newer: response.output_text, newerText, code, models };
}

async function schema() {
  const named = { name: "animal", strict: true, schema: JSON.parse(word) };
  const whole = await client.chat.completions.create({
    model: "tiny", messages: said("Tell me of a dog."), max_tokens: 300,
    response_format: { type: "json_schema", json_schema: named } });
  const newer = await client.responses.create({
    model: "tiny", input: "Tell me of a dog.", max_output_tokens: 300,
    text: { format: { type: "json_schema", ...named } } });
  return { whole: whole.choices[0].message.content, newer: newer.output_text };
}

async function tools() {
  const weather = ({ city, days }) => `sunny in ${city} for ${days} days`;
  const parameters = { type: "object", required: ["city", "days"],
    properties: { city: { type: "string" }, days: { type: "integer" } } };
  const told = { name: "weather", description: "Tell the weather.", parameters };
  const body = { model: "fake", messages: said("What is the weather?"),
                 tools: [{ type: "function", function: told }] };
  const read = (calls) => calls.map((one) =>
    [one.function.name, JSON.parse(one.function.arguments)]);
  const answer = (await client.chat.completions.create(body)).choices[0];
  const streamed = (await client.chat.completions.stream(body).finalChatCompletion()).choices[0];
  const results = answer.message.tool_calls.map((one) => ({ role: "tool", tool_call_id: one.id,
    content: weather(JSON.parse(one.function.arguments)) }));
  const after = await client.chat.completions.create(
    { ...body, messages: [...body.messages, answer.message, ...results] });
  const runner = client.chat.completions.runTools({ ...body, tools: [{ type: "function",
    function: { ...told, parse: JSON.parse, function: weather } }] });
  return { whole: read(answer.message.tool_calls), streamed: read(streamed.message.tool_calls),
           reasons: [answer.finish_reason, streamed.finish_reason],
           after: after.choices[0].message.content, ran: await runner.finalContent() };
}

async function embeddings() {
  const ask = async (more) =>
    (await client.embeddings.create({ model: "tiny", input: JSON.parse(word), ...more })).data
      .map((one) => one.embedding);
  return { asked: await ask({}), float: await ask({ encoding_format: "float" }),
           base64: (await ask({ encoding_format: "base64" }))[0] };
}

console.log(JSON.stringify(await { text, schema, tools, embeddings }[program]()));
