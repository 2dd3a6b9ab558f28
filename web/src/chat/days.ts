// Conversations by when they were last used.
import type { Conversation } from "../store/types";

export interface Group {
  name: string;
  list: Conversation[];
}

const DAY = 24 * 3600 * 1000;

/** Groups without empty ones, in the order of the list. now: the days of the calendar are counted from it. */
export function groupByDay(list: readonly Conversation[], now: Date): Group[] {
  const today = new Date(now.getFullYear(), now.getMonth(), now.getDate()).getTime();
  const nameOf = (time: number) => {
    if (time >= today) return "Today";
    if (time >= today - DAY) return "Yesterday";
    if (time >= today - 7 * DAY) return "Last 7 days";
    if (time >= today - 30 * DAY) return "Last 30 days";
    return "Older";
  };
  const groups = new Map<string, Conversation[]>();
  for (const conversation of list) {
    const name = nameOf(conversation.updated);
    groups.set(name, [...(groups.get(name) ?? []), conversation]);
  }
  return [...groups].map(([name, grouped]) => ({ name, list: grouped }));
}
