// Names of colours.
import type { ComponentChildren } from "preact";

export interface LegendEntry {
  name: string;
  colour: string;
  value?: ComponentChildren;
}

export function Legend({ entries }: { entries: readonly LegendEntry[] }) {
  return (
    <ul class="legend">
      {entries.map(({ name, colour, value }) => (
        <li key={name}>
          <i style={{ background: colour }} />
          {name}
          {value !== undefined && <b class="number">{value}</b>}
        </li>
      ))}
    </ul>
  );
}
