// The models that the server serves.
import { computed, signal } from "@preact/signals";
import { getJson } from "./http";

export interface Model {
  id: string;
  context_window: number;
  max_output_tokens: number;
  effort: { supported_levels: string[]; default_level: string };
  alias_of: string | null;
  deprecated: boolean;
  /** From the model's card. */
  example_prompts?: string[];
}

/** Empty until the server has answered. */
export const models = signal<readonly Model[]>([]);

/** The served model itself; the others are other names of it. */
export const servedModel = computed(() => models.value.find((model) => model.alias_of === null));

/** Reads the list again. Throws ApiError. */
export async function loadModels(): Promise<void> {
  models.value = (await getJson<{ data: Model[] }>("v1/models", { retries: 0 })).data;
}
