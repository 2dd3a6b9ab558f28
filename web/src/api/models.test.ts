import assert from "node:assert/strict";
import { test } from "node:test";
import { models, servedModel } from "./models";

test("the served model is the one that is no other name", () => {
  const effort = { supported_levels: [], default_level: "" };
  const model = { context_window: 1, max_output_tokens: 1, effort, deprecated: false };
  models.value = [{ ...model, id: "alias", alias_of: "nano" }, { ...model, id: "nano", alias_of: null }];
  assert.equal(servedModel.value?.id, "nano");
});
