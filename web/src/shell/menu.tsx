// A list of actions behind a button.
import { Check, type IconNode } from "lucide";
import type { ComponentChildren } from "preact";
import { useId, useRef, useState } from "preact/hooks";
import { Button } from "./button";
import { Icon } from "./icon";

export interface MenuItem {
  label: string;
  icon?: IconNode;
  danger?: boolean;
  /** Set: the item is one of a choice, and this says whether it is the chosen one. */
  chosen?: boolean;
  onChoose: () => void;
}

interface Properties {
  /** What the menu is for; also the text of screen readers. */
  label: string;
  icon?: IconNode;
  items: readonly MenuItem[];
  /** The text of the button, if it is not an icon alone. */
  children?: ComponentChildren;
  compact?: boolean;
}

/** Opens below its button, or above it where there is no room. Arrows move, Escape closes. */
export function Menu({ label, icon, items, children, compact }: Properties) {
  const list = useRef<HTMLDivElement>(null);
  const button = useRef<HTMLSpanElement>(null);
  const [open, setOpen] = useState(false);
  const id = useId();
  const toggled = (event: { newState: string }) => {
    setOpen(event.newState === "open");
    if (event.newState === "open" && list.current && button.current) {
      place(list.current, button.current.getBoundingClientRect());
      focusFirst(list.current);
    }
  };
  return (
    <span class="menu" ref={button}>
      <Button
        kind="quiet" label={label} compact={compact} {...(icon ? { icon } : {})}
        aria-haspopup="menu" aria-expanded={open} popovertarget={id}
      >
        {children}
      </Button>
      <div id={id} ref={list} class="menu-items" role="menu" aria-label={label} popover="auto" onToggle={toggled} onKeyDown={move}>
        {open && items.map((item) => <Item key={item.label} item={item} close={() => list.current?.hidePopover()} />)}
      </div>
    </span>
  );
}

function Item({ item, close }: { item: MenuItem; close: () => void }) {
  const choice = item.chosen !== undefined;
  const choose = () => {
    close();
    item.onChoose();
  };
  return (
    <button
      type="button" class={item.danger ? "danger" : undefined} role={choice ? "menuitemradio" : "menuitem"}
      aria-checked={choice ? item.chosen : undefined} tabIndex={-1} onClick={choose}
    >
      {item.icon && <Icon of={item.icon} size={16} />}
      {item.label}
      {item.chosen && <span class="tick"><Icon of={Check} size={16} /></span>}
    </button>
  );
}

function focusFirst(list: HTMLElement): void {
  const chosen = list.querySelector<HTMLElement>("[aria-checked=true]");
  (chosen ?? list.querySelector<HTMLElement>("button"))?.focus();
}

function place(list: HTMLElement, anchor: DOMRect): void {
  const below = window.innerHeight - anchor.bottom;
  const height = list.offsetHeight;
  const top = below < height + 8 && anchor.top > below ? anchor.top - height - 4 : anchor.bottom + 4;
  const left = Math.min(anchor.left, window.innerWidth - list.offsetWidth - 8);
  list.style.top = `${Math.max(8, top)}px`;
  list.style.left = `${Math.max(8, left)}px`;
}

function move(event: KeyboardEvent): void {
  const list = event.currentTarget as HTMLElement;
  const items = [...list.querySelectorAll<HTMLElement>("button")];
  const at = items.indexOf(document.activeElement as HTMLElement);
  const steps: Record<string, number> = {
    ArrowDown: (at + 1) % items.length,
    ArrowUp: (at - 1 + items.length) % items.length,
    Home: 0,
    End: items.length - 1,
  };
  const next = steps[event.key];
  if (next === undefined) return;
  event.preventDefault();
  items[next]?.focus();
}
