// A bar that shows how parts share a whole, with the names of the parts below.
import { percent } from "./format";
import { Legend } from "./legend";

export interface Part {
  name: string;
  value: number;
  colour: string;
}

interface Properties {
  label: string;
  parts: readonly Part[];
  /** The whole; else the sum of the parts. */
  of?: number;
  format: (value: number) => string;
}

export function ShareBar({ label, parts, of, format }: Properties) {
  const whole = of ?? parts.reduce((sum, part) => sum + part.value, 0);
  const shares = parts.map((part) => `${part.name} ${format(part.value)}`).join(", ");
  return (
    <div class="share-bar">
      <div class="share-track" role="img" aria-label={`${label}: ${shares}`}>
        {whole > 0 && parts.map((part) => (
          <i
            key={part.name} title={`${part.name}: ${format(part.value)} (${percent(part.value / whole)})`}
            style={{ width: `${(part.value / whole) * 100}%`, background: part.colour }}
          />
        ))}
      </div>
      <Legend entries={parts.map((part) => ({ name: part.name, colour: part.colour, value: format(part.value) }))} />
    </div>
  );
}
