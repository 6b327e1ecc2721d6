"""The adapter between the rule in `plugin.py` and the node. It should not need changes.

Any exception but `Invalid` and `Rejection` counts as a bug in the plugin. The write is then refused with status 500, and
the traceback goes to the client and to the node's log.
"""

import json
from dataclasses import dataclass, field

try:
    from componentize_py_types import Err
except ModuleNotFoundError:  # in tests, which run without a node

    class Err(Exception):
        """Raised by a plugin to answer with an error."""

        def __init__(self, value):
            super().__init__(value)
            self.value = value


# Maximum number of violations in a rejection; the node keeps no more.
VIOLATIONS_MAX = 100


class Invalid(Exception):
    """Raised by `configure` to refuse a configuration."""

    def __init__(self, path, message):
        """`path` is a JSON pointer into the configuration, empty for the whole; `message` is a sentence for people."""
        super().__init__(path, message)
        self.path = path
        self.message = message


class Rejection(Exception):
    """Raised to refuse a request. Most rules return violations instead, which refuses it too."""

    def __init__(self, code, message, violations=()):
        """`code` is a short stable word for programs, `message` a sentence for people."""
        super().__init__(code, message)
        self.code = code
        self.message = message
        self.violations = list(violations)


@dataclass
class Violation:
    """A rule that a value breaks."""

    # The place in the value, as a JSON pointer; empty for the whole.
    path: str
    # A short stable word for programs.
    code: str
    # A sentence for people.
    message: str
    # The position of the write in the request, filled in by `plugin`.
    item: int = field(default=0, kw_only=True)


@dataclass
class Replacement:
    """The new value of one write."""

    item: int
    value: bytes


def plugin(configure, *, validate=None, transform=None):
    """Makes the classes that the node calls from a rule: `Configuration` and `Validator`, or `Transformer`, or both.

    `configure(config)` checks the configuration (`None` if the hook has none) and returns the settings for the others.
    `validate(value, settings, write)` returns a list of violations of one value.
    `transform(value, settings, write)` returns the new value.

    `write` has the `key` and the `content_type`. Deletions pass, and what is not JSON is refused.
    """
    settings = None

    class Configuration:
        def configure(self, config):
            nonlocal settings
            try:
                settings = configure(json.loads(config))
            except Invalid as invalid:
                raise Err(invalid) from None

    class Validator:
        def validate(self, writes):
            try:
                violations = []
                for item, write, value in _values(writes):
                    for violation in validate(value, settings, write):
                        violation.item = item
                        violations.append(violation)
                if violations:
                    first = violations[0]
                    raise Rejection(first.code, first.message, violations[:VIOLATIONS_MAX])
            except Rejection as rejection:
                raise Err(rejection) from None

    class Transformer:
        def transform(self, writes):
            try:
                return [
                    Replacement(item, _encode(transform(value, settings, write)))
                    for item, write, value in _values(writes)
                ]
            except Rejection as rejection:
                raise Err(rejection) from None

    roles = [(validate, Validator), (transform, Transformer)]
    return Configuration, *(role for function, role in roles if function is not None)


def pointer(*steps):
    """The JSON pointer (RFC 6901) to a place: `pointer("users", 0)` is `/users/0`."""
    return "".join("/" + str(step).replace("~", "~0").replace("/", "~1") for step in steps)


def _values(writes):
    """The values of the writes that store one, each with its position in the request."""
    for item, write in enumerate(writes):
        if write.value is None:
            continue
        try:
            value = json.loads(write.value)
        except ValueError:
            violation = Violation("", "not-json", "the value is not JSON", item=item)
            raise Rejection(violation.code, violation.message, [violation]) from None
        yield item, write, value


def _encode(value):
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
