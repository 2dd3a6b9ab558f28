// What went wrong, where it went wrong.
import type { ComponentChildren } from "preact";

interface Properties {
  /** What it says. */
  children: ComponentChildren;
  /** Behind the text: what to do about it. */
  actions?: ComponentChildren;
}

/** Read aloud at once when it appears. */
export function ErrorNotice({ children, actions }: Properties) {
  return (
    <div class="notice bad" role="alert">
      <span class="notice-text">{children}</span>
      {actions}
    </div>
  );
}
