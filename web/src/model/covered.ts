// Which tokens the compressed entries cover that one position read.
import type { Architecture, Inspection } from "../api/admin";

/** Ranges [from, to) of tokens that ranges of entries cover, at `ratio` tokens each. */
export function coveredTokens(entries: readonly (readonly [number, number])[], ratio: number): [number, number][] {
  return entries.map(([from, to]) => [from * ratio, to * ratio]);
}

/** Tokens of one entry of a CSA layer in the released models: for servers that do not tell. */
const CSA_RATIO = 4;

/** Tokens of one entry of a layer, which is named by its number. */
export function ratioOf(architecture: Architecture | null, layer: string): number {
  return architecture?.layers[Number(layer)]?.ratio || CSA_RATIO;
}

/** Whether a number is in one of the ranges. */
export function isIn(ranges: readonly (readonly [number, number])[], number: number): boolean {
  return ranges.some(([from, to]) => number >= from && number < to);
}

/** How many numbers the ranges hold. */
export function sizeOf(ranges: readonly (readonly [number, number])[]): number {
  return ranges.reduce((sum, [from, to]) => sum + to - from, 0);
}

/** What the layers chose at one position: its experts, and its entries; undefined for what was not computed. */
export function choicesAt(found: Inspection, position: number) {
  const row = position - found.first;
  const layers = (table: Record<string, unknown[]>) => Object.keys(table).sort((a, b) => Number(a) - Number(b));
  return {
    experts: layers(found.experts).map((layer) => ({ layer, chosen: found.experts[layer]?.[row] })),
    entries: layers(found.entries).map((layer) => ({ layer, chosen: found.entries[layer]?.[row] })),
  };
}

/** By layer, how many of the inspected tokens each expert got. */
export function expertCounts(found: Inspection, experts: number): { layer: string; counts: number[] }[] {
  return Object.entries(found.experts).sort(([a], [b]) => Number(a) - Number(b)).map(([layer, rows]) => {
    const counts = Array.from({ length: experts }, () => 0);
    for (const row of rows) for (const expert of row) if (expert < experts) counts[expert] = (counts[expert] ?? 0) + 1;
    return { layer, counts };
  });
}

/** The largest number of an expert, and one more: for servers that do not tell how many there are. */
export function expertsSeen(found: Inspection): number {
  let most = 0;
  for (const rows of Object.values(found.experts)) for (const row of rows) most = Math.max(most, ...row);
  return most + 1;
}
