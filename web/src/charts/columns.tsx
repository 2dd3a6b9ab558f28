// Columns of stacked parts, one for each day.
import { useState } from "preact/hooks";
import { ticks } from "./scale";
import { useWidth } from "./use-width";

export interface Column {
  /** Below the column. */
  name: string;
  /** In the order of `colours`. */
  values: readonly number[];
}

interface Properties {
  label: string;
  columns: readonly Column[];
  names: readonly string[];
  colours: readonly string[];
  format: (value: number) => string;
  height?: number;
}

const LEFT = 56;
const BOTTOM = 22;
const TOP = 8;

export function Columns({ label, columns, names, colours, format, height = 220 }: Properties) {
  const [box, width] = useWidth(640, 200);
  const [at, setAt] = useState<number | undefined>();
  const sums = columns.map(({ values }) => values.reduce((sum, value) => sum + value, 0));
  const most = Math.max(...sums, 0) || 1;
  const wide = (width - LEFT) / Math.max(1, columns.length);
  const y = (value: number) => TOP + (1 - value / (most * 1.04)) * (height - TOP - BOTTOM);
  const every = Math.ceil(56 / wide);
  const chosen = at === undefined ? undefined : columns[at];
  return (
    <div class="line-chart" ref={box}>
      <svg width={width} height={height} role="img" aria-label={label} onPointerLeave={() => setAt(undefined)}>
        <g class="axes" aria-hidden="true">
          {ticks({ low: 0, high: most }, 4).map((value) => (
            <g key={value}>
              <line x1={LEFT} x2={width} y1={y(value)} y2={y(value)} />
              <text x={LEFT - 7} y={y(value) + 3.5} text-anchor="end">{format(value)}</text>
            </g>
          ))}
          {columns.map(({ name }, i) => i % every === 0 && (
            <text key={name} x={LEFT + (i + 0.5) * wide} y={height - 5} text-anchor="middle">{name}</text>
          ))}
        </g>
        {columns.map((column, i) => (
          <g key={column.name} class={at === undefined || at === i ? "" : "dimmed"} onPointerEnter={() => setAt(i)}>
            <rect x={LEFT + i * wide} y={TOP} width={wide} height={height - TOP - BOTTOM} fill="transparent" />
            <Stack column={column} colours={colours} x={LEFT + i * wide} wide={wide} y={y} />
          </g>
        ))}
      </svg>
      {chosen && at !== undefined && (
        <div class="reading" style={at > columns.length / 2 ? { left: `${LEFT + 8}px` } : { right: "8px" }}>
          <strong>{chosen.name}</strong>
          {names.map((name, i) => (chosen.values[i] ?? 0) > 0 && (
            <span key={name}><i style={{ background: colours[i % colours.length] }} />{name} <b>{format(chosen.values[i] ?? 0)}</b></span>
          ))}
        </div>
      )}
    </div>
  );
}

function Stack({ column, colours, x, wide, y }: {
  column: Column; colours: readonly string[]; x: number; wide: number; y: (value: number) => number;
}) {
  let below = 0;
  const thick = Math.max(1, Math.min(44, wide - Math.min(10, wide * 0.22)));
  return (
    <>
      {column.values.map((value, i) => {
        const [top, bottom] = [y(below + value), y(below)];
        below += value;
        return value > 0 && (
          <rect
            key={colours[i]} x={x + (wide - thick) / 2} width={thick} y={top} rx={1.5}
            height={Math.max(0.5, bottom - top)} fill={colours[i % colours.length]}
          />
        );
      })}
    </>
  );
}
