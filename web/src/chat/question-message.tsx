// A question: its text, its files, and the ways to change it.
import { Copy, Pencil } from "lucide";
import { Component } from "preact";
import { useState } from "preact/hooks";
import { SentFile } from "../files";
import { Button } from "../shell";
import type { Message } from "../store/types";
import { copyText } from "./copy";
import { ask, busy } from "./session";
import { SiblingSwitch } from "./sibling-switch";
import { editing } from "./shortcuts";

interface Properties {
  message: Message;
  siblings: readonly Message[];
}

/** Drawn again only when it or the number of its siblings changes: conversations may be long. */
export class QuestionMessage extends Component<Properties> {
  override shouldComponentUpdate(next: Properties): boolean {
    return next.message !== this.props.message || next.siblings.length !== this.props.siblings.length;
  }

  override render({ message, siblings }: Properties) {
    return <Question message={message} siblings={siblings} />;
  }
}

function Question({ message, siblings }: Properties) {
  const isEdited = editing.value === message.id;
  const close = () => {
    editing.value = null;
  };
  return (
    <article class="message question" aria-label="You">
      {message.attachments?.map((file) => (
        <SentFile key={file.name} name={file.name} text={file.text} tokens={file.tokens} />
      ))}
      {isEdited && <Editor message={message} onClose={close} />}
      {!isEdited && message.content && <div class="bubble">{message.content}</div>}
      {!isEdited && (
        <div class="message-actions">
          <SiblingSwitch message={message} siblings={siblings} />
          <Button kind="quiet" compact icon={Copy} label="Copy" onClick={() => copyText(message.content)} />
          <Button
            kind="quiet" compact icon={Pencil} label="Edit" disabled={busy.value}
            onClick={() => { editing.value = message.id; }}
          />
        </div>
      )}
    </article>
  );
}

function Editor({ message, onClose }: { message: Message; onClose: () => void }) {
  const [text, setText] = useState(message.content);
  const submit = (event: Event) => {
    event.preventDefault();
    if (!text.trim()) return;
    onClose();
    void ask(text.trim(), message.attachments, message.parent);
  };
  const keys = (event: KeyboardEvent) => {
    if (event.key === "Escape") onClose();
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) submit(event);
  };
  return (
    <form class="editor" onSubmit={submit}>
      <textarea
        class="textarea" aria-label="Edit the question" value={text} autofocus ref={focusAtEnd}
        onInput={(event) => setText(event.currentTarget.value)} onKeyDown={keys}
      />
      <div class="editor-actions">
        <span class="small quiet">The old question stays as a branch.</span>
        <Button onClick={onClose}>Cancel</Button>
        <Button type="submit" kind="primary" disabled={!text.trim()}>Send</Button>
      </div>
    </form>
  );
}

function focusAtEnd(element: HTMLTextAreaElement | null): void {
  if (!element || document.activeElement === element) return;
  element.focus();
  element.setSelectionRange(element.value.length, element.value.length);
}
