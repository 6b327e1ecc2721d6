"""The rule: a value must have every field that the hook's configuration names."""

from brink import Invalid, Violation, plugin, pointer


def configure(config):
    """Checks the configuration of a hook. What it returns is handed to `validate`."""
    fields = config.get("required") if isinstance(config, dict) else None
    if not isinstance(fields, list) or not fields:
        raise Invalid("/required", 'must be a list of field names, such as ["name"]')
    for index, field in enumerate(fields):
        if not isinstance(field, str):
            raise Invalid(pointer("required", index), "must be the name of a field")
    return fields


def validate(value, fields, write):
    """Judges one JSON value. Returns what is wrong with it: nothing, and it is accepted."""
    present = value if isinstance(value, dict) else {}
    return [
        Violation(pointer(field), "required", f'the field "{field}" is missing')
        for field in fields
        if field not in present
    ]


Configuration, Validator = plugin(configure, validate=validate)
