// Where questions are written.
import { ArrowUp, Square } from "lucide";
import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import { servedModel } from "../api/models";
import { AttachButton, FileList, RoomMeter, detachAll, filesReady, takeAttachments, usableFiles } from "../files";
import { Button, Segments } from "../shell";
import { ownName } from "../store/owner";
import { readSetting, writeSetting } from "../store/settings";
import type { Effort } from "../store/types";
import { NO_TOOLS, ToolsButton } from "../tools";
import { requestMessages } from "./request";
import { send } from "./send";
import { branch, busy, changeConversation, conversation, stop } from "./session";
import { editLastQuestion } from "./shortcuts";

const EFFORTS: { value: Effort; label: string; hint: string }[] = [
  { value: "none", label: "Off", hint: "Answer at once" },
  { value: "high", label: "High", hint: "Think before answering" },
  { value: "max", label: "Max", hint: "Think as long as it needs" },
];

/** The text survives a reload of the tab, for each conversation its own. */
function draftName(): string {
  return conversation.peek().head === null ? ownName("draft") : `draft.${conversation.peek().id}`;
}

export function Composer() {
  const [text, setText] = useState(() => readSetting(draftName(), "", { session: true }));
  const [full, setFull] = useState(false);
  const box = useRef<HTMLTextAreaElement>(null);
  useLayoutEffect(() => fit(box.current), [text]);
  useEffect(() => detachAll, []);
  const ready = filesReady.value && !full && Boolean(text.trim() || usableFiles.value);
  const change = (changed: string) => {
    setText(changed);
    writeSetting(draftName(), changed || null, { session: true });
  };
  const submit = (event: Event) => {
    event.preventDefault();
    if (!ready || busy.value) return;
    change("");
    send(text.trim(), takeAttachments());
  };
  const keys = (event: KeyboardEvent) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) submit(event);
    if (event.key === "ArrowUp" && !text && editLastQuestion()) event.preventDefault();
  };
  return (
    <form class="composer" onSubmit={submit}>
      <div class="composer-box">
        <FileList />
        <textarea
          id="question" ref={box} rows={1} value={text} placeholder="Ask anything" aria-label="Question" autofocus
          onInput={(event) => change(event.currentTarget.value)} onKeyDown={keys}
        />
        <div class="composer-row">
          <AttachButton />
          <EffortSwitch />
          <ToolsButton choice={conversation.value.tools ?? NO_TOOLS} onChange={(tools) => changeConversation({ tools })} />
          <span class="space" />
          <Room text={text} onFull={setFull} />
          {busy.value ? (
            <Button class="round" kind="primary" icon={Square} label="Stop" onClick={stop} />
          ) : (
            <Button class="round" kind="primary" type="submit" icon={ArrowUp} label="Send" disabled={!ready} />
          )}
        </div>
      </div>
      <p class="composer-note small quiet">
        {servedModel.value?.id ?? "The model"} can be wrong. <kbd>Ctrl</kbd> <kbd>/</kbd> lists the keys.
      </p>
    </form>
  );
}

/** Tokens of the conversation with this question and its files, beside the context of the model. */
function Room({ text, onFull }: { text: string; onFull: (full: boolean) => void }) {
  const { id, head, system } = conversation.value;
  const context = servedModel.value?.context_window;
  if (context === undefined) return null;
  const messages = () => [...requestMessages(conversation.peek(), branch.peek()), { role: "user", content: text }];
  return <RoomMeter messages={messages} version={[id, head, system, text].join("\n")} context={context} onFull={onFull} />;
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
