// Light, dark, or what the system prefers.
import { readSetting, writeSetting } from "../store/settings";

export type Theme = "system" | "light" | "dark";
export const THEMES: readonly Theme[] = ["system", "light", "dark"];

/** The theme of the last visit; "system" if none was chosen. */
export function chosenTheme(): Theme {
  const stored = readSetting("theme", "system");
  return THEMES.includes(stored) ? stored : "system";
}

/** Keeps a theme and shows it. */
export function chooseTheme(theme: Theme): void {
  writeSetting("theme", theme);
  showTheme(theme);
}

/** Shows a theme. The colours follow `color-scheme` in theme.css. */
export function showTheme(theme: Theme): void {
  if (theme === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
}
