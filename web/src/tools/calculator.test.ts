import assert from "node:assert/strict";
import { test } from "node:test";
import { calculate, numberText } from "./calculator";

const RIGHT: [string, number][] = [
  ["1 + 2 * 3", 7],
  ["(1 + 2) * 3", 9],
  ["-2^2", -4],
  ["2^-1", 0.5],
  ["2**3**2", 512],
  ["10 - 4 - 3", 3],
  ["100 / 10 / 5", 2],
  ["-7 % 3", 2],
  ["5! / 3!", 20],
  ["3!!", 720],
  ["sqrt(2) ^ 2 + max(1, 7, 3)", 9],
  ["1_000_000 × 2 ÷ 4", 500_000],
  ["0xff + 0b11", 258],
  ["1.5e3 + .5", 1500.5],
  ["2 - -3 + +4", 9],
  ["COS(pi)", -1],
  ["gcd(12, 18) + lcm(4, 6)", 18],
  ["ln(e)", 1],
  ["log(1000)", 3],
];

for (const [text, value] of RIGHT) {
  test(`${text} is ${value}`, () => assert.ok(Math.abs(calculate(text) - value) < 1e-9));
}

const WRONG: [string, RegExp][] = [
  ["", /ends too early/],
  ["1 +", /ends too early/],
  ["(1", /not closed/],
  ["1 2", /"2" at position 3 is not expected/],
  ["1 / 0", /division by zero/],
  ["5 % (3 - 3)", /division by zero/],
  ["sqrt(-1)", /not a real number/],
  ["sqrt", /needs its values/],
  ["sqrt(1, 2)", /takes 1 value/],
  ["gcd(4)", /takes 2 values/],
  ["gcd(1.5, 2)", /whole numbers/],
  ["(-1)!", /whole number/],
  ["x + 1", /"x" at position 1 is not known/],
  ["constructor", /"constructor" at position 1 is not known/],
  ["alert(1)", /"alert" at position 1 is not known/],
  ["1; 2", /";" at position 2 is not understood/],
  ["(".repeat(500), /nested/],
  ["1".repeat(3000), /may have 2000 characters/],
];

for (const [text, problem] of WRONG) {
  test(`${text.slice(0, 20)} is refused`, () => assert.throws(() => calculate(text), problem));
}

test("numbers are written without binary noise", () => {
  assert.equal(numberText(0.1 + 0.2), "0.3");
  assert.equal(numberText(2 ** 40), "1099511627776");
  assert.equal(numberText(calculate("1000!")), "infinity");
});

test("no chain of signs or of factorials takes long or overflows the stack", () => {
  assert.equal(calculate(`${"-".repeat(1000)}1`), 1);
  assert.equal(calculate(`1${"!".repeat(1000)}`), 1);
  assert.equal(calculate(Array(600).fill("1").join("^")), 1);
});
