// System prompt and sampling of a conversation.
import { Button, Dialog } from "../shell";
import type { Conversation, Sampling } from "../store/types";
import { changeConversation, conversation } from "./session";

interface Field {
  name: keyof Sampling;
  label: string;
  min: number;
  max?: number;
  step: number;
  hint: string;
}

/** The ranges of docs/api.md. */
const FIELDS: readonly Field[] = [
  { name: "temperature", label: "Temperature", min: 0, max: 2, step: 0.1, hint: "0: always the likeliest token" },
  { name: "top_p", label: "Top p", min: 0.01, max: 1, step: 0.01, hint: "the likeliest tokens of this share" },
  { name: "top_k", label: "Top k", min: 0, step: 1, hint: "this many of the likeliest; 0: all" },
  { name: "min_p", label: "Min p", min: 0, max: 1, step: 0.01, hint: "at least this share of the likeliest" },
  { name: "presence_penalty", label: "Presence penalty", min: -2, max: 2, step: 0.1, hint: "against tokens that occurred" },
  { name: "frequency_penalty", label: "Frequency penalty", min: -2, max: 2, step: 0.1, hint: "against frequent tokens" },
  { name: "max_tokens", label: "Longest answer", min: 1, step: 1, hint: "tokens, thinking included" },
  { name: "thinking_budget", label: "Thinking budget", min: 0, step: 1, hint: "tokens; then the answer begins" },
  { name: "seed", label: "Seed", min: 0, step: 1, hint: "the same seed, the same text" },
];

/** Whether anything here is not the default. */
export function hasOwnSettings({ system, sampling }: Conversation): boolean {
  return Boolean(system.trim()) || Object.values(sampling).some((value) => value !== undefined);
}

export function ChatSettings({ open, onClose }: { open: boolean; onClose: () => void }) {
  const { system, sampling, effort } = conversation.value;
  const actions = (
    <>
      <Button onClick={() => changeConversation({ system: "", sampling: {} })}>Reset</Button>
      <Button kind="primary" onClick={onClose}>Done</Button>
    </>
  );
  return (
    <Dialog open={open} title="Chat settings" onClose={onClose} actions={actions}>
      <label class="field">
        <span>System prompt</span>
        <textarea
          class="textarea" rows={4} value={system} placeholder="How the model should behave in this conversation"
          onInput={(event) => changeConversation({ system: event.currentTarget.value })}
        />
      </label>
      <div class="sampling">
        {FIELDS.map((field) => (
          <NumberField
            key={field.name} field={field} value={sampling[field.name]}
            onChange={(value) => changeConversation({ sampling: withField(sampling, field.name, value) })}
          />
        ))}
      </div>
      <p class="small quiet">
        Empty fields have the model's own values.{" "}
        {effort !== "none" && "While the model thinks, the server uses those for temperature, top p, top k, min p and penalties."}
      </p>
    </Dialog>
  );
}

function withField(sampling: Sampling, name: keyof Sampling, value: number | undefined): Sampling {
  const { [name]: _, ...others } = sampling;
  return value === undefined ? others : { ...others, [name]: value };
}

interface NumberProperties {
  field: Field;
  value: number | undefined;
  onChange: (value: number | undefined) => void;
}

function NumberField({ field, value, onChange }: NumberProperties) {
  const take = (input: HTMLInputElement) => {
    if (input.value === "") onChange(undefined);
    else if (input.validity.valid || input.validity.stepMismatch) onChange(input.valueAsNumber);
  };
  return (
    <label class="field" title={field.hint}>
      <span>{field.label}</span>
      <input
        class="input number" type="number" min={field.min} max={field.max} step={field.step} placeholder="default"
        value={value ?? ""} onInput={(event) => take(event.currentTarget)}
      />
      <span class="hint">{field.hint}</span>
    </label>
  );
}
