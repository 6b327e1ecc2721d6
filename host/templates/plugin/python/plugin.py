"""The rule: a value must have every field that the hook's configuration names."""

from brink import Invalid, Violation, plugin, pointer


def configure(config):
    """Checks the configuration of a hook. The result is passed to `validate`."""
    fields = config.get("required") if isinstance(config, dict) else None
    if not isinstance(fields, list) or not fields:
        raise Invalid("/required", 'must be a list of field names, such as ["name"]')
    for index, field in enumerate(fields):
        if not isinstance(field, str):
            raise Invalid(pointer("required", index), "must be the name of a field")
    return fields


def validate(value, fields, write):
    """Judges one JSON value. Returns the rules that it breaks; without any, it is accepted."""
    present = value if isinstance(value, dict) else {}
    return [
        Violation(pointer(field), "required", f'the field "{field}" is missing')
        for field in fields
        if field not in present
    ]


Configuration, Validator = plugin(configure, validate=validate)
