// The loop of an agent: the model writes calls, the user approves them, tools run, the model goes on.
import { errorText } from "../api/errors";
import { type Tool, type ToolCall, type ToolResult, shortened } from "./types";

/** once: this call; always: this tool, in this conversation; deny: not this call. */
export type Decision = "once" | "always" | "deny";

/** What happens to a call: it waits for the user, runs, or is over (its result then stands in the conversation). */
export type CallState = { kind: "asking" } | { kind: "running"; progress: string } | { kind: "over" };

/** What the model wrote in one turn. goesOn: it is complete, so its calls may run. */
export interface Turn {
  calls: readonly ToolCall[];
  goesOn: boolean;
}

export interface AgentSteps {
  /** One turn of the model. */
  turn: () => Promise<Turn>;
  /** Asks the user. Rejects with AbortError when stopped. */
  approve: (call: ToolCall, tool: Tool, signal: AbortSignal) => Promise<Decision>;
  /** Shows what happens to a call. */
  show: (call: ToolCall, state: CallState) => void;
  /** Keeps the result of a call, which the model gets with its next turn. */
  keep: (call: ToolCall, result: ToolResult) => Promise<void>;
}

export interface AgentOptions {
  tools: readonly Tool[];
  /** Tools that need no question, by name; `always` adds to it. */
  allowed: Set<string>;
  /** The largest number of turns. */
  limit: number;
  signal: AbortSignal;
}

/** answered: the model wrote its answer; ended: its turn failed or was stopped; limit: it used all its turns. */
export type Ending = "answered" | "ended" | "stopped" | "limit";

/** Most calls of one turn; further ones are refused. */
const MOST_CALLS = 16;

/**
 * Turns of the model until one has no calls. Every call gets a result, also those that were denied, stopped or beyond
 * the limit: a conversation with open calls could not be continued. Throws only what `steps` throws.
 */
export async function runAgent(steps: AgentSteps, options: AgentOptions): Promise<Ending> {
  for (let turn = 1; ; turn += 1) {
    const { calls, goesOn } = await steps.turn();
    if (!goesOn) {
      await refuse(steps, calls, "not run: the turn that wrote this call did not end normally");
      return "ended";
    }
    if (calls.length === 0) return "answered";
    if (turn === options.limit) {
      await refuse(steps, calls, `not run: the limit of ${options.limit} steps is reached. The user can ask to go on.`);
      return "limit";
    }
    await answerCalls(steps, options, calls);
    if (options.signal.aborted) return "stopped";
  }
}

/** One call after the other: a later one may depend on what an earlier one did. */
async function answerCalls(steps: AgentSteps, options: AgentOptions, calls: readonly ToolCall[]): Promise<void> {
  for (const [index, call] of calls.entries()) {
    if (index >= MOST_CALLS) {
      await refuse(steps, [call], `not run: at most ${MOST_CALLS} calls are run in one turn`);
      continue;
    }
    const result = await answerCall(steps, options, call);
    steps.show(call, { kind: "over" });
    await steps.keep(call, { ...result, text: shortened(result.text) });
  }
}

async function answerCall(steps: AgentSteps, options: AgentOptions, call: ToolCall): Promise<ToolResult> {
  const { tools, allowed, signal } = options;
  const tool = tools.find(({ name }) => name === call.name);
  if (!tool) return failed(`there is no tool "${call.name}"; the tools are ${tools.map(({ name }) => name).join(", ") || "none"}`);
  const values = valuesOf(call.arguments);
  if (typeof values === "string") return failed(values);
  try {
    signal.throwIfAborted();
    if (!tool.harmless && !allowed.has(tool.name)) {
      steps.show(call, { kind: "asking" });
      const decision = await steps.approve(call, tool, signal);
      if (decision === "deny") return failed("the user did not allow this call");
      if (decision === "always") allowed.add(tool.name);
    }
    steps.show(call, { kind: "running", progress: "" });
    return await tool.run(values, signal, (progress) => steps.show(call, { kind: "running", progress }));
  } catch (error) {
    if (signal.aborted) return failed("stopped by the user");
    return failed(errorText(error));
  }
}

async function refuse(steps: AgentSteps, calls: readonly ToolCall[], why: string): Promise<void> {
  for (const call of calls) {
    steps.show(call, { kind: "over" });
    await steps.keep(call, failed(why));
  }
}

function failed(text: string): ToolResult {
  return { text, failed: true };
}

/** The values of a call's arguments, or what is wrong with them. */
function valuesOf(text: string): Record<string, unknown> | string {
  if (!text.trim()) return {};
  try {
    const value: unknown = JSON.parse(text);
    if (typeof value === "object" && value !== null && !Array.isArray(value)) return value as Record<string, unknown>;
    return "the arguments must be a JSON object";
  } catch (error) {
    return `the arguments are not JSON: ${errorText(error)}`;
  }
}
