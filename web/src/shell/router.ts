// Which page is shown: its path below the address of the server, and the query.
import { signal } from "@preact/signals";

export interface Route {
  /** The last part of the path: "" (chat), "engine", "usage", "training", "model". */
  page: string;
  query: URLSearchParams;
}

function current(): Route {
  const page = location.pathname.split("/").at(-1) ?? "";
  return { page, query: new URLSearchParams(location.search) };
}

export const route = signal<Route>(current());

/** The address of a page, relative, so that the pages work below any prefix of a proxy. */
export function addressOf(page: string, query: Record<string, string> = {}): string {
  const search = new URLSearchParams(query).toString();
  return `./${page}${search ? `?${search}` : ""}`;
}

/** Goes to a page. replace: the back button then skips where we were. */
export function go(page: string, query: Record<string, string> = {}, options: { replace?: boolean } = {}): void {
  history[options.replace ? "replaceState" : "pushState"](null, "", addressOf(page, query));
  route.value = current();
}

/** For links: goes there without loading, unless the user wants another tab. */
export function follow(event: MouseEvent, page: string, query: Record<string, string> = {}): void {
  if (event.button !== 0 || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
  event.preventDefault();
  go(page, query);
}

/** Follows the back and forward buttons. Called once. */
export function watchHistory(): void {
  window.addEventListener("popstate", () => {
    route.value = current();
  });
}
