// The side bar: navigation, what the page adds to it, the state of the server, settings.
import { computed, signal } from "@preact/signals";
import { PanelLeftClose, Settings } from "lucide";
import type { FunctionComponent } from "preact";
import { useLayoutEffect, useRef } from "preact/hooks";
import { connection } from "../api/connection";
import { servedModel } from "../api/models";
import { readSetting, writeSetting } from "../store/settings";
import { Button } from "./button";
import { Icon } from "./icon";
import { PAGES } from "./pages";
import { addressOf, follow, route } from "./router";
import { openSettings } from "./settings-dialog";

const narrow = matchMedia("(max-width: 48rem)");
const isNarrow = signal(narrow.matches);

function atFirst(): boolean {
  return !narrow.matches && readSetting("side", true);
}

/** Open as at the last visit on a wide screen, closed on a phone. */
export const isSideOpen = signal(atFirst());
narrow.addEventListener("change", () => {
  isNarrow.value = narrow.matches;
  isSideOpen.value = atFirst();
});

export function toggleSide(): void {
  isSideOpen.value = !isSideOpen.value;
  if (!narrow.matches) writeSetting("side", isSideOpen.value);
}

/** On a phone the side covers the page: whoever leads to another page calls this. */
export function closeDrawer(): void {
  if (narrow.matches) isSideOpen.value = false;
}

/** Whether the side covers the page. */
export const isDrawerOpen = computed(() => isNarrow.value && isSideOpen.value);

const STATES = {
  starting: "Connecting",
  online: "Connected",
  offline: "Server does not answer",
  locked: "Key needed",
};

export function Side({ Aside }: { Aside?: FunctionComponent | undefined }) {
  const element = useRef<HTMLElement>(null);
  const isDrawer = isDrawerOpen.value;
  // the page behind the drawer takes no focus; whoever wants another place in the drawer asks after this
  useLayoutEffect(() => {
    if (isDrawer) element.current?.querySelector("button")?.focus();
  }, [isDrawer]);
  return (
    <aside class="side" aria-label="Navigation" ref={element}>
      <div class="side-head">
        <a class="brand" href={addressOf("")} onClick={(event) => follow(event, "")}>dsv4</a>
        <Button kind="quiet" icon={PanelLeftClose} label="Hide the side bar" onClick={toggleSide} />
      </div>
      <nav aria-label="Pages">
        {PAGES.map((page) => (
          <a
            key={page.path} href={addressOf(page.path)} aria-current={route.value.page === page.path ? "page" : undefined}
            onClick={(event) => { follow(event, page.path); closeDrawer(); }}
          >
            <Icon of={page.icon} />
            {page.title}
          </a>
        ))}
      </nav>
      <div class="side-page">{Aside && <Aside />}</div>
      <div class="side-foot">
        <ConnectionState />
        <Button kind="quiet" icon={Settings} label="Settings" onClick={openSettings} />
      </div>
    </aside>
  );
}

function ConnectionState() {
  const state = connection.value;
  const name = state === "online" ? (servedModel.value?.id ?? STATES.online) : STATES[state];
  return (
    <div class="connection quiet" title={STATES[state]}>
      <span class={`dot ${state}`} aria-hidden="true" />
      <span class="name">{name}</span>
      <span class="unseen" role="status">{STATES[state]}</span>
    </div>
  );
}
