// Icons of the lucide set, drawn in the colour of the text. Decorative: the text or label beside them says what they
// mean.
import type { IconNode } from "lucide";
import { h } from "preact";

export function Icon({ of, size = 18 }: { of: IconNode; size?: number }) {
  const shape = { width: size, height: size, viewBox: "0 0 24 24", fill: "none", stroke: "currentColor" };
  const stroke = { "stroke-width": 1.9, "stroke-linecap": "round", "stroke-linejoin": "round" };
  const parts = of.map(([tag, attributes]) => h(tag, { ...attributes, key: undefined }));
  return h("svg", { class: "icon", "aria-hidden": "true", ...shape, ...stroke }, parts);
}
