// Between a question or answer and the others in its place.
import { ChevronLeft, ChevronRight } from "lucide";
import { Button } from "../shell";
import type { Message } from "../store/types";
import { busy, showBranch } from "./session";

export function SiblingSwitch({ message, siblings }: { message: Message; siblings: readonly Message[] }) {
  if (siblings.length < 2) return null;
  const at = siblings.findIndex(({ id }) => id === message.id);
  const step = (by: number, label: string, icon: typeof ChevronLeft) => {
    const other = siblings[at + by];
    const disabled = !other || busy.value;
    return <Button kind="quiet" compact icon={icon} label={label} disabled={disabled} onClick={() => other && showBranch(other)} />;
  };
  return (
    <span class="siblings">
      {step(-1, "Previous version", ChevronLeft)}
      <span class="number small quiet">{at + 1} / {siblings.length}</span>
      {step(1, "Next version", ChevronRight)}
    </span>
  );
}
