// One number with its name, and what it means below.
import type { ComponentChildren } from "preact";

interface Properties {
  name: string;
  value: ComponentChildren;
  note?: ComponentChildren;
}

export function Stat({ name, value, note }: Properties) {
  return (
    <div class="stat">
      <dt>{name}</dt>
      <dd>{value}</dd>
      {note !== undefined && <dd class="note">{note}</dd>}
    </div>
  );
}

/** Several of them in a row. */
export function Stats({ children }: { children: ComponentChildren }) {
  return <dl class="stats">{children}</dl>;
}
