// The conversation that is open, and what can be done with it.
import { computed, signal } from "@preact/signals";
import { deleteMessages, messagesOf, saveConversation } from "../store/conversations";
import { renamed } from "../store/exchange";
import { ownName } from "../store/owner";
import { readSetting, writeSetting } from "../store/settings";
import { type Attachment, type Conversation, type Message, newId } from "../store/types";
import { type Place, answerQuestion, newMessage, stopAnswer, works } from "./answering";
import { type Run, runs } from "./runs";
import { type Messages, branchTo, newestEnd, titleOf } from "./tree";

const CHOICES = ownName("choices");

/** The open conversation. A new one is kept from its first question on. */
export const conversation = signal<Conversation>(newConversation());

export const messages = signal<Messages>(new Map());

/** The messages that are shown, the first one first. */
export const branch = computed(() => branchTo(messages.value, conversation.value.head));

/** The answer that is being written here. */
export const running = computed<Run | undefined>(() => runs.value.get(conversation.value.id));

/** Whether a question is being answered here: the model writes, or tools run or wait for the user. */
export const busy = computed(() => works.value.has(conversation.value.id));

/** For screen readers: what happened last. */
export const announcement = signal("");

/** An empty conversation with the choices of the last one: effort, system prompt, sampling and tools stay what they were. */
function newConversation(): Conversation {
  const now = Date.now();
  const choices = readSetting<Partial<Conversation>>(CHOICES, {});
  // a tool that may run without a question may do so in one conversation only
  const tools = choices.tools ? { tools: { ...choices.tools, allowed: [] } } : {};
  return {
    id: newId(), title: "New chat", created: now, updated: now, head: null,
    system: choices.system ?? "", effort: choices.effort ?? "high", sampling: choices.sampling ?? {}, ...tools,
  };
}

export function startNew(): void {
  conversation.value = newConversation();
  messages.value = new Map();
}

/** Shows a conversation that is kept. */
export async function openConversation(kept: Conversation): Promise<void> {
  const list = await messagesOf(kept.id);
  const run = runs.value.get(kept.id);
  const map = new Map(list.map((message) => [message.id, settled(message, run)]));
  if (run) map.set(run.message.value.id, run.message.value);
  conversation.value = kept;
  messages.value = map;
}

/** A message that this tab does not write: its page was closed, or another tab writes it. Its reader did not stop it. */
function settled(message: Message, run: Run | undefined): Message {
  if (message.state !== "writing" || message.id === run?.message.value.id) return message;
  return { ...message, state: "stopped", problem: "The page was closed or loaded again before the end, or another tab writes this answer." };
}

/** Changes title, system prompt, effort, sampling or tools. */
export function changeConversation(change: Partial<Conversation>): void {
  const changed = { ...conversation.value, ...change };
  conversation.value = changed;
  const { system, effort, sampling, tools } = changed;
  writeSetting(CHOICES, { system, effort, sampling, tools });
  if (messages.value.size) void saveConversation(changed);
}

/** Asks a question and has it answered. after: the message that it follows; the last one if left out. */
export async function ask(text: string, files: readonly Attachment[] = [], after = conversation.value.head): Promise<void> {
  if (busy.value) return;
  const question: Message = {
    ...newMessage(conversation.value.id, "user", after), content: text, state: "done",
    ...(files.length ? { attachments: [...files] } : {}),
  };
  if (messages.value.size === 0) {
    conversation.value = { ...conversation.value, title: titleOf(text || (files[0]?.name ?? "")) };
  }
  const place = openPlace();
  await place.add(question);
  await answerQuestion(place, question.id);
}

/** The open conversation, also after another one was opened: keeping a question takes a moment, its answer longer. */
function openPlace(): Place {
  let own = conversation.value;
  let known = messages.value;
  const isOpen = () => conversation.value.id === own.id;
  const newest = () => (isOpen() ? conversation.value : own);
  const keep = async (list: readonly Message[], change: Partial<Conversation>) => {
    for (const message of list) known = new Map(known).set(message.id, message);
    own = { ...newest(), ...change };
    if (isOpen()) {
      messages.value = known;
      conversation.value = own;
    }
    await saveConversation(own, list);
  };
  return {
    conversation: newest,
    branchTo: (id) => branchTo(known, id),
    add: (message) => keep([message], { head: message.id, updated: Date.now() }),
    put: (message) => keep([message], {}),
    change: (change) => keep([], change),
    announce: (text) => {
      if (isOpen()) announcement.value = text;
    },
  };
}

/** Answers the question of an answer again. One that failed without a word makes room; any other stays beside it. */
export async function answerAgain(answer: Message): Promise<void> {
  if (busy.value || answer.parent === null) return;
  const isBlank = answer.state === "failed" && !answer.content && !answer.reasoning;
  if (isBlank) {
    const left = new Map(messages.value);
    left.delete(answer.id);
    messages.value = left;
  }
  const place = openPlace();
  if (isBlank) await deleteMessages([answer.id]);
  await answerQuestion(place, answer.parent);
}

/** Has the model write on where an answer ended before its end. */
export async function goOn(answer: Message): Promise<void> {
  if (busy.value || answer.parent === null) return;
  await answerQuestion(openPlace(), answer.parent, answer);
}

export function stop(): void {
  void stopAnswer(conversation.value.id);
}

/** Shows the branch through a message. */
export function showBranch(message: Message): void {
  const head = newestEnd(messages.value, message.id);
  conversation.value = { ...conversation.value, head };
  void saveConversation(conversation.value);
}

/** A new conversation that begins as this one does up to a message. */
export async function branchOff(last: Message): Promise<Conversation> {
  const now = Date.now();
  const title = `${conversation.value.title} (branch)`;
  const made = renamed({
    conversation: { ...conversation.value, title, created: now, updated: now, head: last.id },
    messages: branchTo(messages.value, last.id),
  });
  await saveConversation(made.conversation, made.messages);
  return made.conversation;
}
