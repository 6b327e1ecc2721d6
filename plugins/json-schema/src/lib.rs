use brink_guest as _;
#[cfg(test)]
mod tests {
    use jsonschema::{Draft, PatternOptions};
    use serde_json::json;
    #[test]
    fn explore() {
        for schema in [
            json!({"type": "strin"}), json!({"$ref": "https://example.com/x.json"}), json!({"properties": {"a": {"$ref": "#/$defs/missing"}}}),
            json!({"properties": {"a": {"$ref": "other.json#/x"}}}), json!({"$schema": "https://example.com/mine"}), json!({"$schema": "http://json-schema.org/draft-04/schema#"}),
            json!({"properties": {"p": {"pattern": "(?=a)b"}}}), json!({"patternProperties": {"[": {}}}), json!(7), json!({"pattern": "a{1000}{1000}"}), json!({"minimum": "x"}),
            json!({"$schema": 7}), json!({"properties": {"a": {"$dynamicRef": "#nope"}}}), json!({"allOf": [{"$id": "http://a/b", "$ref": "c"}]}), json!({"$ref": "http://json-schema.org/draft-07/schema#"}),
            json!({"$ref":"#"}), json!({"format": "nonsense"}),
        ] {
            match jsonschema::options().with_pattern_options(PatternOptions::regex()).offline().build(&schema) {
                Ok(v) => println!("{schema}: ok {:?}", v.draft()),
                Err(e) => println!("{schema}: {e} | inst {} schema {} kind {:?}", e.instance_path(), e.schema_path(), e.kind()),
            }
        }
        let s = json!({"type": "object", "required": ["name", "x"], "properties": {"name": {"type": "string", "maxLength": 3}, "n": {"minimum": 3, "multipleOf": 2}, "e": {"enum": ["a", {"b": 1}]}, "o": {"oneOf": [{"type": "string"}, {"type": "number"}]}, "l": {"uniqueItems": true, "items": {"type": "integer"}}, "f": {"format": "email"}, "p": {"pattern": "^a"}, "not": {"not": {"type": "string"}}, "no": false}, "additionalProperties": false, "propertyNames": {"maxLength": 5}});
        let v = jsonschema::options().with_draft(Draft::Draft7).with_pattern_options(PatternOptions::regex()).offline().build(&s).unwrap();
        let i = json!({"name": "abcd", "n": 1, "e": "z", "o": true, "l": [1, 1, "x"], "f": "q", "p": "b", "not": "a", "no": 1, "toolong": 1, "a/b": 2});
        for e in v.iter_errors(&i) { println!("{} | {} | {} | {}", e.instance_path(), e.kind().keyword(), e.masked_with("the value"), e.schema_path()); }
    }
}
