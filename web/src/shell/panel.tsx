// A framed part of a page.
import type { ComponentChildren } from "preact";

interface Properties {
  title: string;
  /** Beside the title, on the right. */
  actions?: ComponentChildren;
  children: ComponentChildren;
}

export function Panel({ title, actions, children }: Properties) {
  return (
    <section class="panel" aria-label={title}>
      <header>
        <h2>{title}</h2>
        {actions}
      </header>
      {children}
    </section>
  );
}
