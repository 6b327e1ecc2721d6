import unittest
from types import SimpleNamespace

import brink
from plugin import Configuration, Validator, configure, validate

FIELDS = ["name", "email"]


class TheRule(unittest.TestCase):
    def test_a_complete_value_passes(self):
        self.assertEqual(validate({"name": "Ann", "email": "ann@example.org"}, FIELDS, None), [])

    def test_a_missing_field_is_named(self):
        [violation] = validate({"name": "Ben"}, FIELDS, None)
        self.assertEqual((violation.path, violation.code), ("/email", "required"))

    def test_a_value_that_is_no_object_has_no_field(self):
        for value in (None, 1, "name", ["name"]):
            self.assertEqual(len(validate(value, FIELDS, None)), 2)

    def test_a_wrong_configuration_is_refused_with_its_place(self):
        wrong = [
            (None, "/required"),
            ({}, "/required"),
            ({"required": []}, "/required"),
            ({"required": ["name", 1]}, "/required/1"),
        ]
        for config, path in wrong:
            with self.assertRaises(brink.Invalid) as refused:
                configure(config)
            self.assertEqual(refused.exception.path, path)


class ARequest(unittest.TestCase):
    def setUp(self):
        Configuration().configure('{"required": ["größe"]}')

    def test_is_accepted_if_all_its_values_are(self):
        Validator().validate([write('{"größe": 1}'), write(None)])

    def test_is_refused_with_the_position_of_the_value(self):
        rejection = self.rejection([write('{"größe": 1}'), write("{}")])
        [violation] = rejection.violations
        self.assertEqual((rejection.code, violation.item, violation.path), ("required", 1, "/größe"))

    def test_is_refused_if_a_value_is_not_json(self):
        self.assertEqual(self.rejection([write("{")]).code, "not-json")

    def rejection(self, writes):
        with self.assertRaises(brink.Err) as refused:
            Validator().validate(writes)
        return refused.exception.value


def write(text):
    value = None if text is None else text.encode()
    return SimpleNamespace(key="k", content_type="application/json", value=value)


if __name__ == "__main__":
    unittest.main()
