import assert from "node:assert/strict";
import { test } from "node:test";
import { type AgentOptions, type AgentSteps, type CallState, type Decision, runAgent } from "./agent";
import { LONGEST_RESULT, type Tool, type ToolCall, type ToolResult } from "./types";

const DOUBLE: Tool = {
  name: "double", title: "Double", description: "", parameters: {}, source: "test", harmless: false,
  run: async ({ n }) => ({ text: String(2 * Number(n)), failed: false }),
};
const SAFE: Tool = { ...DOUBLE, name: "safe", harmless: true };
const BROKEN: Tool = { ...DOUBLE, name: "broken", run: async () => { throw new Error("the disk is full"); } };
const LONG: Tool = { ...SAFE, name: "long", run: async () => ({ text: "x".repeat(LONGEST_RESULT + 5), failed: false }) };

function call(name: string, values: unknown = {}, id = `id-${name}`): ToolCall {
  return { id, name, arguments: typeof values === "string" ? values : JSON.stringify(values) };
}

/** Plays turns of a model, answers questions, and writes down what happens. */
class Script {
  readonly kept: [string, ToolResult][] = [];
  readonly asked: string[] = [];
  readonly states: string[] = [];
  readonly stopper = new AbortController();
  readonly allowed = new Set<string>();
  turns = 0;

  constructor(private readonly script: ToolCall[][], private readonly decisions: (Decision | "stop")[] = []) {}

  steps(): AgentSteps {
    return {
      turn: async () => ({ calls: this.script[this.turns++] ?? [], goesOn: true }),
      approve: async (asked) => {
        this.asked.push(asked.name);
        const decision = this.decisions.shift();
        if (decision !== "stop") return decision ?? "deny";
        this.stopper.abort();
        throw new DOMException("stopped", "AbortError");
      },
      show: ({ name }, state: CallState) => this.states.push(`${name} ${state.kind}`),
      keep: async ({ id }, result) => void this.kept.push([id, result]),
    };
  }

  run(options: Partial<AgentOptions> = {}) {
    const tools = [DOUBLE, SAFE, BROKEN, LONG];
    return runAgent(this.steps(), { tools, allowed: this.allowed, limit: 5, signal: this.stopper.signal, ...options });
  }
}

test("an answer without calls ends at once", async () => {
  const script = new Script([]);
  assert.equal(await script.run(), "answered");
  assert.equal(script.turns, 1);
});

test("an approved call runs, and the model goes on with its result", async () => {
  const script = new Script([[call("double", { n: 21 })]], ["once"]);
  assert.equal(await script.run(), "answered");
  assert.deepEqual(script.kept, [["id-double", { text: "42", failed: false }]]);
  assert.deepEqual(script.states, ["double asking", "double running", "double over"]);
  assert.equal(script.turns, 2);
});

test("once asks again, always does not", async () => {
  const turns = [[call("double", { n: 1 }, "a")], [call("double", { n: 2 }, "b")], [call("double", { n: 3 }, "c")]];
  const script = new Script(turns, ["once", "always"]);
  assert.equal(await script.run(), "answered");
  assert.deepEqual(script.asked, ["double", "double"]);
  assert.deepEqual(script.kept.map(([, { text }]) => text), ["2", "4", "6"]);
  assert.ok(script.allowed.has("double"));
});

test("a denied call does not run, and the model is told", async () => {
  const script = new Script([[call("double", { n: 1 }), call("safe", { n: 2 })]], ["deny"]);
  assert.equal(await script.run(), "answered");
  assert.deepEqual(script.kept, [
    ["id-double", { text: "the user did not allow this call", failed: true }],
    ["id-safe", { text: "4", failed: false }],
  ]);
});

test("faults are results: unknown tools, broken arguments, tools that throw", async () => {
  const calls = [call("rm"), call("safe", "{oops"), call("safe", "[1]", "list"), call("broken")];
  const script = new Script([calls], ["once"]);
  assert.equal(await script.run(), "answered");
  const texts = script.kept.map(([, { text }]) => text);
  assert.match(texts[0] ?? "", /no tool "rm"; the tools are double, safe/);
  assert.match(texts[1] ?? "", /not JSON/);
  assert.match(texts[2] ?? "", /must be a JSON object/);
  assert.equal(texts[3], "the disk is full");
  assert.ok(script.kept.every(([, { failed }]) => failed));
  assert.deepEqual(script.asked, ["broken"]);
});

test("stopping while the user is asked answers all open calls", async () => {
  const script = new Script([[call("double"), call("safe")]], ["stop"]);
  assert.equal(await script.run(), "stopped");
  assert.deepEqual(script.kept.map(([id, { text }]) => [id, text]), [
    ["id-double", "stopped by the user"],
    ["id-safe", "stopped by the user"],
  ]);
  assert.equal(script.turns, 1);
});

test("the limit of steps ends the loop without open calls", async () => {
  const script = new Script(Array.from({ length: 9 }, () => [call("safe", { n: 1 })]));
  assert.equal(await script.run({ limit: 3 }), "limit");
  assert.equal(script.turns, 3);
  assert.equal(script.kept.length, 3);
  assert.match(script.kept[2]?.[1].text ?? "", /limit of 3 steps/);
});

test("calls of a turn that was cut do not run", async () => {
  const script = new Script([[call("safe")]]);
  const steps = { ...script.steps(), turn: async () => ({ calls: [call("safe")], goesOn: false }) };
  assert.equal(await runAgent(steps, { tools: [SAFE], allowed: new Set(), limit: 5, signal: script.stopper.signal }), "ended");
  assert.match(script.kept[0]?.[1].text ?? "", /did not end normally/);
});

test("long results are cut, and too many calls are refused", async () => {
  const script = new Script([[call("long"), ...Array.from({ length: 20 }, (_, n) => call("safe", { n }, `n${n}`))]]);
  assert.equal(await script.run(), "answered");
  assert.match(script.kept[0]?.[1].text ?? "", /\[5 more characters were cut\]$/);
  assert.equal(script.kept.length, 21);
  assert.match(script.kept[20]?.[1].text ?? "", /at most 16 calls/);
});
