// Values that are asked for again and again while a page is visible.
import { useEffect, useRef, useState } from "preact/hooks";
import { isStop } from "./errors";

interface Polled<T> {
  /** The newest value; undefined before the first. */
  value: T | undefined;
  /** What went wrong last; undefined if nothing did. */
  error: Error | undefined;
  /** Ask now. */
  again: () => void;
}

/**
 * Calls `turn` now and again `milliseconds` after each end (0: only once), but not while the tab is hidden. It must not
 * throw. A change of `inputs` stops it and starts anew, with the `turn` of then.
 */
export function useRepeated(
  milliseconds: number, turn: (signal: AbortSignal) => Promise<void>, inputs: readonly unknown[],
): void {
  useEffect(() => {
    const stop = new AbortController();
    let timer: ReturnType<typeof setTimeout> | undefined;
    const repeat = async (): Promise<void> => {
      if (!document.hidden) await turn(stop.signal);
      if (milliseconds && !stop.signal.aborted) timer = setTimeout(repeat, milliseconds);
    };
    void repeat();
    return () => {
      stop.abort();
      clearTimeout(timer);
    };
  }, inputs);
}

/**
 * Asks every `milliseconds`, never twice at once, and not while the tab is hidden. 0: only once, and when `again` is
 * called. A change of `name` starts anew.
 */
export function usePolled<T>(name: string, milliseconds: number, ask: (signal: AbortSignal) => Promise<T>): Polled<T> {
  const [state, setState] = useState<{ name: string; value?: T; error?: Error }>({ name });
  const [tries, setTries] = useState(0);
  const latest = useRef(ask);
  latest.current = ask;
  const turn = async (signal: AbortSignal): Promise<void> => {
    try {
      const value = await latest.current(signal);
      if (!signal.aborted) setState({ name, value });
    } catch (error) {
      if (signal.aborted || isStop(error)) return;
      setState((old) => ({ ...old, name, error: error instanceof Error ? error : new Error(String(error)) }));
    }
  };
  useRepeated(milliseconds, turn, [name, milliseconds, tries]);
  const own = state.name === name ? state : { name };
  return { value: own.value, error: own.error, again: () => setTries(tries + 1) };
}
