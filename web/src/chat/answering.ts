// Answering a question: turns of the model and calls of tools, until an answer without calls.
import { signal } from "@preact/signals";
import { errorText } from "../api/errors";
import { servedModel } from "../api/models";
import { toast } from "../shell";
import { type Conversation, type Message, newId } from "../store/types";
import { type Tool, asFunction, askUser, readableName, readyTools, runAgent, showCall } from "../tools";
import { writeAnswer } from "./runs";

/** So many turns of the model may follow one question. */
const MOST_TURNS = 12;

/** The conversation that is answered. The user may open another one meanwhile, so it keeps track itself. */
export interface Place {
  conversation: () => Conversation;
  /** The messages up to one. */
  branchTo: (id: string) => Message[];
  /** Adds a message at the end. */
  add: (message: Message) => Promise<void>;
  /** Puts a message in the place of an earlier form of it. */
  put: (message: Message) => Promise<void>;
  change: (change: Partial<Conversation>) => Promise<void>;
  /** Tells screen readers. */
  announce: (text: string) => void;
}

interface Work {
  stopper: AbortController;
  ended: Promise<void>;
}

/** Answers that are under way, by conversation. */
export const works = signal<ReadonlyMap<string, Work>>(new Map());

/**
 * Has a question answered, beside the answers that it has; does nothing while its conversation is answered. begun: an
 * answer to it that is continued. Never throws: what goes wrong stands in the messages.
 */
export async function answerQuestion(place: Place, question: string, begun?: Message): Promise<void> {
  const { id } = place.conversation();
  if (works.value.has(id)) return;
  const stopper = new AbortController();
  const ended = answerUntil(place, question, begun, stopper.signal);
  works.value = new Map(works.value).set(id, { stopper, ended });
  try {
    await ended;
  } finally {
    const left = new Map(works.value);
    left.delete(id);
    works.value = left;
  }
}

/** Ends an answer and waits until all of it is kept. */
export async function stopAnswer(conversation: string): Promise<void> {
  const work = works.value.get(conversation);
  work?.stopper.abort();
  await work?.ended;
}

async function answerUntil(
  place: Place, question: string, begun: Message | undefined, stop: AbortSignal,
): Promise<void> {
  const { tools, missing } = await toolsOf(place);
  if (missing.length) toast(`Not available: ${missing.join("; ")}`, { bad: true });
  await runTurns(place, question, begun, tools, stop);
}

async function toolsOf(place: Place): Promise<{ tools: Tool[]; missing: string[] }> {
  try {
    return await readyTools(place.conversation().tools);
  } catch (error) {
    return { tools: [], missing: [errorText(error)] };
  }
}

async function runTurns(
  place: Place, question: string, begun: Message | undefined, tools: Tool[], signal: AbortSignal,
): Promise<void> {
  const { id } = place.conversation();
  let last = question;
  let next = begun && asBegun(begun);
  const add = async (message: Message) => {
    await place.add(message);
    last = message.id;
  };
  await runAgent(
    {
      turn: async () => {
        const before = place.branchTo(last);
        const model = servedModel.value?.id;
        const answer = next ?? { ...newMessage(id, "assistant", last), ...(model ? { model } : {}) };
        next = undefined;
        await add(answer);
        place.announce("Answering");
        const ended = await writeAnswer(place.conversation(), before, answer, tools.map(asFunction), signal);
        await place.put(ended);
        place.announce(announced(ended));
        return { calls: ended.calls ?? [], goesOn: ended.state === "done" };
      },
      approve: (call, tool, stop) => {
        place.announce(`The model asks to use ${readableName(tool.title)}. The buttons are at its call.`);
        return askUser(call, stop);
      },
      show: showCall,
      keep: (call, { text, failed }) =>
        add({ ...newMessage(id, "tool", last), content: text, state: failed ? "failed" : "done", callId: call.id }),
    },
    { tools, allowed: allowedIn(place), limit: MOST_TURNS, signal },
  );
}

/** Tools that need no question; what is added to it is kept with the conversation. */
function allowedIn(place: Place): Set<string> {
  const allowed = new Set(place.conversation().tools?.allowed ?? []);
  const plain = allowed.add.bind(allowed);
  allowed.add = (name) => {
    const { tools } = place.conversation();
    if (tools) void place.change({ tools: { ...tools, allowed: [...tools.allowed, name] } });
    return plain(name);
  };
  return allowed;
}

/** An answer that is being written again. */
function asBegun({ problem: _, ...message }: Message): Message {
  return { ...message, state: "writing" };
}

export function newMessage(conversation: string, role: Message["role"], parent: string | null): Message {
  return { id: newId(), conversation, parent, role, content: "", created: Date.now(), state: "writing" };
}

function announced(message: Message): string {
  if (message.state === "failed") return `The answer failed: ${message.problem ?? ""}`;
  if (message.state === "stopped") return "Stopped";
  if (message.calls?.length) return "The model calls tools";
  return message.content.trim() ? `Answer: ${message.content.slice(0, 400)}` : "The answer is empty";
}
