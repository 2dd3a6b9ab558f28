// One answer while it is written: deltas in, a message out.
import type { ChatDelta, PromptProgress } from "../api/chat";
import type { Call, Figures, Message, State } from "../store/types";

/** Counts that an answer in several parts has of all of them together. */
const SUMMED = ["answerTokens", "thinkingTokens", "thinkingMs", "totalMs", "costUsd"] as const;

/** Collects the deltas of an answer. message: what is there already, if it is continued. now: a clock in milliseconds. */
export class AnswerWriter {
  progress: PromptProgress | undefined;
  #message: Message;
  readonly #before: Message;
  #began: number;
  #thinkingBegan: number | undefined;
  #finish: string | undefined;

  constructor(message: Message, private readonly now: () => number = () => performance.now()) {
    this.#before = message;
    const { firstTokenMs } = message.figures ?? {};
    // the figures of this part; the first token of the whole answer stays
    this.#message = { ...message, ...(message.figures ? { figures: firstTokenMs === undefined ? {} : { firstTokenMs } } : {}) };
    this.#began = now();
  }

  /** The message so far; a new object after each delta. */
  get message(): Message {
    const { figures } = this.#before;
    return figures ? { ...this.#message, figures: together(figures, this.#message.figures ?? {}) } : this.#message;
  }

  take(delta: ChatDelta): void {
    const { reasoning = "", content, calls, figures = {} } = this.#message;
    const wrote = Boolean(delta.reasoning || delta.content || delta.calls.length);
    const time = this.now();
    const changed: Figures = { ...figures };
    if (wrote) changed.firstTokenMs ??= time - this.#began;
    if (delta.reasoning) this.#thinkingBegan ??= time;
    if (this.#thinkingBegan !== undefined && content === this.#before.content) changed.thinkingMs = time - this.#thinkingBegan;
    this.#count(delta, changed);
    if (delta.progress) this.progress = delta.progress;
    this.#finish = delta.finish ?? this.#finish;
    const added = delta.calls.reduce(withCall, calls ?? []);
    this.#message = {
      ...this.#message,
      content: content + delta.content,
      ...(reasoning || delta.reasoning ? { reasoning: reasoning + delta.reasoning } : {}),
      ...(added.length ? { calls: added } : {}),
      figures: changed,
    };
  }

  /** Closes the answer. state: what the user or a fault made of it; else the reason that the server gave. */
  end(state?: State, problem?: string): Message {
    const figures = { ...this.#message.figures, totalMs: this.now() - this.#began };
    const ended = state ?? (this.#finish === "length" ? "cut" : "done");
    this.#message = { ...this.#message, figures, state: ended, ...(problem ? { problem } : {}) };
    return this.message;
  }

  #count(delta: ChatDelta, figures: Figures): void {
    const { timings, usage } = delta;
    if (timings) {
      if (timings.predicted_n !== null) figures.answerTokens = timings.predicted_n;
      if (timings.predicted_per_second !== null) figures.tokensPerSecond = timings.predicted_per_second;
      if (timings.cost_usd !== null) figures.costUsd = timings.cost_usd;
      // until the server counts them at the end: all tokens so far were thinking
      if (this.#message.content === this.#before.content && delta.reasoning && timings.predicted_n !== null) {
        figures.thinkingTokens = timings.predicted_n;
      }
    }
    if (!usage) return;
    figures.promptTokens = usage.prompt_tokens;
    figures.cachedTokens = usage.prompt_cache_hit_tokens;
    figures.answerTokens = usage.completion_tokens;
    figures.thinkingTokens = usage.completion_tokens_details?.reasoning_tokens ?? 0;
  }
}

/** The figures of an answer after one more part. */
function together(before: Figures, part: Figures): Figures {
  const sums = SUMMED.flatMap((name) => {
    const found = [before[name], part[name]].filter((value) => value !== undefined);
    return found.length ? [[name, found.reduce((sum, value) => sum + value, 0)]] : [];
  });
  return { ...before, ...part, ...Object.fromEntries(sums) };
}

/** The calls with one more piece of one of them. */
function withCall(calls: readonly Call[], delta: ChatDelta["calls"][number]): Call[] {
  const known = calls[delta.index];
  if (!known) return [...calls, { id: delta.id ?? "", name: delta.name ?? "", arguments: delta.arguments ?? "" }];
  return calls.map((call) => (call === known ? { ...call, arguments: call.arguments + (delta.arguments ?? "") } : call));
}
