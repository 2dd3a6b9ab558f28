// Where questions are written.
import { ArrowUp, Square } from "lucide";
import { useLayoutEffect, useRef, useState } from "preact/hooks";
import { servedModel } from "../api/models";
import { Button, Segments } from "../shell";
import { readSetting, writeSetting } from "../store/settings";
import type { Effort } from "../store/types";
import { NO_TOOLS, ToolsButton } from "../tools";
import { send } from "./send";
import { busy, changeConversation, conversation, stop } from "./session";
import { editLastQuestion } from "./shortcuts";

const EFFORTS: { value: Effort; label: string; hint: string }[] = [
  { value: "none", label: "Off", hint: "Answer at once" },
  { value: "high", label: "High", hint: "Think before answering" },
  { value: "max", label: "Max", hint: "Think as long as it needs" },
];

/** The text survives a reload of the tab, for each conversation its own. */
function draftName(): string {
  return conversation.peek().head === null ? "draft" : `draft.${conversation.peek().id}`;
}

export function Composer() {
  const [text, setText] = useState(() => readSetting(draftName(), "", { session: true }));
  const box = useRef<HTMLTextAreaElement>(null);
  useLayoutEffect(() => fit(box.current), [text]);
  const change = (changed: string) => {
    setText(changed);
    writeSetting(draftName(), changed || null, { session: true });
  };
  const submit = (event: Event) => {
    event.preventDefault();
    const question = text.trim();
    if (!question || busy.value) return;
    change("");
    send(question);
  };
  const keys = (event: KeyboardEvent) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) submit(event);
    if (event.key === "ArrowUp" && !text && editLastQuestion()) event.preventDefault();
  };
  return (
    <form class="composer" onSubmit={submit}>
      <div class="composer-box">
        <textarea
          id="question" ref={box} rows={1} value={text} placeholder="Ask anything" aria-label="Question" autofocus
          onInput={(event) => change(event.currentTarget.value)} onKeyDown={keys}
        />
        <div class="composer-row">
          <EffortSwitch />
          <ToolsButton choice={conversation.value.tools ?? NO_TOOLS} onChange={(tools) => changeConversation({ tools })} />
          <span class="space" />
          {busy.value ? (
            <Button class="round" kind="primary" icon={Square} label="Stop" onClick={stop} />
          ) : (
            <Button class="round" kind="primary" type="submit" icon={ArrowUp} label="Send" disabled={!text.trim()} />
          )}
        </div>
      </div>
      <p class="composer-note small quiet">
        {servedModel.value?.id ?? "The model"} can be wrong. <kbd>Ctrl</kbd> <kbd>/</kbd> lists the keys.
      </p>
    </form>
  );
}

function EffortSwitch() {
  return (
    <div class="effort">
      <span class="small quiet" id="effort-label">Thinking</span>
      <Segments
        label="Thinking" value={conversation.value.effort} options={EFFORTS}
        onChange={(effort) => changeConversation({ effort })}
      />
    </div>
  );
}

/** As high as its text, up to what the style allows. */
function fit(box: HTMLTextAreaElement | null): void {
  if (!box) return;
  box.style.height = "auto";
  box.style.height = `${box.scrollHeight}px`;
}
