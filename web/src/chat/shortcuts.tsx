// What keys do, anywhere on the chat page.
import { signal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { Dialog, go, isDrawerOpen, isSideOpen, toggleSide } from "../shell";
import { branch, busy, stop } from "./session";

/** The question that is being edited. */
export const editing = signal<string | null>(null);

const isListOpen = signal(false);

const KEYS: readonly [string, string][] = [
  ["Enter", "send; with Shift a new line"],
  ["Esc", "stop the answer"],
  ["↑", "in an empty field: edit the last question"],
  ["Ctrl Shift O", "new chat"],
  ["Ctrl K", "search the conversations"],
  ["Ctrl B", "show or hide the side bar"],
  ["/", "write a question"],
  ["Ctrl /", "this list"],
];

/** Opens the last question for editing; false if there is none. */
export function editLastQuestion(): boolean {
  const last = branch.value.filter(({ role }) => role === "user").at(-1);
  if (!last || busy.value) return false;
  editing.value = last.id;
  return true;
}

export function startNewChat(): void {
  go("");
  focusQuestion();
}

function focusQuestion(): void {
  requestAnimationFrame(() => document.getElementById("question")?.focus());
}

function focusSearch(): void {
  if (!isSideOpen.value) toggleSide();
  requestAnimationFrame(() => document.getElementById("search-conversations")?.focus());
}

const WITH_CONTROL: Record<string, () => void> = {
  k: focusSearch,
  b: toggleSide,
  "/": () => { isListOpen.value = !isListOpen.value; },
};

function pressed(event: KeyboardEvent): void {
  const work = workFor(event);
  if (!work) return;
  event.preventDefault();
  work();
}

function workFor(event: KeyboardEvent): (() => void) | undefined {
  const key = event.key.toLowerCase();
  const control = event.ctrlKey || event.metaKey;
  if (control && event.shiftKey && key === "o") return startNewChat;
  if (control && !event.shiftKey && !event.altKey) return WITH_CONTROL[key];
  const target = event.target as HTMLElement;
  const isInField = target.matches("input, textarea, select, [contenteditable]");
  if (key === "/" && !control && !isInField) return focusQuestion;
  // a dialog, a menu or the drawer that is open takes Escape for itself
  const isFree = !document.querySelector("dialog[open], :popover-open") && !isDrawerOpen.value;
  if (key === "escape" && busy.value && isFree) return stop;
  return undefined;
}

export function useShortcuts(): void {
  useEffect(() => {
    window.addEventListener("keydown", pressed);
    return () => window.removeEventListener("keydown", pressed);
  }, []);
}

export function ShortcutList() {
  const close = () => {
    isListOpen.value = false;
  };
  return (
    <Dialog open={isListOpen.value} title="Keys" onClose={close}>
      <dl class="keys">
        {KEYS.map(([keys, what]) => (
          <div key={keys}>
            <dt>{keys.split(" ").map((key) => <kbd key={key}>{key}</kbd>)}</dt>
            <dd>{what}</dd>
          </div>
        ))}
      </dl>
    </Dialog>
  );
}
