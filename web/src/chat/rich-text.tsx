// The text of an answer.

export function RichText({ text }: { text: string; streaming: boolean }) {
  return <div class="plain-text">{text}</div>;
}
