// The files of the question that is being written, and the button that adds some.

import { CircleAlert, FileText, Paperclip, X } from "lucide";
import { useRef } from "preact/hooks";
import { Button } from "../shell/button";
import { Icon } from "../shell/icon";
import { attach, attachments, detach, refusal } from "./attachments";
import type { AttachedFile } from "./attachments";
import { sizeText } from "./names";
import "./files.css";

export function AttachButton() {
  const input = useRef<HTMLInputElement>(null);
  const chosen = (event: Event): void => {
    const element = event.currentTarget as HTMLInputElement;
    void attach([...(element.files ?? [])]);
    element.value = ""; // the same file may be chosen again
  };
  return (
    <>
      <Button kind="quiet" icon={Paperclip} label="Attach files" onClick={() => input.current?.click()} />
      <input ref={input} type="file" multiple hidden aria-label="Files to attach" onChange={chosen} />
    </>
  );
}

export function FileList() {
  const files = attachments.value;
  return (
    <div class="file-list-frame" aria-live="polite">
      {files.length > 0 && (
        <ul class="file-list" aria-label="Attached files">
          {files.map((file) => <FileChip key={file.id} file={file} />)}
        </ul>
      )}
      {refusal.value && <p class="file-problem">{refusal.value}</p>}
    </div>
  );
}

function FileChip({ file }: { file: AttachedFile }) {
  const failed = file.state === "failed";
  return (
    <li class={failed ? "file-chip failed" : "file-chip"}>
      <Icon of={failed ? CircleAlert : FileText} size={16} />
      {/* a name of another direction must not turn the text around it */}
      <bdi class="file-name" title={file.name}>{file.name}</bdi>
      <span class="file-fact">{fact(file)}</span>
      <Button kind="quiet" compact icon={X} label={`Remove ${file.name}`} onClick={() => detach(file.id)} />
    </li>
  );
}

function fact({ state, bytes, tokens, step, problem }: AttachedFile): string {
  if (state === "failed") return problem ?? "";
  if (state === "reading") return step ?? "reading";
  const counted = tokens > 0 ? `${tokens.toLocaleString("en")} tokens` : "";
  if (state === "counting") return counted === "" ? "counting tokens" : `${counted} and more`;
  return [sizeText(bytes), counted || step].filter(Boolean).join(", ");
}
