// Buttons of all pages.
import type { IconNode } from "lucide";
import type { ComponentChildren, JSX } from "preact";
import { Icon } from "./icon";

interface Properties extends Omit<JSX.IntrinsicElements["button"], "icon" | "label" | "children"> {
  /** primary: the one thing to do here; plain: the others; quiet: without a frame; danger: something is lost. */
  kind?: "primary" | "plain" | "quiet" | "danger";
  icon?: IconNode;
  /** What an icon alone means: for screen readers, and as a hint. */
  label?: string;
  compact?: boolean;
  children?: ComponentChildren;
}

/** A button with a text, an icon, or both. One with an icon alone needs `label`. */
export function Button({ kind = "plain", icon, label, compact, children, class: own, ...rest }: Properties) {
  const only = children === undefined && icon !== undefined;
  const names = ["button", kind, only && "only-icon", compact && "compact", own].filter(Boolean).join(" ");
  return (
    <button type="button" class={names} aria-label={label} title={label} {...rest}>
      {icon && <Icon of={icon} size={compact ? 16 : 18} />}
      {children}
    </button>
  );
}
