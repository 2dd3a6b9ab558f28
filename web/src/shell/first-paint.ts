// Runs before anything is drawn, so that a chosen theme does not flash the other one.
import { chosenTheme, showTheme } from "./theme";

showTheme(chosenTheme());
