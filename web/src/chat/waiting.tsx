// Before the first token: that something happens, and how far the prompt is.
import type { Run } from "./runs";
import { seconds } from "./figures";

export function Waiting({ run }: { run: Run }) {
  const progress = run.progress.value;
  if (!progress) return <p class="waiting"><span class="spinner" aria-hidden="true" />Waiting for the model</p>;
  const share = (count: number) => `${((100 * count) / Math.max(1, progress.total)).toFixed(1)}%`;
  const left = progress.eta_ms === null ? "" : `, about ${seconds(progress.eta_ms)} left`;
  const text = `Reading the prompt: ${progress.processed.toLocaleString("en")} of ${progress.total.toLocaleString("en")} tokens${left}`;
  return (
    <div class="waiting prefill">
      <span>{text}</span>
      <progress class="unseen" aria-label="Prompt" max={progress.total} value={progress.processed} />
      <svg class="prefill-bar" aria-hidden="true">
        <rect class="done" width={share(progress.processed)} height="100%" />
        <rect class="cached" width={share(progress.cache)} height="100%" />
      </svg>
    </div>
  );
}
