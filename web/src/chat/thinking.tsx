// The reasoning of an answer, folded: how long it took and how much it was.
import { Brain, ChevronRight } from "lucide";
import { useEffect, useState } from "preact/hooks";
import { Icon } from "../shell";
import { readSetting, writeSetting } from "../store/settings";
import type { Message } from "../store/types";
import { seconds } from "./figures";

export function Thinking({ message, isWritten }: { message: Message; isWritten: boolean }) {
  const [isOpen, setOpen] = useState(() => readSetting("thinking-open", false));
  const { thinkingMs, thinkingTokens } = message.figures ?? {};
  const counted = thinkingTokens ? ` · ${thinkingTokens.toLocaleString("en")} tokens` : "";
  const time = thinkingMs === undefined ? "" : ` for ${seconds(thinkingMs)}`;
  return (
    <details
      class={isWritten ? "thinking live" : "thinking"} open={isOpen}
      onToggle={(event) => {
        const open = event.currentTarget.open;
        if (open === isOpen) return;
        setOpen(open);
        writeSetting("thinking-open", open);
      }}
    >
      <summary>
        <Icon of={Brain} size={16} />
        <span class="number">{isWritten ? <>Thinking<Elapsed from={thinkingMs} />{counted}</> : `Thought${time}${counted}`}</span>
        <Icon of={ChevronRight} size={15} />
      </summary>
      {isOpen && <div class="thinking-text">{message.reasoning}</div>}
    </details>
  );
}

/** Counts on between two tokens, so that a slow model does not look dead. */
function Elapsed({ from }: { from: number | undefined }) {
  const [start] = useState(() => performance.now() - (from ?? 0));
  const [now, setNow] = useState(() => performance.now());
  useEffect(() => {
    const timer = setInterval(() => setNow(performance.now()), 250);
    return () => clearInterval(timer);
  }, []);
  return now - start < 1000 ? null : <>{` for ${seconds(now - start)}`}</>;
}
