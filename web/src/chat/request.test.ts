import assert from "node:assert/strict";
import { test } from "node:test";
import type { Conversation, Message } from "../store/types";
import { beginning, requestMessages, requestOptions, withFiles } from "./request";

const CONVERSATION: Conversation = {
  id: "c", title: "", created: 0, updated: 0, head: null, system: "  Be short. ", effort: "none",
  sampling: { temperature: 0.2, seed: undefined as never },
};

function message(role: Message["role"], content: string, more: Partial<Message> = {}): Message {
  return { id: content, conversation: "c", parent: null, role, content, created: 0, state: "done", ...more };
}

test("the system prompt comes first, failed answers without a word are left out", () => {
  const branch = [message("user", "Hi"), message("assistant", "", { state: "failed" }), message("user", "Well?")];
  assert.deepEqual(requestMessages(CONVERSATION, branch), [
    { role: "system", content: "Be short." }, { role: "user", content: "Hi" }, { role: "user", content: "Well?" },
  ]);
  assert.equal(requestMessages({ ...CONVERSATION, system: " " }, branch).length, 2);
});

test("reasoning is sent only beside calls, results name their call", () => {
  const call = { id: "x", name: "add", arguments: "{}" };
  const branch = [
    message("assistant", "2", { reasoning: "so" }),
    message("assistant", "", { reasoning: "why", calls: [call] }),
    message("tool", "3", { callId: "x" }),
  ];
  assert.deepEqual(requestMessages({ ...CONVERSATION, system: "" }, branch), [
    { role: "assistant", content: "2" },
    {
      role: "assistant", content: "", reasoning_content: "why",
      tool_calls: [{ id: "x", type: "function", function: { name: "add", arguments: "{}" } }],
    },
    { role: "tool", content: "3", tool_call_id: "x" },
  ]);
});

test("files stand before the question", () => {
  assert.equal(withFiles("Sum?", [{ name: "a.txt", text: "1" }]), "[file: a.txt]\n1\n[end of file: a.txt]\n\nSum?");
  assert.equal(withFiles("Sum?"), "Sum?");
});

test("what is left empty is not sent", () => {
  assert.deepEqual(requestOptions(CONVERSATION), { reasoning_effort: "none", temperature: 0.2 });
});

test("a call that was never answered gets a result, so that the model does not wait", () => {
  const call = (id: string) => ({ id, name: "add", arguments: "{" });
  const branch = [
    message("assistant", "", { calls: [call("x"), call("y")] }),
    message("tool", "3", { callId: "x" }),
    message("user", "Well?"),
  ];
  const sent = requestMessages({ ...CONVERSATION, system: "" }, branch);
  assert.deepEqual(sent.map(({ tool_call_id: id }) => id ?? ""), ["", "y", "x", ""]);
  assert.match(sent[1]?.content ?? "", /not run/);
});

test("an answer that is continued is the last message, with its thinking", () => {
  assert.deepEqual(beginning(message("assistant", "")), []);
  const begun = message("assistant", "The sum", { reasoning: "Hm" });
  assert.deepEqual(beginning(begun), [{ role: "assistant", content: "The sum", reasoning_content: "Hm", prefix: true }]);
  const thought = message("assistant", "", { reasoning: "Hm" });
  assert.deepEqual(beginning(thought), [{ role: "assistant", content: "", reasoning_content: "Hm", prefix: true }]);
});
