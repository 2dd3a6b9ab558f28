// The pages, in the order of the navigation. Each is loaded when it is first shown.
import { Activity, ChartColumn, GraduationCap, type IconNode, MessageSquare, Network } from "lucide";
import type { FunctionComponent } from "preact";

export interface PageModule {
  default: FunctionComponent;
  /** What the page shows in the side, below the navigation. */
  Aside?: FunctionComponent;
}

export interface Page {
  path: string;
  title: string;
  icon: IconNode;
  load: () => Promise<PageModule>;
}

export const PAGES: readonly Page[] = [
  { path: "", title: "Chat", icon: MessageSquare, load: () => import("../chat/chat-page") },
  { path: "engine", title: "Engine", icon: Activity, load: () => import("../engine/engine-page") },
  { path: "usage", title: "Usage", icon: ChartColumn, load: () => import("../usage/usage-page") },
  { path: "training", title: "Training", icon: GraduationCap, load: () => import("../training/training-page") },
  { path: "model", title: "Model", icon: Network, load: () => import("../model/model-page") },
];

const loaded = new Map<string, PageModule>();

/** The module of a page if it is already here. */
export function loadedPage(path: string): PageModule | undefined {
  return loaded.get(path);
}

/** Loads the module of a page. */
export async function loadPage(page: Page): Promise<void> {
  loaded.set(page.path, await page.load());
}
