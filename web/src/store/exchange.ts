// Conversations as files: JSON for another browser, Markdown for reading.
import { type Conversation, type Message, newId } from "./types";

const FORMAT = "dsv4-conversations";
const VERSION = 1;

export interface Exported {
  conversation: Conversation;
  messages: Message[];
}

/** The text of a file that `readFile` takes. */
export function writeFile(list: readonly Exported[]): string {
  return JSON.stringify({ format: FORMAT, version: VERSION, conversations: list }, null, 1);
}

/** The conversations of a file, with new names, so that importing twice makes two. Throws Error for another file. */
export function readFile(text: string): Exported[] {
  let file: { format?: unknown; version?: unknown; conversations?: unknown };
  try {
    file = JSON.parse(text) as typeof file;
  } catch {
    throw new Error("This is not a JSON file.");
  }
  if (file?.format !== FORMAT || !Array.isArray(file.conversations)) {
    throw new Error("This file holds no conversations that were exported here.");
  }
  if (file.version !== VERSION) throw new Error(`This file has version ${String(file.version)}; ${VERSION} can be read.`);
  return file.conversations.map((entry: Partial<Exported>, index) => renamed(checked(entry, index)));
}

const ROLES = ["user", "assistant", "tool"];
const EFFORTS = ["none", "high", "max"];

/** What a file holds may have been written by anybody: only known fields of the right kind are taken. */
function checked(entry: Partial<Exported>, index: number): Exported {
  const { conversation, messages } = entry ?? {};
  const wrong = (what: string) => new Error(`Conversation ${index + 1} of the file has ${what}.`);
  if (typeof conversation?.title !== "string") throw wrong("no title");
  if (!Array.isArray(messages)) throw wrong("no messages");
  const names = new Set(messages.map((message) => message?.id));
  for (const message of messages) {
    if (typeof message?.id !== "string" || typeof message.content !== "string") throw wrong("a message without text");
    if (!ROLES.includes(message.role)) throw wrong("a message of an unknown role");
    if (!areCalls(message.calls ?? [])) throw wrong("a call of a tool without name or arguments");
    if (message.parent !== null && !names.has(message.parent)) throw wrong("a message whose question is missing");
  }
  return {
    conversation: {
      id: "",
      title: conversation.title,
      created: Number(conversation.created) || Date.now(),
      updated: Number(conversation.updated) || Date.now(),
      head: names.has(conversation.head ?? "") ? (conversation.head as string) : (messages.at(-1)?.id ?? null),
      system: typeof conversation.system === "string" ? conversation.system : "",
      effort: EFFORTS.includes(conversation.effort) ? conversation.effort : "high",
      sampling: typeof conversation.sampling === "object" && conversation.sampling ? conversation.sampling : {},
    },
    messages,
  };
}

function areCalls(calls: unknown): boolean {
  const isText = (value: unknown) => typeof value === "string";
  return Array.isArray(calls) && calls.every((call) => isText(call?.id) && isText(call?.name) && isText(call?.arguments));
}

/** The same conversation under new names. Nobody writes its answers. */
export function renamed({ conversation, messages }: Exported): Exported {
  const id = newId();
  const names = new Map(messages.map((message) => [message.id, newId()]));
  const nameOf = (old: string | null) => (old === null ? null : (names.get(old) ?? null));
  return {
    conversation: { ...conversation, id, head: nameOf(conversation.head) },
    messages: messages.map((message) => ({
      ...message,
      id: names.get(message.id) as string,
      conversation: id,
      parent: nameOf(message.parent),
      state: message.state === "writing" ? "stopped" : message.state,
    })),
  };
}

/** A branch as Markdown. */
export function asMarkdown(conversation: Conversation, branch: readonly Message[]): string {
  const heads = { user: "Question", assistant: "Answer", tool: "Result of a tool" };
  const parts = branch.flatMap(({ role, content, calls = [] }) => {
    // indented: code, whatever it holds
    const written = calls.map(({ name, arguments: text }) => `${name} ${text}`.replace(/^/gm, "    "));
    return [`## ${heads[role]}`, content, ...written].filter(Boolean);
  });
  return [`# ${conversation.title}`, ...parts].join("\n\n") + "\n";
}
