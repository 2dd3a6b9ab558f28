// Whether an element is near what is visible. Formulas and colours are drawn only there: a long conversation has
// hundreds of them.

import { useEffect, useState } from "preact/hooks";
import type { RefObject } from "preact";

/** How far outside of the window drawing begins, in pixels. */
const MARGIN = 1200;

const waiting = new Map<Element, () => void>();
let observer: IntersectionObserver | undefined;

function notice(entries: readonly IntersectionObserverEntry[]): void {
  for (const { target, isIntersecting } of entries) {
    if (!isIntersecting) continue;
    waiting.get(target)?.();
    forget(target);
  }
}

function forget(element: Element): void {
  waiting.delete(element);
  observer?.unobserve(element);
}

/** True from the moment when the element is near, and for ever then. */
export function useNear(place: RefObject<Element | null>): boolean {
  const [near, setNear] = useState(false);
  useEffect(() => {
    const element = place.current;
    if (near || element === null) return undefined;
    // scrollMargin: the same inside of elements that scroll, in browsers that know it
    const margins = { rootMargin: `${MARGIN}px 0px`, scrollMargin: `${MARGIN}px 0px` };
    observer ??= new IntersectionObserver(notice, margins);
    waiting.set(element, () => setNear(true));
    observer.observe(element);
    return () => forget(element);
  }, [near]);
  return near;
}
