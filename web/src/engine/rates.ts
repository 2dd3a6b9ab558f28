// Tokens by second as the page keeps them: what it has, and what the server adds.
import type { EngineState } from "../api/admin";
import type { Point } from "../charts/scale";

type Second = [second: number, prompt: number, generated: number];

/** The seconds of the last `kept` seconds. The newest may have grown since it was given, so it is given again. */
export function joined(old: readonly Second[], news: EngineState["rates"]): Second[] {
  const first = news.seconds[0]?.[0] ?? Number.POSITIVE_INFINITY;
  const oldest = news.now - news.kept;
  return [...old.filter(([second]) => second < first), ...news.seconds].filter(([second]) => second > oldest);
}

/** From where on to ask: the last known second again, because it was not over. */
export function lastKnown(seconds: readonly Second[]): number {
  return Math.max(0, (seconds.at(-1)?.[0] ?? 0) - 1);
}

/**
 * A curve of tokens per second over the last `span` seconds, ending with the last whole second. column: 1 prompt, 2
 * generated. Each point is the mean of `width` seconds; seconds without tokens are zero.
 */
export function curve(seconds: readonly Second[], now: number, span: number, column: 1 | 2): Point[] {
  const width = Math.max(1, Math.round(span / 150));
  const by = new Map<number, number>();
  for (const second of seconds) {
    const bucket = Math.floor((now - 1 - second[0]) / width);
    by.set(bucket, (by.get(bucket) ?? 0) + second[column]);
  }
  const points: Point[] = [];
  for (let bucket = Math.floor(span / width) - 1; bucket >= 0; bucket -= 1) {
    points.push([-bucket * width, (by.get(bucket) ?? 0) / width]);
  }
  return points;
}

/** Tokens per second of the last few whole seconds. */
export function speedNow(seconds: readonly Second[], now: number, column: 1 | 2, over = 5): number {
  const recent = seconds.filter(([second]) => second < now && second >= now - over);
  return recent.reduce((sum, second) => sum + second[column], 0) / over;
}
