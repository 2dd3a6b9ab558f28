// A formula. KaTeX, its sheet and its fonts load with the first one; until then, and where KaTeX cannot read it, the
// source stands there.

import type { RefObject } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { loadStyle } from "../shell/load-style";
import { useNear } from "./near";

/** A longer source is no formula, and KaTeX would take long to read it. */
const LONGEST = 4_000;

interface Properties {
  source: string;
  display: boolean;
  /** The end is not written yet. */
  open: boolean;
}

export function Maths({ source, display, open }: Properties) {
  const frame = useRef<HTMLElement>(null);
  const place = useRef<HTMLElement>(null);
  const near = useNear(frame);
  const [drawn, setDrawn] = useState("");
  useEffect(() => {
    if (!near || open || source.length > LONGEST) return undefined;
    let wanted = true;
    const draw = async (): Promise<void> => {
      const { render } = await katex();
      if (wanted && place.current !== null) setDrawn(render(source, place.current, display) ? source : "");
    };
    draw().catch(() => setDrawn(""));
    return () => {
      wanted = false;
    };
  }, [source, display, open, near]);
  const isDrawn = drawn === source && source !== "";
  const content = [!isDrawn && <code>{source}</code>, <span ref={place} hidden={!isDrawn} />];
  if (!display) return <span class="maths" ref={frame}>{content}</span>;
  return <div class="maths display" tabIndex={0} ref={frame as RefObject<HTMLDivElement>}>{content}</div>;
}

type Draw = (source: string, place: HTMLElement, display: boolean) => boolean;

let loading: Promise<{ render: Draw }> | undefined;

/** KaTeX with its sheet. It builds nodes, no HTML, and follows no link and loads nothing for a formula. */
function katex(): Promise<{ render: Draw }> {
  return (loading ??= load().catch((error: unknown) => {
    loading = undefined; // the next formula tries again
    throw error;
  }));
}

async function load(): Promise<{ render: Draw }> {
  const [{ default: library }, { default: sheet }] = await Promise.all([
    import("katex"),
    import("katex/dist/katex.min.css?url"),
  ]);
  await loadStyle(sheet);
  const render: Draw = (source, place, display) => {
    try {
      library.render(source, place, { displayMode: display, trust: false, strict: "ignore", maxSize: 50, maxExpand: 500 });
      return true;
    } catch {
      return false; // not TeX that it knows: the source stays
    }
  };
  return { render };
}
