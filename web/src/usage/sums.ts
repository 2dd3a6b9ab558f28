// Rows of the ledger added up.
import type { UsageRow } from "../api/admin";

export type Count = "requests" | "prompt" | "cached" | "completion" | "reasoning" | "cost";
export type Group = "model" | "key";
export type Sums = Record<Count, number>;

export const COUNTS: readonly Count[] = ["requests", "prompt", "cached", "completion", "reasoning", "cost"];

export function sumOf(rows: readonly UsageRow[]): Sums {
  const sums: Sums = { requests: 0, prompt: 0, cached: 0, completion: 0, reasoning: 0, cost: 0 };
  for (const row of rows) for (const name of COUNTS) sums[name] += row[name];
  return sums;
}

/** The rows by a name, the one with the most of `by` first. */
export function grouped(rows: readonly UsageRow[], group: Group | "day", by: Count): { name: string; sums: Sums }[] {
  const found = new Map<string, UsageRow[]>();
  for (const row of rows) found.set(row[group], [...(found.get(row[group]) ?? []), row]);
  const all = [...found].map(([name, part]) => ({ name, sums: sumOf(part) }));
  return all.sort((a, b) => b.sums[by] - a.sums[by] || a.name.localeCompare(b.name));
}

/** Every day from the first to the last, also those without a row; at most the last `most`. */
export function daysBetween(first: string, last: string, most: number): string[] {
  const days: string[] = [];
  const end = Date.parse(`${last}T00:00:00Z`);
  for (let at = Date.parse(`${first}T00:00:00Z`); at <= end; at += 86_400_000) {
    days.push(new Date(at).toISOString().slice(0, 10));
  }
  return days.slice(-most);
}

/** The names that get a colour of their own; the others share the last place. */
export function named(rows: readonly UsageRow[], group: Group, by: Count, most: number): string[] {
  const names = grouped(rows, group, by).map(({ name }) => name);
  return names.length <= most ? names : [...names.slice(0, most - 1), OTHERS];
}

export const OTHERS = "others";

/** For each day, the count of each name. */
export function byDay(
  rows: readonly UsageRow[], days: readonly string[], group: Group, names: readonly string[], count: (row: UsageRow) => number,
): number[][] {
  const place = new Map(days.map((day, i) => [day, i]));
  const table = days.map(() => names.map(() => 0));
  for (const row of rows) {
    const day = table[place.get(row.day) ?? -1];
    const at = names.indexOf(row[group]);
    const column = at >= 0 ? at : names.indexOf(OTHERS);
    if (day && column >= 0) day[column] = (day[column] ?? 0) + count(row);
  }
  return table;
}
