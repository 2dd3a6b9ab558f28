// Values that are asked for again and again while a page is visible.
import { useEffect, useRef, useState } from "preact/hooks";
import { isStop } from "./errors";

export interface Polled<T> {
  /** The newest value; undefined before the first. */
  value: T | undefined;
  /** What went wrong last; undefined if nothing did. */
  error: Error | undefined;
  /** Ask now. */
  again: () => void;
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
  useEffect(() => {
    const stop = new AbortController();
    let timer: ReturnType<typeof setTimeout> | undefined;
    const turn = async (): Promise<void> => {
      try {
        if (!document.hidden) {
          const value = await latest.current(stop.signal);
          if (!stop.signal.aborted) setState({ name, value });
        }
      } catch (error) {
        if (stop.signal.aborted || isStop(error)) return;
        setState((old) => ({ ...old, name, error: error instanceof Error ? error : new Error(String(error)) }));
      }
      if (milliseconds && !stop.signal.aborted) timer = setTimeout(turn, milliseconds);
    };
    void turn();
    return () => {
      stop.abort();
      clearTimeout(timer);
    };
  }, [name, milliseconds, tries]);
  const own = state.name === name ? state : { name };
  return { value: own.value, error: own.error, again: () => setTries(tries + 1) };
}
