// Starts the pages.
import { render } from "preact";
import "./shell/theme.css";
import "./shell/components.css";
import "./shell/layout.css";
import { App } from "./shell/app";
import { watchHistory } from "./shell/router";

watchHistory();
render(<App />, document.getElementById("app") as HTMLElement);
