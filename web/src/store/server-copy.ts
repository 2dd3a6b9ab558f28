// A second copy of the conversations on a server that keeps them (`--history DIR`). This browser works on its own
// copy and exchanges what changed: other browsers with the same key then have the same conversations.
import { deleteHistory, hasHistory, listHistory, readHistory, writeHistory } from "../api/history";
import { conversations, forgetHere, keepHere, messagesOf, onChange } from "./conversations";
import { ownName } from "./owner";
import { readSetting, writeSetting } from "./settings";
import type { Conversation, Message } from "./types";

export interface Document {
  title: string;
  conversation: Conversation;
  messages: Message[];
}

/** After the last change a conversation waits this long, so that an answer being written is sent once. */
const REST = 3000;
const TAGS = ownName("server-copy");

const waiting = new Map<string, ReturnType<typeof setTimeout>>();
let isOn = false;

/** Versions on the server that this browser has seen, by conversation. */
const tags = (): Record<string, number> => readSetting(TAGS, {});

function setTag(id: string, tag: number | undefined): void {
  const { [id]: _, ...others } = tags();
  writeSetting(TAGS, tag === undefined ? others : { ...others, [id]: tag });
}

/** Exchanges everything with a server that keeps conversations, and what changes from now on. Throws ApiError. */
export async function exchangeWithServer(): Promise<void> {
  if (!(await hasHistory())) return;
  if (!isOn) onChange(changed);
  isOn = true;
  const known = tags();
  const theirs = new Map((await listHistory()).map(({ id, updated }) => [id, updated]));
  for (const [id, updated] of theirs) if (known[id] !== updated) await take(id);
  for (const { id } of conversations.value) {
    if (theirs.has(id)) continue;
    // it was there: another browser deleted it; it never was: it is new
    if (known[id] === undefined) await give(id);
    else await forgetHere(id);
  }
  for (const id of Object.keys(known)) if (!theirs.has(id)) setTag(id, undefined);
}

function changed(id: string): void {
  clearTimeout(waiting.get(id));
  waiting.set(id, setTimeout(() => void give(id).catch(() => undefined), REST)); // the connection shows what is wrong
}

/** Sends a conversation, or its end. */
async function give(id: string): Promise<void> {
  waiting.delete(id);
  const mine = await here(id);
  if (!mine) {
    await deleteHistory(id);
    setTag(id, undefined);
    return;
  }
  const tag = await writeHistory(id, mine, tags()[id] ?? 0);
  if (tag === undefined) await take(id);
  else setTag(id, tag);
}

/** Takes the server's copy; what only this browser has is put back to the server. */
async function take(id: string): Promise<void> {
  const theirs = await readHistory<Document>(id);
  const mine = await here(id);
  const merged = mine ? mergeDocuments(mine, theirs) : theirs;
  await keepHere(merged.conversation, merged.messages);
  setTag(id, theirs.updated);
  if (merged.messages.length > theirs.messages.length) await give(id);
}

async function here(id: string): Promise<Document | undefined> {
  const conversation = conversations.value.find((kept) => kept.id === id);
  return conversation && { title: conversation.title, conversation, messages: await messagesOf(id) };
}

/** Messages of both, since they are branches of one tree; title and choices of the one that changed last. */
export function mergeDocuments(mine: Document, theirs: Document): Document {
  const [older, newer] = mine.conversation.updated > theirs.conversation.updated ? [theirs, mine] : [mine, theirs];
  const messages = new Map([...older.messages, ...newer.messages].map((message) => [message.id, message]));
  return { title: newer.title, conversation: newer.conversation, messages: [...messages.values()] };
}
