// A block of code: its language, a button that copies it, and colours once their library is there.

import { Component } from "preact";
import type { ComponentChildren } from "preact";
import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { codeText } from "./blocks";
import type { Tree } from "./highlight";
import { useNear } from "./near";

/** Colouring is linear but slow: longer code stays plain, and while code is being written only a short one is coloured
 * again and again. */
const LONGEST_COLOURED = 30_000;
const LONGEST_OPEN = 6_000;
const COPIED_SECONDS = 2;

interface Properties {
  /** Runs of whole lines, which only grow in number, and what follows them. */
  runs: readonly string[];
  rest: string;
  language: string;
  closed: boolean;
}

export function CodeView({ runs, rest, language, closed }: Properties) {
  const place = useRef<HTMLElement>(null);
  const near = useNear(place);
  const length = runs.reduce((sum, run) => sum + run.length, rest.length);
  const coloured = near && length <= (closed ? LONGEST_COLOURED : LONGEST_OPEN);
  const text = (): string => codeText({ runs, rest });
  const tree = useColours(coloured ? text() : null, language);
  return (
    <figure class="code" ref={place}>
      <figcaption>
        <span>{language || "text"}</span>
        <CopyButton text={text} />
      </figcaption>
      {/* focus lets the keyboard scroll long lines */}
      <pre tabIndex={0} aria-label={language ? `Code in ${language}` : "Code"}>
        <code>{tree ? colouredNodes(tree) : [...runs.map((run, index) => <Run key={index} text={run} />), rest]}</code>
      </pre>
    </figure>
  );
}

/** A run of lines that stays as it is. */
class Run extends Component<{ text: string }> {
  override shouldComponentUpdate(next: { text: string }): boolean {
    return next.text !== this.props.text;
  }

  override render(): ComponentChildren {
    return <span class="run">{this.props.text}</span>;
  }
}

function CopyButton({ text }: { text: () => string }) {
  const [state, setState] = useState("Copy");
  const copy = async (): Promise<void> => {
    const copied = await navigator.clipboard.writeText(text()).then(() => "Copied", () => "Copying is not allowed");
    setState(copied);
    setTimeout(() => setState("Copy"), COPIED_SECONDS * 1000);
  };
  return (
    <button type="button" class="copy" aria-label={state === "Copy" ? "Copy the code" : undefined} onClick={copy}>
      {state}
    </button>
  );
}

let library: typeof import("./highlight") | undefined;

/** The coloured tree of a text, null while the library loads. Once it is there the tree comes with the text, so that
 * code that is being written does not flicker. */
function useColours(text: string | null, language: string): Tree | null {
  const [, draw] = useState(false);
  const wanted = text !== null && language !== "";
  useEffect(() => {
    if (!wanted || library !== undefined) return;
    const load = async (): Promise<void> => {
      library = await import("./highlight");
      draw(true);
    };
    load().catch(() => undefined); // without colours the code is still there
  }, [wanted]);
  return useMemo(() => (wanted && library ? library.highlight(text, language) : null), [text, language, library]);
}

function colouredNodes(tree: Tree): ComponentChildren[] {
  return tree.map((node) => {
    if (typeof node === "string") return node;
    return <span class={node.names.join(" ")}>{colouredNodes(node.children)}</span>;
  });
}
