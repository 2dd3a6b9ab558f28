// What an answer cost: tokens, speed, time, money.
import type { Figures, Message } from "../store/types";

/** Milliseconds as a short text: "40 ms", "0.4 s", "12 s", "2 min 5 s". */
export function seconds(milliseconds: number): string {
  if (milliseconds < 100) return `${Math.max(1, Math.round(milliseconds))} ms`;
  const value = milliseconds / 1000;
  if (value < 9.95) return `${value.toFixed(1)} s`;
  const whole = Math.round(value);
  return whole < 60 ? `${whole} s` : `${Math.floor(whole / 60)} min ${whole % 60} s`;
}

/** The parts that are known, the most asked for first. */
export function figureTexts(figures: Figures): string[] {
  const count = (value: number) => value.toLocaleString("en");
  const { answerTokens, tokensPerSecond, firstTokenMs, promptTokens, cachedTokens, costUsd } = figures;
  const texts: string[] = [];
  if (answerTokens !== undefined) texts.push(`${count(answerTokens)} tokens`);
  if (tokensPerSecond) texts.push(`${tokensPerSecond.toFixed(tokensPerSecond < 10 ? 1 : 0)} tokens/s`);
  if (firstTokenMs !== undefined) texts.push(`first after ${seconds(firstTokenMs)}`);
  if (promptTokens !== undefined) texts.push(`prompt ${count(promptTokens)}, ${count(cachedTokens ?? 0)} cached`);
  if (costUsd) texts.push(`$${costUsd.toPrecision(2)}`);
  return texts;
}

export function AnswerFigures({ message }: { message: Message }) {
  const texts = figureTexts(message.figures ?? {});
  return texts.length ? <span class="figures number small quiet">{texts.join(" · ")}</span> : null;
}
