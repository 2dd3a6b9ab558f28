// Export, import, rename and delete.
import { go, route, toast } from "../shell";
import { conversations, deleteConversation, messagesOf, saveConversation } from "../store/conversations";
import { type Exported, asMarkdown, readFile, writeFile } from "../store/exchange";
import type { Conversation } from "../store/types";
import { stopAnswer } from "./answering";
import { changeConversation, conversation, startNew } from "./session";
import { branchTo } from "./tree";

export async function rename(kept: Conversation, title: string): Promise<void> {
  if (conversation.value.id === kept.id) changeConversation({ title });
  else await saveConversation({ ...kept, title });
}

/** Deletes a conversation; a message offers to undo it. */
export async function forget(kept: Conversation): Promise<void> {
  await stopAnswer(kept.id);
  const messages = await deleteConversation(kept);
  if (conversation.value.id === kept.id) {
    startNew();
    if (route.value.query.has("chat")) go("", {}, { replace: true });
  }
  const restore = () => void saveConversation(kept, messages);
  toast(`Deleted “${kept.title}”`, { action: { label: "Undo", run: restore } });
}

export async function downloadOne(kept: Conversation): Promise<void> {
  const text = writeFile([await withMessages(kept)]);
  download(`${fileName(kept.title)}.json`, text, "application/json");
}

export async function downloadMarkdown(kept: Conversation): Promise<void> {
  const messages = new Map((await messagesOf(kept.id)).map((message) => [message.id, message]));
  download(`${fileName(kept.title)}.md`, asMarkdown(kept, branchTo(messages, kept.head)), "text/markdown");
}

export async function downloadAll(): Promise<void> {
  const list = await Promise.all(conversations.value.map(withMessages));
  download(`conversations-${new Date().toISOString().slice(0, 10)}.json`, writeFile(list), "application/json");
}

/** Adds the conversations of a file to those that are here. */
export async function importFile(file: File): Promise<void> {
  try {
    const list = readFile(await file.text());
    for (const entry of list) await saveConversation(entry.conversation, entry.messages);
    toast(list.length === 1 ? "Imported 1 conversation" : `Imported ${list.length} conversations`);
  } catch (error) {
    toast((error as Error).message, { bad: true });
  }
}

async function withMessages(kept: Conversation): Promise<Exported> {
  return { conversation: kept, messages: await messagesOf(kept.id) };
}

function fileName(title: string): string {
  return title.replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").slice(0, 60) || "conversation";
}

function download(name: string, text: string, type: string): void {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
