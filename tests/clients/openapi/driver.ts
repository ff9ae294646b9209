// What does a program in TypeScript do with a client that was generated from the API's description?
// `driver.ts URL DEVICE`, the key in KEY: calls the device twice, and prints what it was told, a line of JSON each.
import createClient from "openapi-fetch";
import type { components, paths } from "./api.d.ts";

const [url, device] = process.argv.slice(2) as [string, string];
const client = createClient<paths>({ baseUrl: url, headers: { Authorization: `Bearer ${process.env["KEY"]}` } });
const path = { device };
const answered = await client.POST("/v1/devices/{device}/calls", {
  params: { path },
  body: { method: "blink", params: { times: 3 } },
});
console.log(JSON.stringify({ status: answered.response.status, answer: answered.data }));
const refused = await client.POST("/v1/devices/{device}/calls", { params: { path }, body: { timeout: 0 } });
const problem: components["schemas"]["Problem"] | undefined = refused.error;
console.log(JSON.stringify({ status: refused.response.status, field: problem?.field, seen: problem?.seen }));
const shown = await client.GET("/v1/devices/{device}", { params: { path } });
console.log(JSON.stringify({ status: shown.response.status, id: shown.data?.id, online: shown.data?.online }));
