// The rule: a value must have every field that the hook's configuration names.

import { Invalid, plugin, pointer } from "./brink.js";

/** Checks the configuration of a hook. The result is passed to `validate`. */
export function configure(config) {
  const fields = config?.required;
  if (!Array.isArray(fields) || fields.length === 0) {
    throw new Invalid("/required", 'must be a list of field names, such as ["name"]');
  }
  for (const [index, field] of fields.entries()) {
    if (typeof field !== "string") throw new Invalid(pointer("required", index), "must be the name of a field");
  }
  return fields;
}

/** Judges one JSON value. Returns the rules that it breaks; without any, it is accepted. */
export function validate(value, fields) {
  const present = Object.keys(Object(value));
  return fields
    .filter((field) => !present.includes(field))
    .map((field) => ({ path: pointer(field), code: "required", message: `the field "${field}" is missing` }));
}

export const { configuration, validator } = plugin({ configure, validate });
