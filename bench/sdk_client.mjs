// One side of the real-SDK measurement: the Node SDK against one address. Same steps and output as
// sdk_client.py.
//
// usage: node sdk_client.mjs SDK_ENTRY HOST:PORT MODEL_URL TURNS
//        (the token comes in COPILOT_CONNECTION_TOKEN)

import { performance } from "node:perf_hooks";
import { pathToFileURL } from "node:url";

const PINGS_PER_TURN = 5;
const PROMPT = "[[chunks 8]] hello";

const [entry, address, modelUrl, turns] = process.argv.slice(2);
const { CopilotClient, RuntimeConnection, approveAll } = await import(pathToFileURL(entry).href);

async function timed(into, action) {
    const start = performance.now();
    const result = await action();
    into.push(performance.now() - start);
    return result;
}

const samples = { ping: [], create: [], turn: [] };
const client = new CopilotClient({
    connection: RuntimeConnection.forUri(address, {
        connectionToken: process.env.COPILOT_CONNECTION_TOKEN,
    }),
});
await client.start();
for (let turn = 0; turn <= Number(turns); turn++) {
    const taken = { ping: [], create: [], turn: [] };
    for (let i = 0; i < PINGS_PER_TURN; i++) await timed(taken.ping, () => client.ping("hello"));
    const session = await timed(taken.create, () =>
        client.createSession({
            onPermissionRequest: approveAll,
            model: "gpt-4.1",
            streaming: true,
            provider: { type: "openai", baseUrl: modelUrl, apiKey: "none" },
        }),
    );
    await timed(taken.turn, () => session.sendAndWait({ prompt: PROMPT }));
    await client.deleteSession(session.sessionId);
    if (turn === 0) continue; // warm-up
    for (const step of Object.keys(samples)) samples[step].push(...taken[step]);
}
await client.stop();
console.log(JSON.stringify(samples));
