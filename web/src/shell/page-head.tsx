// The bar at the top of a page: its title, and what belongs to the page as a whole.
import { PanelLeft } from "lucide";
import type { ComponentChildren } from "preact";
import { Button } from "./button";
import { isSideOpen, toggleSide } from "./side";

interface Properties {
  title: ComponentChildren;
  /** On the right. */
  actions?: ComponentChildren;
}

export function PageHead({ title, actions }: Properties) {
  return (
    <header class="page-head">
      {!isSideOpen.value && <Button kind="quiet" icon={PanelLeft} label="Show the side bar" onClick={toggleSide} />}
      <h1>{title}</h1>
      <span class="space" />
      {actions}
    </header>
  );
}
