// Calls that are under way: what the cards show, and the user's answers.
import { signal } from "@preact/signals";
import type { CallState, Decision } from "./agent";
import type { ToolCall } from "./types";

export interface LiveCall {
  state: CallState;
  /** While the user is asked. */
  decide?: (decision: Decision) => void;
}

/** By the id of the call; only those that are not over. */
export const liveCalls = signal<ReadonlyMap<string, LiveCall>>(new Map());

export function showCall(call: ToolCall, state: CallState): void {
  const changed = new Map(liveCalls.value);
  if (state.kind === "over") changed.delete(call.id);
  else changed.set(call.id, { state });
  liveCalls.value = changed;
}

/** Waits for the user's answer on the card of a call. Rejects with AbortError when stopped. */
export function askUser(call: ToolCall, stop: AbortSignal): Promise<Decision> {
  return new Promise((resolve, reject) => {
    const stopped = () => reject(new DOMException("stopped", "AbortError"));
    stop.addEventListener("abort", stopped, { once: true });
    const decide = (decision: Decision) => {
      stop.removeEventListener("abort", stopped);
      resolve(decision);
    };
    liveCalls.value = new Map(liveCalls.value).set(call.id, { state: { kind: "asking" }, decide });
  });
}
