// What is kept of conversations.

/** off: no thinking; the others are efforts of the model. */
export type Effort = "none" | "high" | "max";

/** Fields of a request; what is missing is the model's default. */
export interface Sampling {
  temperature?: number;
  top_p?: number;
  top_k?: number;
  min_p?: number;
  presence_penalty?: number;
  frequency_penalty?: number;
  max_tokens?: number;
  thinking_budget?: number;
  seed?: number;
}

/** A file that goes with a question; its text stands in the prompt. */
export interface Attachment {
  name: string;
  text: string;
  tokens?: number;
}

/** A call of a tool. */
export interface Call {
  id: string;
  name: string;
  /** JSON, as far as it is written. */
  arguments: string;
}

/** Counts and times of an answer; a time is in milliseconds. */
export interface Figures {
  promptTokens?: number;
  cachedTokens?: number;
  answerTokens?: number;
  thinkingTokens?: number;
  thinkingMs?: number;
  firstTokenMs?: number;
  totalMs?: number;
  tokensPerSecond?: number;
  costUsd?: number;
}

/** done: complete; stopped: by the user; cut: at a limit of tokens; failed: `problem` says why. */
export type State = "writing" | "done" | "stopped" | "cut" | "failed";

/** One message. Messages of a conversation are a tree: each knows the one before it. */
export interface Message {
  id: string;
  conversation: string;
  /** null: the first of a conversation. */
  parent: string | null;
  role: "user" | "assistant" | "tool";
  content: string;
  reasoning?: string;
  /** Milliseconds since 1970, as all times here. */
  created: number;
  state: State;
  problem?: string;
  model?: string;
  figures?: Figures;
  attachments?: Attachment[];
  calls?: Call[];
  /** Of a tool's result: the call that it answers. */
  callId?: string;
}

/** The tools of a conversation, by name. */
export interface ToolChoice {
  /** Those that the model may use. */
  on: string[];
  /** The MCP servers that they need. */
  servers: string[];
  /** Those that run without a question. */
  allowed: string[];
}

export interface Conversation {
  id: string;
  title: string;
  created: number;
  updated: number;
  /** The last message of the branch that is shown; null: there is none yet. */
  head: string | null;
  system: string;
  effort: Effort;
  sampling: Sampling;
  tools?: ToolChoice;
}

/** A name that no other conversation or message has. */
export function newId(): string {
  // crypto.randomUUID exists only on secure addresses, and a server may be reached by plain HTTP
  const bytes = crypto.getRandomValues(new Uint8Array(12));
  return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
