// Today's Node SDK, unchanged, with the gateway in the place of a CLI.
//
// usage: node conversation.mjs SDK_FOLDER HOST:PORT MODEL_URL
//        (the token comes in COPILOT_CONNECTION_TOKEN)
//
// Prints one JSON object with what each step saw; ends with status 1 and a reason otherwise.

import assert from "node:assert/strict";
import path from "node:path";
import { pathToFileURL } from "node:url";

const WITHIN = 30_000;
const [folder, address, modelUrl] = process.argv.slice(2);
const entry = path.join(folder, "node_modules", "@github", "copilot-sdk", "dist", "index.js");
const { CopilotClient, RuntimeConnection, approveAll } = await import(pathToFileURL(entry).href);

const seen = { deltas: 0, hooks: [], permissions: 0 };
const add = {
    name: "add",
    description: "add two numbers",
    parameters: {
        type: "object",
        properties: { a: { type: "integer" }, b: { type: "integer" } },
        required: ["a", "b"],
    },
    handler: async ({ a, b }) => `sum ${a + b}`,
};

function options(more = {}) {
    return {
        onPermissionRequest: approveAll,
        model: "gpt-4.1",
        streaming: true,
        provider: { type: "openai", baseUrl: modelUrl, apiKey: "none" },
        ...more,
    };
}

async function said(session, prompt) {
    return (await session.sendAndWait({ prompt }, WITHIN)).data.content;
}

function makeClient(connectionToken) {
    return new CopilotClient({ connection: RuntimeConnection.forUri(address, { connectionToken }) });
}

const client = makeClient(process.env.COPILOT_CONNECTION_TOKEN);
await client.start();

seen.status = await client.getStatus();
assert.equal((await client.ping("hello")).message, "pong: hello");

const streamed = await client.createSession(options());
streamed.on("assistant.message_delta", () => seen.deltas++);
assert.equal(await said(streamed, "[[chunks 8]] hello"), "echo: hello [user messages: 1]");

const hook = (name) => async () => void seen.hooks.push(name);
const equipped = await client.createSession(
    options({
        tools: [add],
        onPermissionRequest: (request, invocation) => {
            seen.permissions++;
            return approveAll(request, invocation);
        },
        onUserInputRequest: async ({ question }) => ({ answer: `${question} blue`, wasFreeform: true }),
        hooks: { onPreToolUse: hook("pre"), onPostToolUse: hook("post") },
    }),
);
assert.match(await said(equipped, '[[tool add {"a": 2, "b": 3}]] go'), /sum 5/);
assert.match(await said(equipped, '[[tool ask_user {"question": "color?"}]] go'), /color\? blue/);

const aborted = await client.createSession(options());
const started = new Promise((resolve) => aborted.on("assistant.message_delta", resolve));
const idle = new Promise((resolve) => aborted.on("session.idle", resolve));
await aborted.send({ prompt: "[[gate-mid never]] [[chunks 4]] hello" });
await started;
await aborted.abort();
await idle;

const sessions = await Promise.all(Array.from({ length: 6 }, () => client.createSession(options())));
const answers = await Promise.all(sessions.map((session, n) => said(session, `I am ${n}`)));
answers.forEach((text, n) => assert.equal(text, `echo: I am ${n} [user messages: 1]`));

await sessions[0].disconnect();
let listed = [];
while (!sessions.every((session) => listed.includes(session.sessionId))) {
    // The CLI's list is of what is on disk, which is written a moment later.
    listed = (await client.listSessions()).map((one) => one.sessionId);
}
const again = await client.resumeSession(sessions[0].sessionId, options());
assert.equal(await said(again, "two"), "echo: two [user messages: 2]");
await client.deleteSession(sessions[1].sessionId);
assert.ok(!(await client.listSessions()).some((one) => one.sessionId === sessions[1].sessionId));

const wrong = makeClient("wrong");
await assert.rejects(wrong.start(), /authentication/i);

await client.stop();
console.log(JSON.stringify(seen));
process.exit(0);
