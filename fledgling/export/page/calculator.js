// The calculator that the model calls: text/calculator.py with the same grammar, limits and errors, on exact fractions.

const MAX_CHARACTERS = 200; // of an expression
const MAX_LITERAL_DIGITS = 30; // of one number in an expression
const MAX_DEPTH = 16; // of nested brackets, signs and powers
const MAX_EXPONENT = 256n;
const MAX_BITS = 1024; // of the numerator or denominator of an intermediate value
const MAX_DIGITS = 40n; // before the decimal point of a result
const DECIMALS = 6; // after the decimal point of a result

const TOKEN = /[\t-\r ]*(?:([0-9][0-9,]*(?:\.[0-9]*)?|\.[0-9]+)|(\*\*|[-+*/()]))/y;
const GROUPED = /^[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]*)?$/;
const SPACE = "[\\t-\\r\\x1c-\\x20\\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000]"; // of Python
const STRIPPED = new RegExp(`^${SPACE}+|${SPACE}+$`, "g");

class CalculationError extends Error {}

const fail = (reason) => { throw new CalculationError(reason); };

// Returns the value of an expression over + - * / ** ( ) as text, or "error: reason".
export function calculate(expression) {
  try {
    return formatNumber(new Parser(splitSymbols(expression)).parse());
  } catch (error) {
    if (error instanceof CalculationError) return `error: ${error.message}`;
    throw error;
  }
}

function splitSymbols(expression) {
  if ([...expression].length > MAX_CHARACTERS) fail("too long");
  const text = expression.replace(STRIPPED, "");
  const symbols = [];
  for (TOKEN.lastIndex = 0; TOKEN.lastIndex < text.length;) {
    const match = TOKEN.exec(text) ?? fail("invalid syntax");
    symbols.push(match[1] ?? match[2]);
  }
  return symbols;
}

const abs = (x) => (x < 0n ? -x : x);
const bitLength = (x) => (x ? abs(x).toString(2).length : 0);

function makeFraction(top, bottom = 1n) {
  let [a, b] = [abs(top), abs(bottom)];
  while (b) [a, b] = [b, a % b];
  const sign = bottom < 0n ? -1n : 1n;
  return { top: sign * top / a, bottom: sign * bottom / a };
}

const largestBits = ({ top, bottom }) => Math.max(bitLength(top), bitLength(bottom));
const checkSize = (value) => (largestBits(value) > MAX_BITS ? fail("number too large") : value);
const add = (x, y) => checkSize(makeFraction(x.top * y.bottom + y.top * x.bottom, x.bottom * y.bottom));
const multiply = (x, y) => checkSize(makeFraction(x.top * y.top, x.bottom * y.bottom));
const negate = (x) => ({ top: -x.top, bottom: x.bottom });

function parseNumber(literal) {
  if (literal.includes(",") && !GROUPED.test(literal)) fail("misplaced comma");
  const plain = literal.replaceAll(",", "");
  if (plain.length > MAX_LITERAL_DIGITS) fail("number too large");
  const [whole, decimals = ""] = plain.split(".");
  return makeFraction(BigInt(whole + decimals), 10n ** BigInt(decimals.length));
}

function formatNumber({ top, bottom }) {
  if (abs(top) >= bottom * 10n ** MAX_DIGITS) fail("number too large");
  const wide = abs(top) * 10n ** BigInt(DECIMALS);
  let scaled = wide / bottom;
  const twice = 2n * (wide % bottom);
  if (twice > bottom || (twice === bottom && scaled % 2n)) scaled++; // nearest, ties to even
  const digits = scaled.toString().padStart(DECIMALS + 1, "0");
  const decimals = digits.slice(-DECIMALS).replace(/0+$/, "");
  return `${top < 0n && scaled ? "-" : ""}${digits.slice(0, -DECIMALS)}${decimals && "."}${decimals}`;
}

// Recursive descent: sum of products of signed powers; `depth` bounds the recursion.
class Parser {
  position = 0;
  depth = 0;

  constructor(symbols) {
    this.symbols = symbols;
  }

  parse() {
    const value = this.sum();
    return this.position === this.symbols.length ? value : fail("invalid syntax");
  }

  peek() {
    return this.symbols[this.position] ?? "";
  }

  next() {
    return this.symbols[this.position++] ?? "";
  }

  sum() {
    let value = this.product();
    while (["+", "-"].includes(this.peek())) value = this.next() === "+" ? add(value, this.product()) : add(value, negate(this.product()));
    return value;
  }

  product() {
    let value = this.signed();
    while (["*", "/"].includes(this.peek())) {
      const divides = this.next() === "/";
      const other = this.signed();
      if (divides && !other.top) fail("division by zero");
      value = multiply(value, divides ? makeFraction(other.bottom, other.top) : other);
    }
    return value;
  }

  signed() {
    if (++this.depth > MAX_DEPTH) fail("nested too deeply");
    const isSigned = ["+", "-"].includes(this.peek());
    const value = !isSigned ? this.power() : this.next() === "+" ? this.signed() : negate(this.signed());
    this.depth--;
    return value;
  }

  power() {
    const base = this.atom();
    if (this.peek() !== "**") return base;
    this.position++;
    const exponent = this.signed();
    if (exponent.bottom !== 1n) fail("exponent is not an integer");
    const power = abs(exponent.top);
    if (power > MAX_EXPONENT || Number(power) * largestBits(base) > 2 * MAX_BITS) fail("exponent too large");
    if (!base.top && exponent.top < 0n) fail("division by zero");
    const [top, bottom] = [base.top ** power, base.bottom ** power];
    return checkSize(exponent.top < 0n ? makeFraction(bottom, top) : makeFraction(top, bottom));
  }

  atom() {
    const symbol = this.next();
    if (symbol === "(") {
      const value = this.sum();
      return this.next() === ")" ? value : fail("unbalanced brackets");
    }
    return symbol && !"+-**/)".includes(symbol) ? parseNumber(symbol) : fail("invalid syntax");
  }
}
