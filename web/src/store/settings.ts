// Small choices of this browser: theme, key, side bar. They live in localStorage under one prefix; where a browser
// forbids that (a private window, blocked storage), they live as long as the page.

const PREFIX = "dsv4.";
const memory = new Map<string, string>();

function storage(kept: boolean): Storage | undefined {
  try {
    return kept ? window.localStorage : window.sessionStorage;
  } catch {
    return undefined;
  }
}

/** The value kept under a name, `fallback` if there is none or it cannot be read. */
export function readSetting<T>(name: string, fallback: T, options: { session?: boolean } = {}): T {
  const stored = storage(!options.session)?.getItem(PREFIX + name) ?? memory.get(name);
  if (stored === undefined || stored === null) return fallback;
  try {
    return JSON.parse(stored) as T;
  } catch {
    return fallback;
  }
}

/** Keeps a JSON value under a name, null forgets it. session: only until the browser closes this tab. */
export function writeSetting(name: string, value: unknown, options: { session?: boolean } = {}): void {
  const text = JSON.stringify(value);
  const place = storage(!options.session);
  try {
    if (value === null) place?.removeItem(PREFIX + name);
    else place?.setItem(PREFIX + name, text);
  } catch {
    // full or forbidden: the page itself remembers
  }
  if (value === null) memory.delete(name);
  else memory.set(name, text);
}
