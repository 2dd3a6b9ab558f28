// The messages, from the first to the last. While the reader is at the end, the page follows what is written.
import { ArrowDown } from "lucide";
import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import { Button } from "../shell";
import { AnswerMessage } from "./answer-message";
import { QuestionMessage } from "./question-message";
import { branch, messages, running } from "./session";
import { siblingsOf } from "./tree";

/** Nearer to the end than this counts as being there, in pixels. */
const NEAR = 90;

export function Talk() {
  const { scroller, content, isAtEnd, toEnd } = useFollowing();
  const shown = branch.value;
  const run = running.value;
  const last = shown.at(-1);
  // a new question is always shown
  useLayoutEffect(toEnd, [shown.length, last?.id]);
  return (
    <div class="talk" ref={scroller} tabIndex={0} role="region" aria-label="Conversation">
      <div class="talk-inner" ref={content}>
        {shown.map((message) => {
          const siblings = siblingsOf(messages.value, message);
          // a tool's result stands in the card of its call
          if (message.role === "tool") return null;
          if (message.role === "user") return <QuestionMessage key={message.id} message={message} siblings={siblings} />;
          const own = run?.message.peek().id === message.id ? run : undefined;
          return (
            <AnswerMessage key={message.id} message={message} siblings={siblings} run={own} isLast={message === last} />
          );
        })}
      </div>
      {!isAtEnd && (
        <div class="to-end">
          <Button icon={ArrowDown} label="To the end" onClick={toEnd} />
        </div>
      )}
    </div>
  );
}

function useFollowing() {
  const scroller = useRef<HTMLDivElement>(null);
  const content = useRef<HTMLDivElement>(null);
  const following = useRef(true);
  const [isAtEnd, setAtEnd] = useState(true);
  const toEnd = () => {
    following.current = true;
    const element = scroller.current;
    if (element) element.scrollTop = element.scrollHeight;
  };
  useEffect(() => {
    const element = scroller.current;
    const inside = content.current;
    if (!element || !inside) return;
    let before = element.scrollTop;
    const scrolled = () => {
      const near = element.scrollHeight - element.scrollTop - element.clientHeight < NEAR;
      // only the reader scrolls up; a text that grows moves the end away
      if (near) following.current = true;
      else if (element.scrollTop < before) following.current = false;
      before = element.scrollTop;
      setAtEnd(near || following.current);
    };
    const grown = new ResizeObserver(() => {
      if (following.current) element.scrollTop = element.scrollHeight;
      scrolled();
    });
    element.addEventListener("scroll", scrolled, { passive: true });
    grown.observe(inside);
    grown.observe(element);
    return () => {
      element.removeEventListener("scroll", scrolled);
      grown.disconnect();
    };
  }, []);
  return { scroller, content, isAtEnd, toEnd };
}
