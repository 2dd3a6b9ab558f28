// A table of shades on a canvas: thousands of cells cost nothing. Hovering names the cell.
import { useEffect, useRef, useState } from "preact/hooks";

interface Properties {
  label: string;
  rows: readonly { name: string; values: readonly number[] }[];
  /** 0: the background; 1: full colour; above: warm. */
  strength: (value: number) => number;
  describe: (row: number, column: number) => string;
}

const GAP = 1;

/** Counts in equal shares: 1 is what each place would get. */
export function equalShares(counts: readonly number[]): number[] {
  const total = counts.reduce((sum, count) => sum + count, 0);
  return counts.map((count) => (total ? (count * counts.length) / total : 0));
}

/** The shade of a load in equal shares: 1 is what each expert would get, three and more are warm. */
export function shareStrength(shares: number): number {
  return shares <= 1 ? shares * 0.75 : 0.75 + Math.min(2, (shares - 1) * 1.1);
}

export function HeatMap({ label, rows, strength, describe }: Properties) {
  const canvas = useRef<HTMLCanvasElement>(null);
  const [said, say] = useState("");
  const columns = Math.max(1, ...rows.map(({ values }) => values.length));
  const cell = rows.length > 24 ? 9 : rows.length > 10 ? 14 : 22;
  useEffect(() => {
    const element = canvas.current;
    if (!element) return;
    const paint = () => draw(element, rows, columns, cell, strength);
    const watch = new ResizeObserver(paint);
    watch.observe(element);
    const scheme = matchMedia("(prefers-color-scheme: dark)");
    scheme.addEventListener("change", paint);
    return () => {
      watch.disconnect();
      scheme.removeEventListener("change", paint);
    };
  }, [rows, columns, cell, strength]);
  const point = (event: PointerEvent) => {
    const place = (event.currentTarget as Element).getBoundingClientRect();
    const row = Math.floor((event.clientY - place.top) / cell);
    const column = Math.floor(((event.clientX - place.left) / place.width) * columns);
    say(rows[row]?.values[column] === undefined ? "" : describe(row, column));
  };
  return (
    <div class="heat-map">
      <div class="heat-body">
        <div class="heat-names" aria-hidden="true">
          {rows.map(({ name }, i) => (
            <span key={name} style={{ height: `${cell}px` }}>{cell > 10 || i % 4 === 0 ? name : ""}</span>
          ))}
        </div>
        <canvas
          ref={canvas} role="img" aria-label={label} style={{ height: `${rows.length * cell}px` }}
          onPointerMove={point} onPointerLeave={() => say("")}
        />
      </div>
      <p class="quiet small heat-said">{said || " "}</p>
    </div>
  );
}

function draw(
  element: HTMLCanvasElement, rows: Properties["rows"], columns: number, cell: number,
  strength: (value: number) => number,
): void {
  const scale = window.devicePixelRatio || 1;
  const width = element.clientWidth;
  element.width = width * scale;
  element.height = rows.length * cell * scale;
  const context = element.getContext("2d");
  if (!context) return;
  context.scale(scale, scale);
  const style = getComputedStyle(element);
  const [empty, cool, warm] = ["--heat-empty", "--heat-full", "--heat-over"].map((name) => colour(style, name));
  const wide = width / columns;
  const gap = wide > 4 ? GAP : 0;
  rows.forEach(({ values }, y) => {
    values.forEach((value, x) => {
      const amount = strength(value);
      const fill = (tone: string, alpha: number) => {
        context.globalAlpha = alpha;
        context.fillStyle = tone;
        context.fillRect(x * wide, y * cell, wide - gap, cell - GAP);
      };
      fill(empty ?? "", 1);
      if (amount > 0) fill(cool ?? "", Math.min(1, amount));
      if (amount > 1) fill(warm ?? "", Math.min(1, (amount - 1) / 2));
    });
  });
}

/** A colour of the theme as a canvas takes it: resolved by the browser for light or dark. */
function colour(style: CSSStyleDeclaration, name: string): string {
  const probe = document.createElement("span");
  probe.style.color = style.getPropertyValue(name);
  document.body.append(probe);
  const resolved = getComputedStyle(probe).color;
  probe.remove();
  return resolved;
}
