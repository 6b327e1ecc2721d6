// The adapter between the rule in `plugin.js` and the node. It should not need changes.
//
// The classes do not extend `Error` on purpose: an `Error` that leaves the plugin counts as a bug in it. The write is then
// refused with status 500, and the error's message and stack go to the client and to the node's log.

/** Thrown by `configure` to refuse a configuration. */
export class Invalid {
  /** `path` is a JSON pointer into the configuration, empty for the whole; `message` is a sentence for people. */
  constructor(path, message) {
    this.path = path;
    this.message = message;
  }
}

/** Thrown to refuse a request. Most rules return violations instead, which refuses it too. */
export class Rejection {
  /** `code` is a short stable word for programs, `message` a sentence for people. */
  constructor(code, message, violations = []) {
    this.code = code;
    this.message = message;
    this.violations = violations;
  }
}

/** Maximum number of violations in a rejection; the node keeps no more. */
const VIOLATIONS_MAX = 100;

/** Number of bytes decoded at once: each becomes an argument of a call. */
const CHUNK_BYTES = 4096;

/**
 * Makes the functions that the node calls from a rule:
 *
 * - `configure(config)` checks the configuration (`null` if the hook has none) and returns the settings for the others.
 * - `validate(value, settings, write)` returns the violations of one value, each `{ path, code, message }`.
 * - `transform(value, settings, write)` returns the new value, or `undefined` to leave it as it is.
 *
 * `write` has the `key` and the `contentType`. Deletions pass, and what is not JSON is refused.
 */
export function plugin({ configure, validate, transform }) {
  let settings;
  return {
    configuration: {
      configure(text) {
        settings = configure(JSON.parse(text));
      },
    },
    validator: {
      validate(writes) {
        const violations = [];
        for (const [item, write] of stored(writes)) {
          const found = validate(parse(write, item), settings, write);
          // A promise would be fulfilled too late.
          if (!Array.isArray(found)) throw new TypeError("`validate` must return a list of violations");
          violations.push(...found.map((violation) => ({ item, ...violation })));
        }
        if (violations.length === 0) return;
        const [{ code, message }] = violations;
        throw new Rejection(code, message, violations.slice(0, VIOLATIONS_MAX));
      },
    },
    transformer: {
      transform(writes) {
        const replacements = [];
        for (const [item, write] of stored(writes)) {
          const value = transform(parse(write, item), settings, write);
          if (value instanceof Promise) throw new TypeError("`transform` must return a value, not a promise");
          if (value !== undefined) replacements.push({ item, value: encode(JSON.stringify(value)) });
        }
        return replacements;
      },
    },
  };
}

/** The JSON pointer (RFC 6901) to a place: `pointer("users", 0)` is `/users/0`. */
export function pointer(...steps) {
  return steps.map((step) => `/${String(step).replaceAll("~", "~0").replaceAll("/", "~1")}`).join("");
}

/** The writes that store a value, each with its position in the request. */
function stored(writes) {
  return [...writes.entries()].filter(([, write]) => write.value !== null && write.value !== undefined);
}

function parse(write, item) {
  try {
    return JSON.parse(decode(write.value));
  } catch (error) {
    // Other errors, such as a lack of memory, are not the client's fault.
    if (!(error instanceof SyntaxError || error instanceof URIError)) throw error;
    const message = "the value is not JSON";
    throw new Rejection("not-json", message, [{ item, path: "", code: "not-json", message }]);
  }
}

// The engine that runs plugins has no `TextDecoder` and no `TextEncoder`. Instead, `escape` and `unescape` convert bytes of
// UTF-8 to `%XX` and back.

function decode(bytes) {
  let text = "";
  for (let at = 0; at < bytes.length; at += CHUNK_BYTES) {
    text += String.fromCharCode.apply(null, bytes.subarray(at, at + CHUNK_BYTES));
  }
  return /[^\x00-\x7f]/.test(text) ? decodeURIComponent(escape(text)) : text;
}

function encode(text) {
  return Uint8Array.from(unescape(encodeURIComponent(text)), (byte) => byte.charCodeAt(0));
}
