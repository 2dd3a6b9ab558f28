// An answer: its thinking, its text, what went wrong, what it cost, and what to do with it.
import { Copy, Ellipsis, GitBranch, Play, RefreshCw } from "lucide";
import { Component, type ComponentChildren } from "preact";
import { connection } from "../api/connection";
import { Markdown } from "../markdown";
import { Button, ErrorNotice, Menu, go } from "../shell";
import type { Message } from "../store/types";
import { CallCard, type ToolResult } from "../tools";
import { copyText } from "./copy";
import { AnswerFigures } from "./figures";
import type { Run } from "./runs";
import { answerAgain, branch, branchOff, busy, goOn } from "./session";
import { SiblingSwitch } from "./sibling-switch";
import { Thinking } from "./thinking";
import { Waiting } from "./waiting";

interface Properties {
  message: Message;
  siblings: readonly Message[];
  /** While it is written. */
  run: Run | undefined;
  isLast: boolean;
}

/** Drawn again only when something of it changes: conversations may be long. */
export class AnswerMessage extends Component<Properties> {
  override shouldComponentUpdate(next: Properties): boolean {
    const { message, siblings, run, isLast } = this.props;
    const same = next.message === message && next.run === run && next.isLast === isLast;
    return !same || next.siblings.length !== siblings.length;
  }

  override render(properties: Properties) {
    return <Answer {...properties} />;
  }
}

function Answer({ message: kept, siblings, run, isLast }: Properties) {
  const message = run ? run.message.value : kept;
  // an answer that was just begun has no run until it is kept
  const isWritten = run !== undefined || message.state === "writing";
  return (
    <article class="message answer" aria-label="Answer" aria-busy={isWritten}>
      {message.reasoning && <Thinking message={message} isWritten={isWritten && !message.content} />}
      {run && !message.content && !message.reasoning && <Waiting run={run} />}
      {message.content && <Markdown text={message.content} streaming={isWritten} />}
      {message.calls?.map((call) => (
        <CallCard key={call.id} call={call} result={resultOf(call.id)} isWritten={isWritten} />
      ))}
      {!isWritten && <Outcome message={message} isLast={isLast} />}
      {!isWritten && !message.calls?.length && (
        <div class={isLast ? "message-actions shown" : "message-actions"}>
          <SiblingSwitch message={message} siblings={siblings} />
          <Actions message={message} />
          <AnswerFigures message={message} />
        </div>
      )}
    </article>
  );
}

/** What a tool gave back on this branch. */
function resultOf(call: string): ToolResult | undefined {
  const found = branch.value.find(({ role, callId }) => role === "tool" && callId === call);
  return found && { text: found.content, failed: found.state === "failed" };
}

function Actions({ message }: { message: Message }) {
  const branchHere = async () => go("", { chat: (await branchOff(message)).id });
  return (
    <>
      <Button kind="quiet" compact icon={Copy} label="Copy" onClick={() => copyText(message.content)} />
      <Button
        kind="quiet" compact icon={RefreshCw} label="Answer again" disabled={busy.value}
        onClick={() => void answerAgain(message)}
      />
      <Menu
        compact icon={Ellipsis} label="More"
        items={[{ label: "Branch into a new chat", icon: GitBranch, onChoose: () => void branchHere() }]}
      />
    </>
  );
}

const EARLY: Partial<Record<Message["state"], string>> = {
  stopped: "You stopped this answer.",
  cut: "The answer was cut off at the limit of tokens.",
};

/** What a reader must know of how the answer ended. */
function Outcome({ message, isLast }: { message: Message; isLast: boolean }) {
  const isBlank = !message.content.trim() && !message.calls?.length;
  const isBegun = Boolean(message.content || message.reasoning) && !message.calls?.length;
  const onward = isLast && isBegun && <GoOn message={message} />;
  if (message.state === "failed") return <Failure message={message} onward={onward} />;
  const early = EARLY[message.state];
  if (early) return <p class="outcome small quiet"><span>{message.problem ?? early}</span>{onward}</p>;
  if (!isBlank) return null;
  const text = message.reasoning ? "The model thought, but wrote no answer." : "The model ended its answer without writing anything.";
  return <div class="notice"><span class="notice-text">{text}</span></div>;
}

/** Writes on from where the answer ended. */
function GoOn({ message }: { message: Message }) {
  return <Button compact icon={Play} disabled={busy.value} onClick={() => void goOn(message)}>Continue</Button>;
}

function Failure({ message, onward }: { message: Message; onward: ComponentChildren }) {
  const isAway = connection.value === "offline";
  const again = (
    <>
      {onward}
      <Button compact icon={RefreshCw} disabled={busy.value} onClick={() => void answerAgain(message)}>
        Try again
      </Button>
    </>
  );
  return (
    <ErrorNotice actions={again}>
      {message.problem}
      {isAway ? " This page keeps trying to reach it." : ""}
    </ErrorNotice>
  );
}
