import assert from "node:assert/strict";
import { test } from "node:test";

import { configuration, configure, validate, validator } from "../src/plugin.js";

const FIELDS = ["name", "email"];

test("a complete value passes", () => {
  assert.deepEqual(validate({ name: "Ann", email: "ann@example.org" }, FIELDS), []);
});

test("a missing field is named", () => {
  const [violation, ...others] = validate({ name: "Ben" }, FIELDS);
  assert.equal(violation.path, "/email");
  assert.equal(violation.code, "required");
  assert.deepEqual(others, []);
});

test("a value that is no object has no field", () => {
  for (const value of [null, 1, "name", ["name"]]) {
    assert.equal(validate(value, FIELDS).length, 2);
  }
});

test("a wrong configuration is refused with its place", () => {
  const wrong = [
    [null, "/required"],
    [{}, "/required"],
    [{ required: [] }, "/required"],
    [{ required: ["name", 1] }, "/required/1"],
  ];
  for (const [config, path] of wrong) {
    assert.throws(() => configure(config), { path });
  }
});

test("a request is judged as the node asks", () => {
  const write = (text) => ({ key: "k", contentType: "application/json", value: new TextEncoder().encode(text) });
  const deletion = { key: "k", contentType: "", value: null };
  configuration.configure('{"required": ["größe"]}');
  validator.validate([write('{"größe": 1}'), deletion]);
  assert.throws(() => validator.validate([write('{"größe": 1}'), write("{}")]), {
    code: "required",
    violations: [{ item: 1, path: "/größe", code: "required", message: 'the field "größe" is missing' }],
  });
  assert.throws(() => validator.validate([write("{")]), { code: "not-json" });
});
