// The kinds of attention, in words and colours.
import type { AttentionKind, Layer } from "../api/admin";

export const KINDS: Record<AttentionKind, { name: string; colour: string; about: string }> = {
  swa: { name: "SWA", colour: "var(--series-5)", about: "sliding window: each token reads the last tokens only" },
  csa: { name: "CSA", colour: "var(--series-1)", about: "compressed sparse: the window, and the entries that an indexer picks" },
  hca: { name: "HCA", colour: "var(--series-2)", about: "heavily compressed: the window, and all of a few coarse entries" },
};

/** How many layers there are of each kind that occurs. */
export function countKinds(layers: readonly Layer[]): { kind: AttentionKind; count: number }[] {
  const kinds = Object.keys(KINDS) as AttentionKind[];
  return kinds.map((kind) => ({ kind, count: layers.filter(({ attention }) => attention === kind).length })).filter(({ count }) => count > 0);
}
