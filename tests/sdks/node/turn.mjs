// One conversation by the Node SDK of any generation: ping, tool, resume.
//
// usage: node turn.mjs SDK_FOLDER HOST:PORT|stdio:PATH MODEL_URL
//        (a token comes in COPILOT_CONNECTION_TOKEN)
//
// With `stdio:PATH` the SDK starts the program at PATH as its CLI.
// Prints `ok` last; ends with status 1 and a reason on standard error otherwise.

import { register } from "node:module";
import path from "node:path";
import { pathToFileURL } from "node:url";

const WITHIN = 20_000;

const [folder, address, modelUrl] = process.argv.slice(2);
const entry = path.join(folder, "node_modules", "@github", "copilot-sdk", "dist", "index.js");
register("./resolve.mjs", import.meta.url);
const sdk = await import(pathToFileURL(entry).href);

const watchdog = setTimeout(() => fail("no end in time"), 4 * WITHIN);

function fail(reason) {
    console.error(reason);
    process.exit(1);
}

function expect(part, event) {
    const text = event?.data?.content ?? "";
    if (!text.includes(part)) fail(`expected "${part}" in the answer "${text}"`);
}

function makeClient() {
    const path = address.startsWith("stdio:") ? address.slice("stdio:".length) : undefined;
    if (sdk.RuntimeConnection) {
        const connectionToken = process.env.COPILOT_CONNECTION_TOKEN;
        const connection = path
            ? sdk.RuntimeConnection.forStdio({ path })
            : sdk.RuntimeConnection.forUri(address, { connectionToken });
        return new sdk.CopilotClient({ connection });
    }
    return new sdk.CopilotClient(path ? { cliPath: path } : { cliUrl: address });
}

const options = {
    onPermissionRequest: sdk.approveAll ?? (async () => ({ kind: "approved" })),
    model: "gpt-4.1",
    streaming: true,
    tools: [
        {
            name: "add",
            description: "add two numbers",
            parameters: {
                type: "object",
                properties: { a: { type: "integer" }, b: { type: "integer" } },
                required: ["a", "b"],
            },
            handler: async ({ a, b }) => `sum ${a + b}`,
        },
    ],
    provider: { type: "openai", baseUrl: modelUrl, apiKey: "none" },
};

function leave(session) {
    return session.disconnect ? session.disconnect() : session.destroy();
}

try {
    const client = makeClient();
    await client.start();
    await client.ping("hello");
    const session = await client.createSession(options);
    expect("hello there", await session.sendAndWait({ prompt: "hello there" }, WITHIN));
    const prompt = '[[tool add {"a": 2, "b": 3}]]';
    expect("sum 5", await session.sendAndWait({ prompt }, WITHIN));
    await leave(session);
    const again = await client.resumeSession(session.sessionId, options);
    expect("user messages: 3", await again.sendAndWait({ prompt: "still there?" }, WITHIN));
    await leave(again);
    await client.stop();
    clearTimeout(watchdog);
    console.log("ok");
    process.exit(0);
} catch (error) {
    fail(error?.message ?? String(error));
}
