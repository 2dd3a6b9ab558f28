// Curves over a common axis, as SVG. Hovering, or the arrow keys, read the values of one place.
import { useState } from "preact/hooks";
import { short } from "./format";
import { type Point, type Range, drawnRange, logTicks, nearest, rangeOf, ticks } from "./scale";
import { useWidth } from "./use-width";
import "./charts.css";

export interface Series {
  name: string;
  points: readonly Point[];
  /** A colour of the theme. */
  colour: string;
  /** Faint curve behind it, say what it was before smoothing. */
  behind?: readonly Point[];
  /** Filled down to the axis. */
  filled?: boolean;
}

interface Properties {
  /** What it shows: for screen readers. */
  label: string;
  series: readonly Series[];
  height?: number;
  /** Where the vertical axis begins; else just below the values. */
  from?: number;
  /** What the vertical axis reaches at least. */
  to?: number;
  /** Ends of the horizontal axis; else those of the points. */
  range?: Range;
  logarithmic?: boolean;
  /** Places named on the horizontal axis; else round values. */
  marks?: readonly number[];
  formatX?: (x: number) => string;
  formatY?: (y: number) => string;
}

const LEFT = 50;
const RIGHT = 10;
const TOP = 8;
const BOTTOM = 22;

interface Frame {
  width: number;
  height: number;
  x: (value: number) => number;
  y: (value: number) => number;
  /** The value at a place of the horizontal axis. */
  valueAt: (left: number) => number;
  xTicks: number[];
  yTicks: number[];
}

export function LineChart(properties: Properties) {
  const { label, series, height = 180, formatX = short, formatY = short } = properties;
  const [box, width] = useWidth(480, 160);
  const [at, setAt] = useState<number | undefined>();
  const frame = frameOf(properties, width, height);
  const shown = at === undefined ? [] : readings(series, at);
  const steps = series[0]?.points ?? [];
  const move = (event: KeyboardEvent) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by || !steps.length) return;
    event.preventDefault();
    const now = at === undefined ? steps.length - 1 : nearest(steps, at) + by;
    setAt(steps[Math.min(steps.length - 1, Math.max(0, now))]?.[0]);
  };
  const point = (event: PointerEvent) => {
    const left = event.clientX - (event.currentTarget as Element).getBoundingClientRect().left;
    setAt(frame.valueAt(left));
  };
  return (
    <div class="line-chart" ref={box}>
      <svg
        width={width} height={height} role="img" aria-label={summary(label, series, formatY)} tabindex={0}
        onPointerMove={point} onPointerLeave={() => setAt(undefined)} onKeyDown={move} onBlur={() => setAt(undefined)}
      >
        <Axes frame={frame} formatX={formatX} formatY={formatY} />
        {series.map((one) => <Curve key={one.name} series={one} frame={frame} />)}
        {shown[0] && <line class="cursor" x1={frame.x(shown[0].point[0])} x2={frame.x(shown[0].point[0])} y1={TOP} y2={height - BOTTOM} />}
        {shown.map(({ series: one, point: [x, y] }) => (
          <circle key={one.name} cx={frame.x(x)} cy={clamp(frame.y(y), frame)} r={3.5} fill={one.colour} />
        ))}
      </svg>
      {shown[0] && <Reading shown={shown} frame={frame} formatX={formatX} formatY={formatY} />}
    </div>
  );
}

function Axes({ frame, formatX, formatY }: { frame: Frame; formatX: (x: number) => string; formatY: (y: number) => string }) {
  return (
    <g class="axes" aria-hidden="true">
      {frame.yTicks.map((value) => (
        <g key={value}>
          <line x1={LEFT} x2={frame.width - RIGHT} y1={frame.y(value)} y2={frame.y(value)} />
          <text x={LEFT - 7} y={frame.y(value) + 3.5} text-anchor="end">{formatY(value)}</text>
        </g>
      ))}
      {frame.xTicks.map((value) => {
        const x = frame.x(value);
        const anchor = x < LEFT + 20 ? "start" : x > frame.width - 40 ? "end" : "middle";
        return <text key={value} x={x} y={frame.height - 5} text-anchor={anchor}>{formatX(value)}</text>;
      })}
    </g>
  );
}

