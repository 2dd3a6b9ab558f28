// Whether the server answers. While it does not, it is asked again and again, ever more slowly, and pages that wait
// for it go on when it is back.
import { effect, signal } from "@preact/signals";
import type { ApiError } from "./errors";

/** starting: nothing was asked yet; locked: it answers, but needs a key. */
export type Connection = "starting" | "online" | "offline" | "locked";

export const connection = signal<Connection>("starting");

const FIRST_PAUSE = 1000;
const LONGEST_PAUSE = 10_000;
let waiting: ReturnType<typeof setTimeout> | undefined;

/** Called for every answer of the server. */
export function noteAnswer(): void {
  clearTimeout(waiting);
  waiting = undefined;
  connection.value = "online";
}

/** Called for every request that fails. */
export function noteTrouble(error: ApiError): void {
  if (error.trouble === "key") connection.value = "locked";
  if (error.trouble !== "unreachable" && error.trouble !== "broken") return;
  connection.value = "offline";
  waiting ??= setTimeout(() => ask(FIRST_PAUSE), FIRST_PAUSE);
}

/** Asks at once instead of waiting; resolves to whether the server answers. */
async function askNow(): Promise<boolean> {
  try {
    // needs no key: the next request tells whether that is right
    const answered = (await fetch("health")).ok;
    if (answered && connection.value !== "locked") noteAnswer();
    return answered;
  } catch {
    connection.value = "offline";
    return false;
  }
}

async function ask(pause: number): Promise<void> {
  if (await askNow()) return;
  const next = Math.min(pause * 1.5, LONGEST_PAUSE);
  waiting = setTimeout(() => ask(next), next);
}

/** Runs `work` when the server answers again after it did not. Returns what ends that. */
export function onReturn(work: () => void): () => void {
  let before = connection.peek();
  return effect(() => {
    const now = connection.value;
    const back = now === "online" && before !== "online" && before !== "starting";
    before = now;
    if (back) queueMicrotask(work);
  });
}
