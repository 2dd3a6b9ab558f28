// Colours of code, loaded when the first block of code appears. highlight.js finds the parts; they reach the page as a
// tree, never as HTML.

import bash from "highlight.js/lib/languages/bash";
import c from "highlight.js/lib/languages/c";
import cpp from "highlight.js/lib/languages/cpp";
import csharp from "highlight.js/lib/languages/csharp";
import css from "highlight.js/lib/languages/css";
import diff from "highlight.js/lib/languages/diff";
import go from "highlight.js/lib/languages/go";
import ini from "highlight.js/lib/languages/ini";
import java from "highlight.js/lib/languages/java";
import javascript from "highlight.js/lib/languages/javascript";
import json from "highlight.js/lib/languages/json";
import kotlin from "highlight.js/lib/languages/kotlin";
import latex from "highlight.js/lib/languages/latex";
import lua from "highlight.js/lib/languages/lua";
import makefile from "highlight.js/lib/languages/makefile";
import markdown from "highlight.js/lib/languages/markdown";
import php from "highlight.js/lib/languages/php";
import python from "highlight.js/lib/languages/python";
import r from "highlight.js/lib/languages/r";
import ruby from "highlight.js/lib/languages/ruby";
import rust from "highlight.js/lib/languages/rust";
import shell from "highlight.js/lib/languages/shell";
import sql from "highlight.js/lib/languages/sql";
import swift from "highlight.js/lib/languages/swift";
import typescript from "highlight.js/lib/languages/typescript";
import xml from "highlight.js/lib/languages/xml";
import yaml from "highlight.js/lib/languages/yaml";
import { createLowlight } from "lowlight";

/** Text, and named parts of it. */
export type Tree = (string | { names: string[]; children: Tree })[];

type Found = ReturnType<ReturnType<typeof createLowlight>["highlight"]>["children"][number];

const colours = createLowlight({
  bash, c, cpp, csharp, css, diff, go, ini, java, javascript, json, kotlin, latex, lua, makefile, markdown, php, python,
  r, ruby, rust, shell, sql, swift, typescript, xml, yaml,
});

/** The parts of a text in a language; null for a language that is not known. */
export function highlight(text: string, language: string): Tree | null {
  const name = language.toLowerCase();
  return colours.registered(name) ? colours.highlight(name, text).children.flatMap(treeOf) : null;
}

function treeOf(node: Found): Tree {
  if (node.type === "text") return [node.value];
  if (node.type !== "element") return [];
  const names = node.properties["className"];
  return [{ names: Array.isArray(names) ? names.map(String) : [], children: node.children.flatMap(treeOf) }];
}
