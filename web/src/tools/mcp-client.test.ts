import assert from "node:assert/strict";
import { test } from "node:test";
import { ApiError } from "../api/errors";
import { McpClient, type Transport } from "./mcp-client";
import { mcpTools, resultOf } from "./mcp-tools";

type Message = Record<string, unknown>;
type Answer = (message: Message) => unknown[];

/** A server in memory: `answers` by method. */
class Memory implements Transport {
  version = "";
  hasSession = false;
  readonly heard: Message[] = [];

  constructor(private readonly answers: Record<string, Answer>) {}

  forget(): void {
    this.hasSession = false;
    this.version = "";
  }

  close(): void {
    this.forget();
  }

  async *post(message: unknown): AsyncGenerator<unknown> {
    const sent = message as Message;
    this.heard.push(sent);
    if (sent.method === "initialize") this.hasSession = true;
    yield* this.answers[String(sent.method)]?.(sent) ?? [];
  }

  get methods(): unknown[] {
    return this.heard.map(({ method, error, result }) => method ?? (error ? "error" : result ? "result" : "?"));
  }
}

const initialize: Answer = ({ id }) => [{ id, result: { protocolVersion: "2025-06-18", capabilities: {} } }];
const still = new AbortController().signal;

test("it agrees on a version, lists all pages and calls", async () => {
  const pages: Record<string, Message> = {
    first: { tools: [{ name: "echo" }, { nonsense: 1 }], nextCursor: "second" },
    second: { tools: [{ name: "add", description: "Adds." }] },
  };
  const server = new Memory({
    initialize,
    "tools/list": ({ id, params }) => [{ id, result: pages[(params as { cursor?: string }).cursor ?? "first"] }],
    "tools/call": ({ id }) => [
      { method: "notifications/progress", params: { progress: 1, total: 4 } },
      { id: 99, result: { content: "of somebody else" } },
      { id: "p", method: "ping" },
      { id: "s", method: "sampling/createMessage", params: {} },
      { id, result: { content: [{ type: "text", text: "42" }] } },
    ],
  });
  const client = new McpClient(server);
  assert.deepEqual((await client.listTools()).map(({ name }) => name), ["echo", "add"]);
  const seen: string[] = [];
  const result = await client.call("add", { a: 1 }, still, (text) => seen.push(text));
  assert.deepEqual(resultOf(result), { text: "42", failed: false });
  assert.deepEqual(seen, ["1 of 4"]);
  assert.equal(server.version, "2025-06-18");
  assert.deepEqual(server.methods.slice(0, 4), ["initialize", "notifications/initialized", "tools/list", "tools/list"]);
  await new Promise((done) => setTimeout(done));
  assert.deepEqual(server.methods.slice(-2), ["result", "error"]);
});

test("an unknown version, an error and a broken answer say what is wrong", async () => {
  const old = new Memory({ initialize: ({ id }) => [{ id, result: { protocolVersion: "1999-01-01" } }] });
  await assert.rejects(new McpClient(old).listTools(), /version 1999-01-01/);
  const failing = new Memory({ initialize, "tools/list": ({ id }) => [{ id, error: { code: -1, message: "it is over" } }] });
  await assert.rejects(new McpClient(failing).listTools(), /it is over/);
  await assert.rejects(new McpClient(new Memory({ initialize })).listTools(), /too early/);
});

test("a session that the server has ended is opened again, once", async () => {
  let lists = 0;
  const server = new Memory({
    initialize,
    "tools/list": ({ id }) => {
      lists += 1;
      if (lists === 2) throw new ApiError("refused", "this session is over", 404);
      return [{ id, result: { tools: [] } }];
    },
  });
  const client = new McpClient(server);
  await client.listTools();
  await client.listTools();
  assert.equal(server.methods.filter((method) => method === "initialize").length, 2);
});

test("stopping tells the server", async () => {
  const stopper = new AbortController();
  const server = new Memory({
    initialize,
    "tools/call": () => {
      stopper.abort();
      throw new DOMException("stopped", "AbortError");
    },
  });
  await assert.rejects(new McpClient(server).call("x", {}, stopper.signal, () => undefined), { name: "AbortError" });
  assert.ok(server.methods.includes("notifications/cancelled"));
});

test("names of tools are accepted by requests, and no two are the same", () => {
  const names = ["read file", "read.file", "<img src=x onerror=alert(1)>", "é".repeat(100), "x".repeat(100), "x".repeat(101)];
  const tools = mcpTools("files", names.map((name) => ({ name })), async () => ({}));
  assert.equal(new Set(tools.map(({ name }) => name)).size, names.length);
  assert.ok(tools.every(({ name }) => /^[A-Za-z0-9_-]{1,64}$/.test(name)));
  assert.ok(tools.every(({ harmless }) => !harmless));
});

test("results are text, whatever they hold", () => {
  const content = [
    { type: "text", text: "one" },
    { type: "image", data: "AAAA", mimeType: "image/png" },
    { type: "resource", resource: { uri: "file:///a", text: "two" } },
    { type: "resource_link", uri: "file:///b", name: "b" },
    null, "x", 7,
  ];
  const { text, failed } = resultOf({ content, isError: true });
  assert.equal(failed, true);
  assert.equal(text, "one\n\n[image image/png, 3 bytes, not shown: the model reads text only]\n\ntwo\n\n[b: file:///b]");
  assert.equal(resultOf({ content: "odd", structuredContent: { a: 1 } }).text, '{"a":1}');
  assert.equal(resultOf({}).text, "(no content)");
});
