// From values to places on a chart.

export interface Range {
  low: number;
  high: number;
}

/** Values that differ by less of their size are equal: sums of the same numbers in another order. */
const PRECISION = 1e-9;

export type Point = readonly [x: number, y: number];

/** The range of values; `undefined` without any. */
export function rangeOf(values: readonly number[]): Range | undefined {
  let low = Number.POSITIVE_INFINITY;
  let high = Number.NEGATIVE_INFINITY;
  for (const value of values) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return low <= high ? { low, high } : undefined;
}

/** Round values that divide a range into about `count` parts: 1, 2 or 5 times a power of ten apart. */
export function ticks({ low, high }: Range, count: number): number[] {
  // steps below the precision of the values would never reach the end
  if (!(high - low > Math.max(Math.abs(low), Math.abs(high)) * PRECISION)) return [low];
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 5].find((factor) => factor * power >= rough * 0.75) ?? 10);
  const found = [];
  for (let at = Math.ceil(low / step - 1e-9); at * step <= high + step * 1e-9; at += 1) found.push(at * step || 0);
  return found;
}

/** Powers of ten in a range above 0, and the ends where there are few. */
export function logTicks({ low, high }: Range): number[] {
  const found = [];
  for (let at = Math.ceil(Math.log10(low) - 1e-9); 10 ** at <= high * 1.0000001; at += 1) found.push(10 ** at);
  return found.length > 1 ? found : [low, high];
}

/** The range of a curve to be drawn: a little wider than its values, without the few that lie far out. */
export function drawnRange(values: readonly number[], from?: number): Range {
  const sorted = values.filter(Number.isFinite).sort((a, b) => a - b);
  const first = sorted[0];
  if (first === undefined) return { low: 0, high: 1 };
  const low = from ?? first;
  const high = Math.max(low, sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * 0.998))] ?? first);
  const span = high - low;
  const room = span > Math.abs(high) * PRECISION ? span * 0.06 : Math.abs(high) * 0.1 || 1;
  return { low: from ?? low - room, high: high + room };
}

/** At most `most` points: the mean of as many neighbours as that takes, each at the place of its last. */
export function thinned(points: readonly Point[], most: number): readonly Point[] {
  const width = Math.ceil(points.length / most);
  if (width < 2) return points;
  const found: Point[] = [];
  for (let at = 0; at < points.length; at += width) {
    const part = points.slice(at, at + width);
    const sum = part.reduce((total, [, y]) => total + y, 0);
    found.push([part.at(-1)?.[0] ?? 0, sum / part.length]);
  }
  return found;
}

/** A running mean; weight: of what was before, from 0 (nothing) to below 1. */
export function smoothed(points: readonly Point[], weight: number): readonly Point[] {
  if (weight <= 0) return points;
  let mean = 0;
  let seen = 0;
  return points.map(([x, y]) => {
    mean = weight * mean + (1 - weight) * y;
    seen = weight * seen + (1 - weight);
    return [x, mean / seen];
  });
}

/** The place in ascending points whose x is nearest. */
export function nearest(points: readonly Point[], x: number): number {
  let low = 0;
  let high = points.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if ((points[middle]?.[0] ?? 0) < x) low = middle + 1;
    else high = middle;
  }
  const before = points[low - 1];
  const here = points[low];
  return before && here && x - before[0] < here[0] - x ? low - 1 : low;
}
