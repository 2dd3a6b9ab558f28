// The colours of the theme that tell series apart.
export const SERIES_COLOURS: readonly string[] = [
  "var(--series-1)", "var(--series-2)", "var(--series-3)", "var(--series-4)", "var(--series-5)",
];

/** The colour of a series by its place. */
export function colourAt(place: number): string {
  return SERIES_COLOURS[place % SERIES_COLOURS.length] ?? "";
}
