// Where files can be dropped or pasted.

import { Upload } from "lucide";
import type { ComponentChildren } from "preact";
import { useRef, useState } from "preact/hooks";
import { Icon } from "../shell/icon";
import { attach, attachPaste } from "./attachments";
import "./files.css";

/** Takes files that are dropped on its children, and files and long texts that are pasted into them. */
export function FileDrop({ children }: { children: ComponentChildren }) {
  // a drag enters and leaves every element on its way
  const depth = useRef(0);
  const [over, setOver] = useState(false);
  const move = (event: DragEvent, step: number): void => {
    if (!hasFiles(event.dataTransfer)) return;
    event.preventDefault();
    depth.current = Math.max(0, depth.current + step);
    setOver(depth.current > 0);
  };
  const drop = (event: DragEvent): void => {
    if (!hasFiles(event.dataTransfer)) return;
    event.preventDefault();
    depth.current = 0;
    setOver(false);
    void attach(filesOf(event.dataTransfer));
  };
  return (
    <div
      class="file-drop" onDragEnter={(event) => move(event, 1)} onDragLeave={(event) => move(event, -1)}
      onDragOver={(event) => move(event, 0)} onDrop={drop} onPaste={paste}
    >
      {children}
      {over && (
        <div class="file-drop-sign" aria-hidden="true">
          <Icon of={Upload} size={28} />
          <span>Drop text, Markdown, code or PDF files</span>
        </div>
      )}
    </div>
  );
}

function paste(event: ClipboardEvent): void {
  const files = filesOf(event.clipboardData);
  const text = event.clipboardData?.getData("text/plain") ?? "";
  // what is copied from a document often has a picture beside its text: the text is meant
  if (text !== "" ? attachPaste(text) : files.length > 0) event.preventDefault();
  if (text === "" && files.length > 0) void attach(files);
}

function hasFiles(data: DataTransfer | null): boolean {
  return data?.types.includes("Files") ?? false;
}

function filesOf(data: DataTransfer | null): File[] {
  return [...(data?.files ?? [])];
}
