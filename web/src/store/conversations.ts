// Conversations that this browser keeps.
import { signal } from "@preact/signals";
import { errorText } from "../api/errors";
import { all, change, messagesIn } from "./database";
import { ownName } from "./owner";
import type { Conversation, Message } from "./types";

/** All of them, the newest first. */
export const conversations = signal<readonly Conversation[]>([]);

/** Why nothing can be kept (storage is forbidden or full); empty if all is well. */
export const storageProblem = signal("");

function newestFirst(list: readonly Conversation[]): Conversation[] {
  return [...list].sort((a, b) => b.updated - a.updated);
}

async function kept<T>(work: () => Promise<T>, otherwise: T): Promise<T> {
  try {
    const result = await work();
    storageProblem.value = "";
    return result;
  } catch (error) {
    storageProblem.value = errorText(error);
    return otherwise;
  }
}

/** Reads the list again. */
export async function loadConversations(): Promise<void> {
  conversations.value = newestFirst(await kept(() => all<Conversation>("conversations"), [...conversations.value]));
}

/** The messages of one, in no order. */
export async function messagesOf(id: string): Promise<Message[]> {
  return kept(() => messagesIn<Message>(id), []);
}

/** Called with the name of each conversation that changes here. */
const followers = new Set<(id: string) => void>();

export function onChange(follower: (id: string) => void): void {
  followers.add(follower);
}

function tell(id: string): void {
  for (const follower of followers) follower(id);
  channel?.postMessage("changed");
}

/** Keeps a conversation, and messages of it. */
export async function saveConversation(conversation: Conversation, messages: readonly Message[] = []): Promise<void> {
  await keepHere(conversation, messages);
  tell(conversation.id);
}

/** Keeps a conversation without telling those that follow changes: they brought it. */
export async function keepHere(conversation: Conversation, messages: readonly Message[]): Promise<void> {
  const others = conversations.value.filter(({ id }) => id !== conversation.id);
  conversations.value = newestFirst([...others, conversation]);
  const puts = messages.map((value) => ({ table: "messages" as const, value }));
  await kept(() => change([{ table: "conversations", value: conversation }, ...puts]), undefined);
}

/** Keeps messages. */
export async function saveMessages(messages: readonly Message[]): Promise<void> {
  await kept(() => change(messages.map((value) => ({ table: "messages" as const, value }))), undefined);
  for (const id of new Set(messages.map(({ conversation }) => conversation))) tell(id);
}

/** Forgets messages. */
export async function deleteMessages(ids: readonly string[]): Promise<void> {
  await kept(() => change([], ids.map((id) => ({ table: "messages" as const, id }))), undefined);
}

/** Forgets a conversation. Returns what was forgotten, for undoing. */
export async function deleteConversation(conversation: Conversation): Promise<Message[]> {
  const messages = await forgetHere(conversation.id);
  tell(conversation.id);
  return messages;
}

/** Forgets a conversation without telling those that follow changes. Returns its messages. */
export async function forgetHere(id: string): Promise<Message[]> {
  const messages = await messagesOf(id);
  conversations.value = conversations.value.filter((other) => other.id !== id);
  const gone = messages.map((message) => ({ table: "messages" as const, id: message.id }));
  await kept(() => change([], [{ table: "conversations" as const, id }, ...gone]), undefined);
  return messages;
}

/** Where a text was found. */
export interface Found {
  conversation: Conversation;
  /** The words around it; empty if it stands in the title. */
  excerpt: string;
}

const AROUND = 32;

/** Conversations with a text in the title, in a message, or in a name or the text of a file, in any case of letters. */
export async function searchConversations(text: string): Promise<Found[]> {
  const wanted = text.trim().toLowerCase();
  if (!wanted) return [];
  const excerpts = new Map<string, string>();
  for (const message of await kept(() => all<Message>("messages"), [])) {
    if (excerpts.has(message.conversation)) continue;
    const excerpt = excerptOf(message, wanted);
    if (excerpt !== undefined) excerpts.set(message.conversation, excerpt);
  }
  return conversations.value
    .filter(({ id, title }) => excerpts.has(id) || title.toLowerCase().includes(wanted))
    .map((conversation) => ({ conversation, excerpt: excerpts.get(conversation.id) ?? "" }));
}

/** The words around a text in a message or its files; undefined if it is in none. wanted: in small letters. */
export function excerptOf(message: Pick<Message, "content" | "attachments">, wanted: string): string | undefined {
  const files = message.attachments ?? [];
  for (const text of [message.content, ...files.flatMap((file) => [file.name, file.text])]) {
    const at = text.toLowerCase().indexOf(wanted);
    if (at >= 0) return excerptAt(text, at, wanted.length);
  }
  return undefined;
}

/** The words around a place of a text, on one line. */
export function excerptAt(text: string, at: number, length: number): string {
  const from = Math.max(0, at - AROUND);
  const to = Math.min(text.length, at + length + AROUND);
  const middle = text.slice(from, to).replace(/\s+/g, " ").trim();
  return `${from > 0 ? "…" : ""}${middle}${to < text.length ? "…" : ""}`;
}

// other tabs of this browser change the same database
let channel: BroadcastChannel | undefined;

/** Follows what other tabs change, and tells them of changes here. Called once. */
export function followOtherTabs(): void {
  channel ??= new BroadcastChannel(ownName("dsv4.conversations"));
  channel.onmessage = () => void loadConversations();
}
