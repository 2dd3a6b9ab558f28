// The files of the question that is being written: read, counted, and ready to be sent.

import { computed, signal } from "@preact/signals";
import { errorText } from "../api/errors";
import { countTokens } from "../api/tokens";
import { countLong } from "./count";
import { otherName, safeName } from "./names";
import { FileProblem, readFile } from "./read-file";

/** reading: from the disk; counting: its text is there, its tokens are not all counted; failed: `problem` says why. */
export type FileState = "reading" | "counting" | "ready" | "failed";

export interface AttachedFile {
  id: number;
  name: string;
  bytes: number;
  state: FileState;
  text: string;
  /** Counted so far. */
  tokens: number;
  /** What is being done, where that takes a while. */
  step?: string;
  problem?: string;
}

const MOST_FILES = 50;
/** Pasted text of so many characters becomes a file: a text box of that length is slow and hides the question. */
const LONG_PASTE = 8_000;

export const attachments = signal<readonly AttachedFile[]>([]);
/** A sentence about files that were not taken. */
export const refusal = signal("");

const running = new Map<number, AbortController>();
let lastId = 0;

/** Whether all files are read: tokens may still be counted. */
export const filesReady = computed(() => attachments.value.every(({ state }) => state !== "reading"));
/** How many files a question would take along. */
export const usableFiles = computed(() => attachments.value.filter(isUsable).length);
/** The tokens of the files, as far as they are counted. */
export const fileTokens = computed(() => attachments.value.reduce((sum, file) => sum + file.tokens, 0));

/** Reads and counts files, one after another. */
export async function attach(files: Iterable<File>): Promise<void> {
  refusal.value = "";
  const given = [...files];
  const added = given.slice(0, Math.max(0, MOST_FILES - attachments.value.length)).map(begin);
  if (added.length < given.length) refusal.value = `At most ${MOST_FILES} files go with one question.`;
  for (const { id, file } of added) await read(id, file);
}

/** Takes a long pasted text as a file; returns whether it did. */
export function attachPaste(text: string): boolean {
  if (text.length < LONG_PASTE) return false;
  void attach([new File([text], "Pasted text.txt", { type: "text/plain" })]);
  return true;
}

export function detach(id: number): void {
  running.get(id)?.abort();
  attachments.value = attachments.value.filter((file) => file.id !== id);
}

/** Forgets all files, for instance when they were sent. */
export function detachAll(): void {
  for (const { id } of attachments.value) detach(id);
  refusal.value = "";
}

/** The files as they are sent and kept with a question; those that failed are left out. */
export function takeAttachments(): { name: string; text: string; tokens?: number }[] {
  const taken = attachments.value.filter(isUsable).map(({ name, text, tokens, state }) => ({ name, text, ...(state === "ready" ? { tokens } : {}) }));
  detachAll();
  return taken;
}

function isUsable({ state }: AttachedFile): boolean {
  return state === "ready" || state === "counting";
}

function begin(file: File): { id: number; file: File } {
  const id = ++lastId;
  const name = otherName(safeName(file.name), new Set(attachments.value.map((other) => other.name)));
  const entry: AttachedFile = { id, name, bytes: file.size, state: "reading", text: "", tokens: 0 };
  attachments.value = [...attachments.value, entry];
  return { id, file };
}

function change(id: number, fields: Partial<AttachedFile>): void {
  attachments.value = attachments.value.map((file) => (file.id === id ? { ...file, ...fields } : file));
}

async function read(id: number, file: File): Promise<void> {
  const abort = new AbortController();
  running.set(id, abort);
  const { signal: stop } = abort;
  try {
    const text = await readFile(file, { signal: stop, onStep: (step) => change(id, { step }) });
    change(id, { text, state: "counting", step: "counting tokens" });
    const count = (piece: string): Promise<number> => {
      stop.throwIfAborted();
      return countTokens(piece, { signal: stop });
    };
    const tokens = await countLong(text, count, (sum) => change(id, { tokens: sum }));
    change(id, { state: "ready", tokens });
  } catch (error) {
    if (!stop.aborted) fail(id, error);
  } finally {
    running.delete(id);
  }
}

function fail(id: number, error: unknown): void {
  const why = errorText(error);
  const isRead = attachments.value.find((file) => file.id === id)?.state === "counting";
  // a file that was read can be sent without a count
  if (isRead) change(id, { state: "ready", tokens: 0, step: `not counted: ${why}` });
  else change(id, { state: "failed", problem: error instanceof FileProblem ? why : `The file cannot be read: ${why}` });
}
