// A file that was sent with a question: folded, its text drawn only when it is opened.

import { FileText } from "lucide";
import { useState } from "preact/hooks";
import { Icon } from "../shell/icon";
import { codeRuns } from "../markdown";
import { safeName } from "./names";
import "./files.css";

interface Properties {
  name: string;
  text: string;
  tokens?: number | undefined;
}

export function SentFile({ name: given, text, tokens }: Properties) {
  const name = safeName(given); // an imported conversation may hold any name
  const [open, setOpen] = useState(false);
  const { runs, rest } = open ? codeRuns(text) : { runs: [], rest: "" };
  return (
    <details class="sent-file" onToggle={(event) => setOpen(event.currentTarget.open)}>
      <summary>
        <Icon of={FileText} size={16} />
        <bdi class="file-name" title={name}>{name}</bdi>
        {tokens !== undefined && tokens > 0 && <span class="file-fact">{tokens.toLocaleString("en")} tokens</span>}
      </summary>
      {open && (
        <pre tabIndex={0} aria-label={`Text of ${name}`}>
          {[...runs, rest].map((run, index) => <span key={index} class="run">{run}</span>)}
        </pre>
      )}
    </details>
  );
}
