// Charts are as wide as the place that they stand in.
import { useEffect, useRef, useState } from "preact/hooks";

/** The width of an element as it changes, in whole pixels. first: until it is measured; least: it is never below. */
export function useWidth(first: number, least: number) {
  const box = useRef<HTMLDivElement>(null);
  const [width, setWidth] = useState(first);
  useEffect(() => {
    const element = box.current;
    if (!element) return;
    const watch = new ResizeObserver(() => setWidth(Math.max(least, Math.floor(element.clientWidth))));
    watch.observe(element);
    return () => watch.disconnect();
  }, []);
  return [box, width] as const;
}
