// A block of code: its language, a button that copies it, and colours once their library is there.

import { useEffect, useState } from "preact/hooks";
import { Component } from "preact";
import type { ComponentChildren } from "preact";
import { codeText } from "./blocks";
import type { Tree } from "./highlight";

/** Colouring is linear but slow: longer code stays plain, and while code is being written only a short one is coloured
 * again and again. */
const LONGEST_COLOURED = 60_000;
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
  const length = runs.reduce((sum, run) => sum + run.length, rest.length);
  const coloured = length <= (closed ? LONGEST_COLOURED : LONGEST_OPEN);
  const text = (): string => codeText({ kind: "code", key: 0, language, runs, rest, closed });
  const tree = useColours(coloured ? text() : null, language);
  return (
    <figure class="code">
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

/** The coloured tree of a text; null while there is none. The last one of a text that has grown stays until then. */
function useColours(text: string | null, language: string): Tree | null {
  const [tree, setTree] = useState<{ text: string; tree: Tree | null } | null>(null);
  useEffect(() => {
    if (text === null || language === "") return undefined;
    let wanted = true;
    const colour = async (): Promise<void> => {
      const { highlight } = await import("./highlight");
      if (wanted) setTree({ text, tree: highlight(text, language) });
    };
    void colour();
    return () => {
      wanted = false;
    };
  }, [text, language]);
  return tree !== null && tree.text === text ? tree.tree : null;
}

function colouredNodes(tree: Tree): ComponentChildren[] {
  return tree.map((node) => {
    if (typeof node === "string") return node;
    return <span class={node.names.join(" ")}>{colouredNodes(node.children)}</span>;
  });
}
