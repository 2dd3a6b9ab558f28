// The key of this user, for servers that need one.
import { signal } from "@preact/signals";
import { readSetting, writeSetting } from "../store/settings";

const NAME = "key";

/** The key that requests carry; empty for none. */
export const apiKey = signal(readSetting(NAME, "", { session: true }) || readSetting(NAME, ""));

/** Whether the key outlives this tab. */
export function isKeyKept(): boolean {
  return readSetting(NAME, "") !== "";
}

/** Has requests carry a key, which nothing keeps. */
export function tryKey(key: string): void {
  apiKey.value = key;
}

/** Sets the key. keep: also for the next visits, readable for who uses this browser; else until the tab closes. */
export function setKey(key: string, keep: boolean): void {
  apiKey.value = key;
  writeSetting(NAME, keep && key ? key : null);
  writeSetting(NAME, !keep && key ? key : null, { session: true });
}
