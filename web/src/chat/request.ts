// A conversation as a request.
import type { ChatMessage, ChatOptions } from "../api/chat";
import type { Attachment, Conversation, Message } from "../store/types";

/** The messages that the model gets: the system prompt, then the branch. Answers that failed before a word are left out. */
export function requestMessages(conversation: Conversation, branch: readonly Message[]): ChatMessage[] {
  const system = conversation.system.trim();
  const head: ChatMessage[] = system ? [{ role: "system", content: system }] : [];
  return [...head, ...withAllResults(branch.filter(counts).map(asMessage))];
}

/** A call without a result, because its tab was closed, gets one: the model must not wait for it. */
function withAllResults(messages: readonly ChatMessage[]): ChatMessage[] {
  const answered = new Set(messages.map(({ tool_call_id: id }) => id));
  return messages.flatMap((message) => {
    const open = (message.tool_calls ?? []).filter(({ id }) => !answered.has(id));
    const results = open.map(({ id }): ChatMessage => ({ role: "tool", content: "not run: the page was closed", tool_call_id: id }));
    return [message, ...results];
  });
}

/** What the model is given of an answer that it continues: nothing of an empty one. */
export function beginning({ content, reasoning }: Message): ChatMessage[] {
  if (!content && !reasoning) return [];
  return [{ role: "assistant", content, ...(reasoning ? { reasoning_content: reasoning } : {}), prefix: true }];
}

function counts(message: Message): boolean {
  return message.role !== "assistant" || Boolean(message.content || message.reasoning || message.calls?.length);
}

function asMessage(message: Message): ChatMessage {
  if (message.role === "user") return { role: "user", content: withFiles(message.content, message.attachments) };
  if (message.role === "tool") return { role: "tool", content: message.content, tool_call_id: message.callId ?? "" };
  // without calls the model never sees old reasoning, so it is not sent
  if (!message.calls?.length) return { role: "assistant", content: message.content };
  const calls = message.calls.map(({ id, name, arguments: text }) => {
    return { id, type: "function" as const, function: { name, arguments: text } };
  });
  return { role: "assistant", content: message.content, reasoning_content: message.reasoning ?? "", tool_calls: calls };
}

/** A question with its files before it: long things first, so that the question stands next to the answer. */
export function withFiles(text: string, files: readonly Attachment[] = []): string {
  const parts = files.map(({ name, text: body }) => `[file: ${name}]\n${body}\n[end of file: ${name}]`);
  return [...parts, text].filter(Boolean).join("\n\n");
}

/** Effort and sampling as fields of the request; what the user left empty is the model's default. */
export function requestOptions(conversation: Conversation): ChatOptions {
  const chosen = Object.entries(conversation.sampling).filter(([, value]) => value !== undefined && value !== null);
  return { reasoning_effort: conversation.effort, ...Object.fromEntries(chosen) };
}