function Curve({ series, frame }: { series: Series; frame: Frame }) {
  const line = path(series.points, frame);
  const [first, last] = [series.points[0], series.points.at(-1)];
  const floor = frame.height - BOTTOM;
  const area = first && last ? `${line}L${frame.x(last[0])} ${floor}L${frame.x(first[0])} ${floor}Z` : "";
  return (
    <g>
      {series.filled && <path class="area" d={area} fill={series.colour} />}
      {series.behind && <path class="behind" d={path(series.behind, frame)} stroke={series.colour} />}
      <path class="curve" d={line} stroke={series.colour} />
      {series.points.length === 1 && first && <circle cx={frame.x(first[0])} cy={frame.y(first[1])} r={3} fill={series.colour} />}
    </g>
  );
}

function Reading({ shown, frame, formatX, formatY }: {
  shown: readonly { series: Series; point: Point }[]; frame: Frame;
  formatX: (x: number) => string; formatY: (y: number) => string;
}) {
  const x = frame.x(shown[0]?.point[0] ?? 0);
  const side = x > frame.width / 2 ? { right: `${frame.width - x + 10}px` } : { left: `${x + 10}px` };
  return (
    <div class="reading" style={side} aria-live="polite">
      <strong>{formatX(shown[0]?.point[0] ?? 0)}</strong>
      {shown.map(({ series, point }) => (
        <span key={series.name}><i style={{ background: series.colour }} />{series.name} <b>{formatY(point[1])}</b></span>
      ))}
    </div>
  );
}

function readings(series: readonly Series[], x: number): { series: Series; point: Point }[] {
  return series.flatMap((one) => {
    const point = one.points[nearest(one.points, x)];
    return point ? [{ series: one, point }] : [];
  });
}

function frameOf({ series, from, to, range, logarithmic, marks }: Properties, width: number, height: number): Frame {
  const xs = range ?? rangeOf(series.flatMap(({ points }) => points.map(([x]) => x))) ?? { low: 0, high: 1 };
  const values = series.flatMap(({ points }) => points.map(([, y]) => y));
  const ys = drawnRange(to === undefined ? values : [...values, to], from);
  const place = logarithmic ? Math.log : (value: number) => value;
  const [low, span] = [place(xs.low), place(xs.high) - place(xs.low) || 1];
  return {
    width,
    height,
    x: (value) => LEFT + ((place(value) - low) / span) * (width - LEFT - RIGHT),
    y: (value) => TOP + (1 - (value - ys.low) / (ys.high - ys.low)) * (height - TOP - BOTTOM),
    valueAt: (left) => {
      const share = (left - LEFT) / (width - LEFT - RIGHT);
      return logarithmic ? xs.low * (xs.high / xs.low) ** share : xs.low + share * (xs.high - xs.low);
    },
    xTicks: marks ? spaced(marks, width) : logarithmic ? logTicks(xs) : ticks(xs, Math.max(2, Math.floor(width / 110))),
    yTicks: ticks(ys, height < 130 ? 2 : 4),
  };
}

/** As many marks as have room, the last one always. */
function spaced(marks: readonly number[], width: number): number[] {
  const every = Math.max(1, Math.ceil((marks.length * 64) / (width - LEFT - RIGHT)));
  return marks.filter((_, i) => (marks.length - 1 - i) % every === 0);
}

function clamp(y: number, frame: Frame): number {
  return Math.min(frame.height - BOTTOM, Math.max(TOP - 6, y));
}

function path(points: readonly Point[], frame: Frame): string {
  return points.map(([x, y], at) => `${at ? "L" : "M"}${frame.x(x).toFixed(1)} ${clamp(frame.y(y), frame).toFixed(1)}`).join("");
}

function summary(label: string, series: readonly Series[], formatY: (y: number) => string): string {
  const parts = series.flatMap(({ name, points }) => {
    const last = points.at(-1);
    return last ? [`${name} ${formatY(last[1])}`] : [];
  });
  return parts.length ? `${label}; last values: ${parts.join(", ")}` : `${label}: no values yet`;
}
