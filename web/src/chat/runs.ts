// Answers that are being written, one a conversation. They go on while another conversation is open.
import { type Signal, signal } from "@preact/signals";
import { type PromptProgress, streamChat } from "../api/chat";
import { ApiError, errorText, isStop } from "../api/errors";
import { servedModel } from "../api/models";
import { saveMessages } from "../store/conversations";
import type { Conversation, Message } from "../store/types";
import { beginning, requestMessages, requestOptions } from "./request";
import { AnswerWriter } from "./writer";

export interface Run {
  conversation: string;
  /** The answer so far; changes at most once a frame. */
  message: Signal<Message>;
  /** Of the prompt, until the first token. */
  progress: Signal<PromptProgress | undefined>;
}

/** By conversation. */
export const runs = signal<ReadonlyMap<string, Run>>(new Map());

/** The text so far is kept this often, so that a closed tab loses little. */
const KEPT_EVERY = 2000;

/**
 * Writes an answer and returns the finished message. branch: the messages before it; answer: the message that takes it,
 * empty or an answer that is continued; tools: what the model may call. Never throws: what goes wrong stands in the message.
 */
export async function writeAnswer(
  conversation: Conversation,
  branch: readonly Message[],
  answer: Message,
  tools: readonly unknown[],
  stop: AbortSignal,
): Promise<Message> {
  const writer = new AnswerWriter(answer);
  const run: Run = {
    conversation: conversation.id,
    message: signal(answer),
    progress: signal<PromptProgress | undefined>(undefined),
  };
  runs.value = new Map(runs.value).set(conversation.id, run);
  const pace = new Pace(run, writer);
  try {
    const messages = [...requestMessages(conversation, branch), ...beginning(answer)];
    const model = servedModel.value?.id ?? "";
    const options = { ...requestOptions(conversation), ...(tools.length ? { tools } : {}) };
    for await (const delta of streamChat(model, messages, options, stop)) {
      writer.take(delta);
      pace.changed();
    }
    return writer.end();
  } catch (error) {
    return isStop(error) ? writer.end("stopped") : writer.end("failed", problemOf(error));
  } finally {
    pace.end();
    const left = new Map(runs.value);
    left.delete(conversation.id);
    runs.value = left;
  }
}

function problemOf(error: unknown): string {
  if (error instanceof ApiError) return error.message;
  console.error(error);
  return `This page has a fault: ${errorText(error)}`;
}

/** Shows and keeps what was written, however fast it comes. */
class Pace {
  #frame = 0;
  #kept = performance.now();

  constructor(private readonly run: Run, private readonly writer: AnswerWriter) {}

  changed(): void {
    if (!this.#frame) this.#frame = requestAnimationFrame(() => this.#show());
    if (performance.now() - this.#kept < KEPT_EVERY) return;
    this.#kept = performance.now();
    void saveMessages([this.writer.message]);
  }

  end(): void {
    cancelAnimationFrame(this.#frame);
    this.run.message.value = this.writer.message;
  }

  #show(): void {
    this.#frame = 0;
    this.run.message.value = this.writer.message;
    this.run.progress.value = this.writer.progress;
  }
}
