// The frame around all pages.
import { useEffect, useState } from "preact/hooks";
import { connection, onReturn } from "../api/connection";
import { loadModels } from "../api/models";
import { Button } from "./button";
import { PAGES, type Page, loadPage, loadedPage } from "./pages";
import { go, route } from "./router";
import { SettingsDialog } from "./settings-dialog";
import { Side, closeDrawer, isDrawerOpen, isSideOpen, toggleSide } from "./side";
import { Toasts } from "./toast";

const COVERS = "dialog[open], :popover-open";

export function App() {
  const page = PAGES.find(({ path }) => path === route.value.page);
  const shown = useModule(page);
  useEffect(() => {
    document.title = page?.path ? `${page.title} · dsv4` : "dsv4";
  }, [page]);
  useEffect(() => {
    const refresh = () => loadModels().catch(() => undefined); // the connection shows what is wrong
    refresh();
    return onReturn(refresh);
  }, []);
  useEscape();
  return (
    <div class={isSideOpen.value ? "layout" : "layout side-closed"}>
      <Side Aside={shown.module?.Aside} />
      <button class="scrim" type="button" aria-label="Close the side bar" onClick={toggleSide} />
      <main class="page" inert={isDrawerOpen.value}>
        {page ? <Shown {...shown} /> : <NoPage />}
      </main>
      <SettingsDialog />
      <Toasts />
    </div>
  );
}

/** Escape closes the drawer of a phone; a dialog or a menu above it takes Escape for itself. */
function useEscape(): void {
  useEffect(() => {
    const pressed = (event: KeyboardEvent) => {
      if (event.key === "Escape" && isDrawerOpen.peek() && !document.querySelector(COVERS)) closeDrawer();
    };
    window.addEventListener("keydown", pressed);
    return () => window.removeEventListener("keydown", pressed);
  }, []);
}

function Shown({ module, failed, again }: ReturnType<typeof useModule>) {
  if (module) return <module.default />;
  if (!failed) return null;
  return (
    <div class="empty-page">
      <h2>This page could not be loaded</h2>
      <p class="quiet">{connection.value === "offline" ? "The server does not answer." : "The server may be a newer one."}</p>
      <Button kind="primary" onClick={again}>Try again</Button>
    </div>
  );
}

function NoPage() {
  return (
    <div class="empty-page">
      <h2>There is no such page</h2>
      <Button kind="primary" onClick={() => go("")}>Go to the chat</Button>
    </div>
  );
}

function useModule(page: Page | undefined) {
  const [tries, setTries] = useState(0);
  const [state, setState] = useState<{ path?: string; failed?: boolean }>({});
  useEffect(() => {
    if (!page || loadedPage(page.path)) return;
    loadPage(page).then(
      () => setState({ path: page.path }),
      () => setState({ path: page.path, failed: true }),
    );
  }, [page, tries]);
  const again = () => setTries(tries + 1);
  if (!page) return { again };
  const module = loadedPage(page.path);
  return { module, failed: state.path === page.path && state.failed, again };
}
