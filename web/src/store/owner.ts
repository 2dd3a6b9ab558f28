// Whose conversations this browser shows: those of a key at a server. Several people may use one browser, each with a
// key, and a proxy may have several servers at one address.
import { apiKey } from "../api/key";

const PLACE = globalThis.location?.pathname.replace(/[^/]*$/, "") ?? "/";

/**
 * The owner that a key stands for; empty without a key. 32 bits of a hash tell the few keys of one browser apart, and
 * are too few to find a key by.
 */
export function ownerOf(key: string): string {
  if (!key) return "";
  let hash = 0x811c9dc5; // FNV-1a
  for (const byte of new TextEncoder().encode(key)) hash = Math.imul(hash ^ byte, 0x01000193) >>> 0;
  return hash.toString(16).padStart(8, "0");
}

/** Of this page until it is loaded again: what it holds of one owner must not reach another. */
export const owner = ownerOf(apiKey.peek());

/** The name of something that each owner has for himself. */
export function ownName(name: string, whose = owner): string {
  return [name, PLACE === "/" ? "" : PLACE, whose].filter(Boolean).join("@");
}
