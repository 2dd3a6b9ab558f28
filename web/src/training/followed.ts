// The lines of the chosen runs, read piece by piece while they go on.
import { useRef, useState } from "preact/hooks";
import { type ExpertLoad, type LogLine, type RunLines, type Sample, runLines } from "../api/admin";
import { errorText, isStop } from "../api/errors";
import { useRepeated } from "../api/polled";

export interface FollowedRun {
  name: string;
  lines: readonly LogLine[];
  samples: readonly Sample[];
  load: ExpertLoad | null;
  running: boolean | null;
  /** Where the next piece begins, and in which file. */
  next: number;
  file: number;
  error?: string;
}

const PAUSE = 2500;
const MOST_SAMPLES = 24;

/** A run with one more piece of its log. A log that was written anew replaces what was read. */
export function withPiece(old: FollowedRun | undefined, piece: RunLines): FollowedRun {
  const kept = old && !piece.restarted ? old : undefined;
  return {
    name: piece.name,
    lines: kept ? (piece.lines.length ? [...kept.lines, ...piece.lines] : kept.lines) : piece.lines,
    samples: [...piece.samples, ...(kept?.samples ?? [])].slice(0, MOST_SAMPLES),
    load: piece.load ?? kept?.load ?? null,
    running: piece.running,
    next: piece.next,
    file: piece.file,
  };
}

/** The chosen runs in their order, as far as they have been read. */
export function useFollowed(names: readonly string[]): FollowedRun[] {
  const known = useRef(new Map<string, FollowedRun>());
  const [, show] = useState(0);
  const turn = async (signal: AbortSignal) => {
    const found = await Promise.all(names.map((name) => follow(name, known.current, signal)));
    if (!signal.aborted && found.includes(true)) show((count) => count + 1);
  };
  useRepeated(PAUSE, turn, [names.join("\n")]);
  return names.flatMap((name) => known.current.get(name) ?? []);
}

/** Reads what is new of one run; whether anything is. */
async function follow(name: string, known: Map<string, FollowedRun>, signal: AbortSignal): Promise<boolean> {
  const old = known.get(name);
  try {
    const piece = await runLines(name, old?.next ?? 0, old?.file ?? 0, signal);
    known.set(name, withPiece(old, piece));
    return !old || piece.lines.length > 0 || piece.running !== old.running || old.error !== undefined;
  } catch (error) {
    if (isStop(error)) return false;
    const text = errorText(error);
    const empty = { name, lines: [], samples: [], load: null, running: null, next: 0, file: 0 };
    known.set(name, { ...(old ?? empty), error: text });
    return old?.error !== text;
  }
}
