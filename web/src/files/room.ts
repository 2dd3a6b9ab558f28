// What still fits into the model's context.

export interface Room {
  /** Tokens of the conversation so far, of the files, and of the question. */
  used: number;
  /** Tokens of the context. */
  context: number;
}

export interface RoomText {
  share: number;
  text: string;
  /** More than the context holds: the server would refuse the question. */
  full: boolean;
}

/** Room for an answer that is not cut off at once. */
const SHORT_ANSWER = 256;

const count = (tokens: number): string => tokens.toLocaleString("en");

/** How full the context is, in words. */
export function roomText({ used, context }: Room): RoomText {
  const left = context - used;
  const share = Math.min(1, used / Math.max(1, context));
  if (left <= 0) {
    const over = `${count(used)} tokens, but the context holds ${count(context)}`;
    return { share: 1, full: true, text: `${over}: ${count(1 - left)} too many` };
  }
  const note = left < SHORT_ANSWER ? ", little for an answer" : "";
  return { share, full: false, text: `${count(used)} of ${count(context)} tokens, ${count(left)} left${note}` };
}
