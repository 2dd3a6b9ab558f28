// What the server tells operators: the engine, usage, training runs, the model.
import { getJson, postJson } from "./http";

export type RequestState = "waiting" | "prompt" | "answer" | null;

export interface ActiveRequest {
  id: string;
  key: string;
  model: string;
  state: RequestState;
  /** Tokens of the prompt, those of them that are in the cache, and those that came from kept prefixes. */
  prompt: number;
  done: number;
  reused: number;
  generated: number;
  limit: number;
  seconds: number;
  first_token_seconds: number | null;
  pages?: number;
  drafts?: number;
  priority?: number;
}

/** Pages or slots. each: bytes of one. */
export interface Pool {
  count: number;
  free: number;
  running: number;
  kept: number;
  each: number;
}

export interface KeptPrefix {
  owner: number;
  length: number;
  pages: number;
  snapshot: boolean;
  /** Place in the list of the prefix that this one continues. */
  parent: number | null;
}

export interface EngineReport {
  age: number;
  steps: string;
  speculates: boolean;
  page_tokens: number;
  pages: Pool;
  slots: Pool;
  cache_bytes: Record<string, number>;
  streaming: { used: number; missed: number; resident: number; bytes_read: number } | null;
  prefixes: KeptPrefix[];
  /** By layer, tokens of each expert; only where asked for. */
  experts?: Record<string, number[]>;
}

export interface EngineState {
  model: string;
  context_length: number;
  failing: string | null;
  operator: boolean;
  requests: ActiveRequest[];
  /** Active requests of other keys. */
  others: number;
  counters: Record<string, number>;
  /** [second, prompt tokens, generated tokens], without seconds that had none. */
  rates: { now: number; kept: number; seconds: [number, number, number][] };
  /** Bytes of memory of the server's process. */
  resident: number | null;
  report: EngineReport | null;
}

/** since: the last second that is known already. */
export function engineState(since: number, experts: boolean, signal?: AbortSignal): Promise<EngineState> {
  const query = new URLSearchParams({ since: String(since), experts: experts ? "1" : "0" });
  return getJson(`admin/engine?${query}`, { retries: 0, signal });
}

export function cancelRequest(id: string): Promise<{ cancelled: number }> {
  return postJson(`admin/engine/cancel/${encodeURIComponent(id)}`, {});
}

export interface UsageRow {
  day: string;
  key: string;
  model: string;
  requests: number;
  prompt: number;
  cached: number;
  completion: number;
  reasoning: number;
  cost: number;
}

export interface Usage {
  /** Whether the server keeps a ledger. */
  ledger: boolean;
  operator: boolean;
  rows: UsageRow[];
}

/** since: a day, or a number of days as "30d"; "" for everything. */
export function usageSince(since: string, signal?: AbortSignal): Promise<Usage> {
  return getJson(`admin/usage${since ? `?since=${encodeURIComponent(since)}` : ""}`, { retries: 0, signal });
}

/** One line of the log of a run. */
export type LogLine = { step: number; tokens?: number; spike?: string | null } & Record<string, unknown>;

export interface RunSummary {
  name: string;
  changed: number;
  bytes: number;
  /** Whether a process writes it; null where the system does not tell. */
  running: boolean | null;
  last: LogLine | null;
}

export interface Sample {
  step: number;
  prompt?: string;
  answer?: string;
  reward?: number;
  length?: number;
}

export interface RunLines {
  name: string;
  file: number;
  next: number;
  restarted: boolean;
  every: number;
  running: boolean | null;
  lines: LogLine[];
  samples: Sample[];
  /** The newest load of the experts by layer, in equal shares. */
  load: ExpertLoad | null;
}

export interface ExpertLoad {
  step: number;
  layers: Record<string, number[]>;
}

export function listRuns(signal?: AbortSignal): Promise<{ folder: boolean; runs: RunSummary[] }> {
  return getJson("admin/runs", { retries: 0, signal });
}

/** The lines of a run from a place in its log on. */
export function runLines(name: string, from: number, file: number, signal?: AbortSignal): Promise<RunLines> {
  const path = name.split("/").map(encodeURIComponent).join("/");
  return getJson(`admin/runs/${path}?from=${from}&file=${file}`, { retries: 0, signal });
}

export type AttentionKind = "swa" | "csa" | "hca";

export interface Layer {
  index: number;
  attention: AttentionKind;
  routing: "hash" | "learned";
  ratio: number;
  /** Counts by role. */
  parameters: Record<string, number>;
  total: number;
  active: number;
  kv_bytes_per_token: number;
}

export interface ContextCost {
  tokens: number;
  kv_bytes: number;
  v32_kv_bytes: number;
  kv_times_smaller: number;
  flops_per_token: number;
  v32_flops_per_token: number;
  flops_share: number;
}

export interface Architecture {
  layers: Layer[];
  config: Record<string, number | string>;
  prediction_layers: number;
  draft_stages: number;
  parameters: Record<string, number>;
  disk: { layout: string; tensors: number; bytes: number };
  kv_bytes_per_token: number;
  v32_kv_bytes_per_token: number;
  window_bytes_per_sequence: number;
  contexts: ContextCost[];
}

export interface ModelFacts {
  model: string;
  context_length: number;
  vocabulary: number;
  /** null where the server was not told what its model is. */
  architecture: Architecture | null;
}

export function modelFacts(signal?: AbortSignal): Promise<ModelFacts> {
  return getJson("admin/model", { signal });
}

export interface InspectedToken {
  id: number;
  text: string;
  /** Of a sampled token. */
  probability?: number;
  top?: [string, number][];
  draft?: { text: string; accepted: boolean };
}

export interface Inspection {
  prompt_tokens: number;
  tokens: InspectedToken[];
  finish: string | null;
  drafts: { drafted: number; accepted: number; tokens: number; steps: number } | null;
  /** The position of the first row of `experts` and `entries`. */
  first: number;
  experts: Record<string, number[][]>;
  /** By layer and position, ranges [from, to) of compressed entries. */
  entries: Record<string, [number, number][][]>;
}

export function inspect(text: string, tokens: number, signal?: AbortSignal): Promise<Inspection> {
  const messages = [{ role: "user", content: text }];
  return postJson("admin/inspect", { messages, max_tokens: tokens }, { signal });
}
