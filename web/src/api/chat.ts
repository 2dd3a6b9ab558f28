// Chat completions, streamed.
import { ApiError } from "./errors";
import { postEvents } from "./http";

export interface ChatMessage {
  role: "system" | "user" | "assistant" | "tool";
  content: string;
  reasoning_content?: string;
  /** Of the last message: the model continues it. */
  prefix?: true;
  tool_calls?: { id: string; type: "function"; function: { name: string; arguments: string } }[];
  tool_call_id?: string;
}

/** Fields of the request beside model and messages; docs/api.md describes them. */
export interface ChatOptions {
  reasoning_effort?: string;
  tools?: readonly unknown[];
  tool_choice?: unknown;
  [field: string]: unknown;
}

/** Token counts of a whole answer. */
export interface Usage {
  prompt_tokens: number;
  completion_tokens: number;
  prompt_cache_hit_tokens: number;
  completion_tokens_details?: { reasoning_tokens?: number };
}

/** Speed and cost so far. Milliseconds; null is not known yet. */
export interface Timings {
  cache_n: number | null;
  prompt_n: number | null;
  prompt_ms: number | null;
  prompt_per_second: number | null;
  predicted_n: number | null;
  predicted_ms: number | null;
  predicted_per_second: number | null;
  cost_usd: number | null;
}

/** How far the prompt is. */
export interface PromptProgress {
  total: number;
  cache: number;
  processed: number;
  time_ms: number;
  eta_ms: number | null;
}

export interface CallDelta {
  index: number;
  id?: string;
  name?: string;
  arguments?: string;
}

/** One step of an answer. */
export interface ChatDelta {
  reasoning: string;
  content: string;
  calls: readonly CallDelta[];
  progress?: PromptProgress;
  timings?: Timings;
  /** Only in the last: why the answer ended (stop, length, tool_calls, ...). */
  finish?: string;
  usage?: Usage;
}

interface Chunk {
  error?: { message: string };
  choices?: {
    delta: {
      content?: string | null;
      reasoning_content?: string | null;
      tool_calls?: { index: number; id?: string; function?: { name?: string; arguments?: string } }[];
    };
    finish_reason: string | null;
  }[];
  usage?: Usage | null;
  timings?: Timings;
  prompt_progress?: PromptProgress;
}

/**
 * An answer, as it is written. Throws ApiError for a refused request, a fault of the server, and an answer that breaks
 * off before its end; DOMException (AbortError) if `signal` stopped it.
 */
export async function* streamChat(
  model: string,
  messages: readonly ChatMessage[],
  options: ChatOptions,
  signal: AbortSignal,
): AsyncGenerator<ChatDelta> {
  const body = { model, messages, stream: true, return_progress: true, timings_per_token: true, ...options };
  let ended = false;
  for await (const event of postEvents("v1/chat/completions", body, signal)) {
    if ("comment" in event || event.data === "[DONE]") continue;
    const chunk = JSON.parse(event.data) as Chunk;
    if (chunk.error) throw new ApiError("failed", chunk.error.message);
    const delta = deltaOf(chunk);
    ended ||= delta.finish !== undefined;
    yield delta;
  }
  if (!ended) throw new ApiError("broken", "The answer broke off before its end.");
}

/** What one chunk adds. */
export function deltaOf(chunk: Chunk): ChatDelta {
  const choice = chunk.choices?.[0];
  const calls = (choice?.delta.tool_calls ?? []).map(({ index, id, function: called }) => ({
    index,
    ...(id ? { id } : {}),
    ...(called?.name ? { name: called.name } : {}),
    ...(called?.arguments ? { arguments: called.arguments } : {}),
  }));
  return {
    reasoning: choice?.delta.reasoning_content ?? "",
    content: choice?.delta.content ?? "",
    calls,
    ...(chunk.prompt_progress ? { progress: chunk.prompt_progress } : {}),
    ...(chunk.timings ? { timings: chunk.timings } : {}),
    ...(choice?.finish_reason ? { finish: choice.finish_reason } : {}),
    ...(chunk.usage ? { usage: chunk.usage } : {}),
  };
}
