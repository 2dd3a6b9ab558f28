// Counts of tokens, by the tokenizer of the served model.
import { postJson, type RequestOptions } from "./http";

interface Counted {
  count: number;
  max_model_len: number;
}

/** How many tokens a text has. Throws ApiError. */
export async function countTokens(text: string, options: RequestOptions = {}): Promise<number> {
  return (await postJson<Counted>("v1/tokenize", { prompt: text, tokens: false }, options)).count;
}

/** How many tokens the prompt of a conversation has. messages: as a chat completion takes them. Throws ApiError. */
export async function countPrompt(messages: readonly object[], options: RequestOptions = {}): Promise<number> {
  return (await postJson<Counted>("v1/tokenize", { messages, tokens: false }, options)).count;
}
