// What an empty conversation shows around the field for the question.
import { connection } from "../api/connection";
import { servedModel } from "../api/models";
import { send } from "./send";

/** Above the field. */
export function Welcome() {
  const model = servedModel.value;
  return (
    <div class="talk welcome">
      <h2>What would you like to know?</h2>
      <p class="quiet">
        {model
          ? `${model.id} answers on your own server, with ${model.context_window.toLocaleString("en")} tokens of context. Nothing leaves it.`
          : connection.value === "offline" ? "The server does not answer." : "Connecting to the server…"}
      </p>
    </div>
  );
}

/** Below the field; on a phone above it, because the field stays at the foot there. */
export function Suggestions() {
  return (
    <ul class="suggestions" aria-label="Suggestions">
      {servedModel.value?.example_prompts?.map((prompt) => (
        <li key={prompt}>
          <button type="button" onClick={() => send(prompt)}>{prompt}</button>
        </li>
      ))}
    </ul>
  );
}
