//! The component that is deployed: `json-schema`, with functions added until it is as large as it must be.
//!
//! Nothing calls the functions. They are what a compiler of a language makes of plain code: arithmetic on locals, branches and
//! calls. A node compiles them like all others.

use serde_json::{Value, json};

/// Instructions of WebAssembly, by their names.
const LOCAL_GET: u8 = 0x20;
const LOCAL_SET: u8 = 0x21;
const I32_CONST: u8 = 0x41;
const BR_IF: u8 = 0x0d;
const BLOCK: u8 = 0x02;
const NO_RESULT: u8 = 0x40;
const CALL: u8 = 0x10;
const END: u8 = 0x0b;
const I32: u8 = 0x7f;

/// Operators on two 32-bit numbers: `add`, `sub`, `mul`, `and`, `or`, `xor`, `shl`, `shr_u`, `lt_u`.
const OPERATORS: [u8; 9] = [0x6a, 0x6b, 0x6c, 0x71, 0x72, 0x73, 0x74, 0x76, 0x49];

/// Locals of a function, its parameter included.
const LOCALS: u32 = 12;

/// Blocks of a function, and statements of a block.
const BLOCKS: usize = 10;
const STATEMENTS: usize = 6;

/// The component, with a module that makes it have about this size.
pub(super) fn enlarged(mut component: Vec<u8>, bytes: usize) -> Vec<u8> {
    let mut bodies = Vec::new();
    let mut random = Random(1);
    let mut size = component.len();
    while size < bytes {
        let body = body(&mut random, bodies.len() as u32);
        size += body.len();
        bodies.push(body);
    }
    let mut module = b"\0asm\x01\0\0\0".to_vec();
    // One type: from a number to a number.
    section(&mut module, 1, &[1, 0x60, 1, I32, 1, I32]);
    let mut types = number(bodies.len() as u32);
    types.extend(bodies.iter().map(|_| 0));
    section(&mut module, 3, &types);
    let mut code = number(bodies.len() as u32);
    for body in &bodies {
        code.extend(number(body.len() as u32));
        code.extend(body);
    }
    section(&mut module, 10, &code);
    // In a component, a module is a section.
    section(&mut component, 1, &module);
    component
}

/// A configuration for which `json-schema` compiles many patterns.
pub(super) fn schema_config() -> Value {
    let property = |number: usize| {
        (
            format!("field-{number}"),
            json!({"type": "string", "pattern": format!("^[a-z]{{{number}}}[0-9]+(-[A-Z]+)*$")}),
        )
    };
    let properties: serde_json::Map<_, _> = (1..=40).map(property).collect();
    json!({"schema": {"type": "object", "required": ["name"], "properties": properties}})
}

fn body(random: &mut Random, functions_before: u32) -> Vec<u8> {
    let mut body = vec![1];
    body.extend(number(LOCALS - 1));
    body.push(I32);
    for _ in 0..BLOCKS {
        body.extend([BLOCK, NO_RESULT]);
        for _ in 0..STATEMENTS {
            body.push(LOCAL_GET);
            body.extend(number(random.below(LOCALS)));
            body.push(I32_CONST);
            // Below 64, so that its encoding has one byte whatever its sign.
            body.extend(number(random.below(64)));
            body.extend(OPERATORS.get(random.below(OPERATORS.len() as u32) as usize));
            if functions_before > 0 && random.below(4) == 0 {
                body.push(CALL);
                body.extend(number(random.below(functions_before)));
            }
            body.push(LOCAL_SET);
            body.extend(number(random.below(LOCALS)));
        }
        body.push(LOCAL_GET);
        body.extend(number(random.below(LOCALS)));
        body.extend([BR_IF, 0, LOCAL_GET]);
        body.extend(number(random.below(LOCALS)));
        body.push(LOCAL_SET);
        body.extend(number(random.below(LOCALS)));
        body.push(END);
    }
    body.push(LOCAL_GET);
    body.extend(number(random.below(LOCALS)));
    body.push(END);
    body
}

/// Appends a section: its id, its length, its content.
fn section(bytes: &mut Vec<u8>, id: u8, content: &[u8]) {
    bytes.push(id);
    bytes.extend(number(content.len() as u32));
    bytes.extend(content);
}

/// A number as WebAssembly has it: LEB128.
fn number(mut number: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
    bytes
}

/// The same numbers in each run.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u32) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) % u64::from(bound)) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_component_is_enlarged_to_its_size_and_always_alike() {
        let component = enlarged(vec![0; 1_000], 50_000);
        assert!((50_000..52_000).contains(&component.len()), "{}", component.len());
        assert!(component == enlarged(vec![0; 1_000], 50_000));
        assert_eq!((component[1_000], &component[1_004..1_008]), (1, &b"\0asm"[..]));
    }
}
