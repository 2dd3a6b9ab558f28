// How full the context would be if the question were sent now.

import { useEffect, useState } from "preact/hooks";
import { countPrompt } from "../api/tokens";
import { fileTokens } from "./attachments";
import { roomText } from "./room";
import "./files.css";

/** Typing pauses so long before the tokens are counted again. */
const PAUSE_MS = 600;

/** Without files a short conversation leaves the question alone. */
const SHOWN_FROM = 0.5;

interface Properties {
  /** The conversation with the question as it stands, without the files; asked when they are counted. */
  messages: () => readonly object[];
  /** What makes the count old: for instance the text of the question. */
  version: string;
  /** Tokens of the context. */
  context: number;
  /** Told whether there is more than the context holds. */
  onFull?: (full: boolean) => void;
}

export function RoomMeter({ messages, version, context, onFull }: Properties) {
  const used = usePromptTokens(messages, version);
  const room = used === null ? null : roomText({ used: used + fileTokens.value, context });
  const full = room?.full ?? false;
  useEffect(() => onFull?.(full), [full]);
  if (room === null || (room.share < SHOWN_FROM && fileTokens.value === 0)) return null;
  return (
    <div class={full ? "room full" : "room"} role={full ? "alert" : undefined}>
      <meter class="unseen" aria-label="Context" min={0} max={1} value={room.share} />
      <svg class="room-bar" aria-hidden="true"><rect width={`${(100 * room.share).toFixed(1)}%`} height="100%" /></svg>
      <span>{room.text}</span>
    </div>
  );
}

/** The tokens of a conversation, counted again after a pause; null while not known. */
function usePromptTokens(messages: () => readonly object[], version: string): number | null {
  const [used, setUsed] = useState<number | null>(null);
  useEffect(() => {
    const abort = new AbortController();
    const timer = setTimeout(() => {
      countPrompt(messages(), { signal: abort.signal }).then(setUsed, () => setUsed(null));
    }, PAUSE_MS);
    return () => {
      clearTimeout(timer);
      abort.abort();
    };
  }, [version]);
  return used;
}
