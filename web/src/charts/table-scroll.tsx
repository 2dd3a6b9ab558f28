// A table that is wider than the page scrolls by itself, also with the keyboard.
import type { ComponentChildren } from "preact";

export function TableScroll({ label, class: own, children }: { label: string; class?: string; children: ComponentChildren }) {
  return (
    <div class={own ? `table-scroll ${own}` : "table-scroll"} tabIndex={0} role="region" aria-label={label}>
      {children}
    </div>
  );
}
