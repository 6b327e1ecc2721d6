//! Components that are small, and expensive to compile.

const I32: u8 = 0x7f;
const NOTHING: u8 = 0x40;
const BLOCK: u8 = 0x02;
const LOOP: u8 = 0x03;
const END: u8 = 0x0b;
const BR_IF: u8 = 0x0d;
const BR_TABLE: u8 = 0x0e;
const LOCAL_GET: u8 = 0x20;
const LOCAL_SET: u8 = 0x21;
const I32_CONST: u8 = 0x41;
const I32_ADD: u8 = 0x6a;

/// The shape of a component that is expensive to compile. Every loop has a value for every local, and so has every target of a
/// jump table.
#[derive(Debug, Clone, Copy)]
pub struct Bomb {
    /// Functions, all alike.
    pub functions: usize,
    /// Locals of a function, each of which changes.
    pub locals: usize,
    /// Loops in each other.
    pub loops: usize,
    /// Jump tables in the innermost loop. Each leads to all loops.
    pub tables: usize,
}

impl Bomb {
    /// The component.
    pub fn component(self) -> Vec<u8> {
        let body = self.body();
        let mut code = leb128(self.functions);
        for _ in 0..self.functions {
            code.extend(leb128(body.len()));
            code.extend(&body);
        }
        let mut module = b"\0asm\x01\0\0\0".to_vec();
        module.extend(section(1, &[1, 0x60, 0, 0]));
        module.extend(section(3, &[leb128(self.functions), vec![0; self.functions]].concat()));
        module.extend(section(10, &code));
        [b"\0asm\x0d\0\x01\0".to_vec(), section(1, &module)].concat()
    }

    fn body(self) -> Vec<u8> {
        let mut body = vec![1];
        body.extend(leb128(self.locals));
        body.push(I32);
        body.extend([LOOP, NOTHING].repeat(self.loops));
        for local in 0..self.locals {
            let local = leb128(local);
            body.extend([&[LOCAL_GET], &local[..], &[I32_CONST, 1, I32_ADD, LOCAL_SET], &local[..]].concat());
        }
        for _ in 0..self.tables {
            body.extend([BLOCK, NOTHING, LOCAL_GET, 0, BR_IF, 0, LOCAL_GET, 0, BR_TABLE]);
            body.extend(leb128(self.loops));
            body.extend((1..=self.loops).flat_map(leb128));
            body.extend([0, END]);
        }
        body.extend([END].repeat(self.loops));
        body.push(END);
        body
    }
}

fn section(id: u8, content: &[u8]) -> Vec<u8> {
    [&[id], &leb128(content.len())[..], content].concat()
}

/// A number in LEB128, as WebAssembly and the jobs of compilers have it.
pub fn leb128(mut number: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
    bytes
}
