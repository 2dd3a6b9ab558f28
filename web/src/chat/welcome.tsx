// What an empty conversation shows.
import { connection } from "../api/connection";
import { servedModel } from "../api/models";
import { send } from "./send";

export function Welcome() {
  const model = servedModel.value;
  const prompts = model?.example_prompts ?? [];
  return (
    <div class="talk welcome">
      <div class="welcome-inner">
        <h2>What would you like to know?</h2>
        <p class="quiet">
          {model
            ? `${model.id} answers on your own server, with ${model.context_window.toLocaleString("en")} tokens of context. Nothing leaves it.`
            : connection.value === "offline" ? "The server does not answer." : "Connecting to the server…"}
        </p>
        {prompts.length > 0 && (
          <ul class="suggestions" aria-label="Suggestions">
            {prompts.map((prompt) => (
              <li key={prompt}>
                <button type="button" onClick={() => send(prompt)}>{prompt}</button>
              </li>
            ))}
          </ul>
        )}
      </div>
    </div>
  );
}
