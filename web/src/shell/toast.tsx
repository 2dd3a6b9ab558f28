// Short messages that go away by themselves.
import { signal } from "@preact/signals";
import { X } from "lucide";
import { Button } from "./button";

interface Toast {
  id: number;
  text: string;
  bad: boolean;
  action?: { label: string; run: () => void };
}

const toasts = signal<readonly Toast[]>([]);
const SECONDS = 6;
let last = 0;

/** Shows a message for some seconds. action: one thing to do about it, such as undoing. */
export function toast(text: string, options: { bad?: boolean; action?: Toast["action"] } = {}): void {
  const id = ++last;
  const entry = { id, text, bad: options.bad ?? false, ...(options.action ? { action: options.action } : {}) };
  toasts.value = [...toasts.value.slice(-2), entry];
  setTimeout(() => dismiss(id), SECONDS * 1000);
}

function dismiss(id: number): void {
  toasts.value = toasts.value.filter((entry) => entry.id !== id);
}

/** Where the messages appear: once in the shell. */
export function Toasts() {
  return (
    <div class="toasts" role="status">
      {toasts.value.map(({ id, text, bad, action }) => (
        <div key={id} class={bad ? "toast bad" : "toast"}>
          <span>{text}</span>
          {action && (
            <Button kind="quiet" compact onClick={() => { action.run(); dismiss(id); }}>
              {action.label}
            </Button>
          )}
          <Button kind="quiet" compact icon={X} label="Dismiss" onClick={() => dismiss(id)} />
        </div>
      ))}
    </div>
  );
}
