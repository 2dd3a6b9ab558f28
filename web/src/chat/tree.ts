// A conversation is a tree of messages: an edited question and a repeated answer stand beside the first one. One
// branch of it is shown.
import type { Message } from "../store/types";

export type Messages = ReadonlyMap<string, Message>;

/** The messages from the first to `head`. Stops where one is missing. */
export function branchTo(messages: Messages, head: string | null): Message[] {
  const branch: Message[] = [];
  const seen = new Set<string>();
  for (let id = head; id !== null && !seen.has(id); ) {
    const message = messages.get(id);
    if (!message) break;
    seen.add(id);
    branch.push(message);
    id = message.parent;
  }
  return branch.reverse();
}

/** The messages that stand in the same place, the oldest first, itself among them. */
export function siblingsOf(messages: Messages, message: Message): Message[] {
  return [...messages.values()]
    .filter(({ parent, role }) => parent === message.parent && role === message.role)
    .sort((a, b) => a.created - b.created || (a.id < b.id ? -1 : 1));
}

/** The end of the newest branch through a message. */
export function newestEnd(messages: Messages, id: string): string {
  const next = new Map<string, Message>();
  for (const message of messages.values()) {
    if (message.parent === null) continue;
    const known = next.get(message.parent);
    if (!known || message.created >= known.created) next.set(message.parent, message);
  }
  const seen = new Set<string>();
  let end = id;
  for (let after = next.get(end); after && !seen.has(after.id); after = next.get(end)) {
    seen.add(after.id);
    end = after.id;
  }
  return end;
}

/** A title from the first words of a question. */
export function titleOf(text: string): string {
  const line = text.trim().split("\n").find((part) => part.trim())?.trim() ?? "";
  if (line.length <= 60) return line || "New chat";
  return `${line.slice(0, 60).replace(/\s+\S*$/, "")}…`;
}
