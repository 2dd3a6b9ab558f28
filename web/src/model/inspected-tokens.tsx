// The tokens of an inspected text. One is chosen; those that it read through compressed entries are marked.
import { useRef } from "preact/hooks";
import type { InspectedToken, Inspection } from "../api/admin";
import { percent } from "../charts/format";
import { isIn } from "./covered";

interface Properties {
  found: Inspection;
  at: number;
  choose: (token: number) => void;
  /** Ranges of tokens behind the chosen one's entries. */
  covered: readonly (readonly [number, number])[];
}

export function InspectedTokens({ found, at, choose, covered }: Properties) {
  const list = useRef<HTMLDivElement>(null);
  const move = (event: KeyboardEvent) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by) return;
    event.preventDefault();
    const next = Math.min(found.tokens.length - 1, Math.max(0, at + by));
    choose(next);
    (list.current?.children[next] as HTMLElement | undefined)?.focus();
  };
  return (
    <>
      <div class="tokens" ref={list} role="listbox" aria-label="Tokens" aria-orientation="horizontal" onKeyDown={move}>
        {found.tokens.map((token, i) => (
          <span
            // tokens have no names: their place is what they are
            key={i} role="option" tabIndex={i === at ? 0 : -1} aria-selected={i === at} title={hint(token)}
            class={names(token, i, found.prompt_tokens, i !== at && isIn(covered, i))} onClick={() => choose(i)}
          >
            {visible(token.text)}
          </span>
        ))}
      </div>
      <ul class="legend">
        <li><i class="key-prompt" />prompt</li>
        <li><i class="key-answer" />answer</li>
        {found.drafts && <li><i class="key-right" />draft was right</li>}
        {found.drafts && <li><i class="key-wrong" />draft was wrong</li>}
        <li><i class="key-read" />read through a picked entry</li>
      </ul>
    </>
  );
}

function names(token: InspectedToken, i: number, prompt: number, read: boolean): string {
  const kind = i < prompt ? "prompt" : "answer";
  const draft = token.draft && (token.draft.accepted ? "right" : "wrong");
  return ["token", kind, draft, read && "read"].filter(Boolean).join(" ");
}

function hint({ id, probability, draft }: InspectedToken): string {
  const parts = [`id ${id}`];
  if (probability !== undefined) parts.push(`probability ${percent(probability)}`);
  if (draft) parts.push(draft.accepted ? "its draft was right" : `the draft said ${JSON.stringify(draft.text)}`);
  return parts.join(", ");
}

/** Text in which spaces and line breaks can be seen. */
export function visible(text: string): string {
  const shown = text.replaceAll("\n", "↵").replaceAll("\t", "⇥");
  return /^ +$/.test(shown) ? shown.replaceAll(" ", "·") : shown || "∅";
}
