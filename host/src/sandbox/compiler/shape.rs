//! Whether the shape of a component is one that a compiler can deal with.
//!
//! A compiler gives each block a parameter for each local that changes around it, and each branch an argument for each of these.
//! So a few kilobytes of nested blocks, jump tables and locals become millions of values. They are counted here as if every
//! local changed everywhere, which takes one pass over the code. This only refuses early, and says why: the limits of the
//! compiler's process are what holds.

use wasmparser::{
    BlockType, FuncToValidate, FuncValidatorAllocations, FunctionBody, Operator, Parser, ValidPayload, Validator,
    ValidatorResources, WasmFeatures, WasmModuleResources as _,
};

use crate::limits;

/// Why a component was not compiled.
#[derive(Debug)]
pub(in crate::sandbox) enum Refusal {
    /// It cannot be compiled or pre-initialized; says why.
    Invalid(String),
    /// It is too complex; says how.
    Shape(String),
    /// The machine does not let the compiler work; says why.
    Unable(String),
}

/// What the code of a component amounts to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Shape {
    functions: u64,
    /// The longest body of a function.
    body_bytes: u64,
    /// Targets of all jump tables.
    jump_targets: u64,
    /// The most values that the branches of one function carry.
    branch_values: u64,
}

/// Validates a component, and checks its shape.
pub(super) fn check(component: &[u8]) -> Result<(), Refusal> {
    let shape = Shape::of(component)?;
    let checks = [
        ("functions", shape.functions, limits::PLUGIN_FUNCTIONS_MAX),
        ("bytes in a function", shape.body_bytes, limits::PLUGIN_FUNCTION_BYTES_MAX),
        ("targets in jump tables", shape.jump_targets, limits::PLUGIN_JUMP_TARGETS_MAX),
        ("values on the branches of a function", shape.branch_values, limits::PLUGIN_BRANCH_VALUES_MAX),
    ];
    match checks.iter().find(|(_, found, limit)| found > limit) {
        Some((what, found, limit)) => {
            Err(Refusal::Shape(format!("it has {found} {what}; at most {limit} are allowed")))
        }
        None => Ok(()),
    }
}

impl Shape {
    fn of(component: &[u8]) -> Result<Self, Refusal> {
        let mut shape = Self::default();
        let mut allocations = FuncValidatorAllocations::default();
        // The compiler knows which proposals it supports.
        let mut validator = Validator::new_with_features(WasmFeatures::all());
        for payload in Parser::new(0).parse_all(component) {
            let payload = payload.map_err(invalid)?;
            if let ValidPayload::Func(function, body) = validator.payload(&payload).map_err(invalid)? {
                allocations = shape.count(function, &body, allocations)?;
                // What follows only costs time.
                if shape.branch_values > limits::PLUGIN_BRANCH_VALUES_MAX {
                    break;
                }
            }
        }
        Ok(shape)
    }

    fn count(
        &mut self,
        function: FuncToValidate<ValidatorResources>,
        body: &FunctionBody<'_>,
        allocations: FuncValidatorAllocations,
    ) -> Result<FuncValidatorAllocations, Refusal> {
        self.functions += 1;
        self.body_bytes = self.body_bytes.max(body.range().len() as u64);
        let mut validator = function.into_validator(allocations);
        validator.read_locals(&mut body.get_binary_reader()).map_err(invalid)?;
        let mut reader = body.get_operators_reader().map_err(invalid)?;
        let locals = u64::from(validator.len_locals());
        let mut values = 0_u64;
        let mut branch = |branches: u64, carried: u64| {
            values = values.saturating_add(branches.saturating_mul(locals.saturating_add(carried)));
        };
        while !reader.eof() {
            let (operator, position) = reader.read_with_offset().map_err(invalid)?;
            let label = |depth: u32| {
                let frame = validator.get_control_frame(depth as usize);
                frame.map_or(0, |frame| arity(validator.resources(), frame.block_type))
            };
            match &operator {
                Operator::Br { relative_depth } | Operator::BrIf { relative_depth } => {
                    branch(1, label(*relative_depth))
                }
                Operator::BrTable { targets } => {
                    let count = u64::from(targets.len()) + 1;
                    self.jump_targets = self.jump_targets.saturating_add(count);
                    branch(count, label(targets.default()));
                }
                Operator::Block { blockty } | Operator::Loop { blockty } => {
                    branch(1, arity(validator.resources(), *blockty));
                }
                Operator::If { blockty } => branch(2, arity(validator.resources(), *blockty)),
                _ => {}
            }
            validator.op(position, &operator).map_err(invalid)?;
        }
        reader.finish().map_err(invalid)?;
        self.branch_values = self.branch_values.max(values);
        Ok(validator.into_allocations())
    }
}

/// The values that enter and leave a block.
fn arity(resources: &ValidatorResources, block: BlockType) -> u64 {
    match block {
        BlockType::Empty => 0,
        BlockType::Type(_) => 1,
        BlockType::FuncType(index) => {
            let ty = resources.sub_type_at(index).map(|ty| &ty.composite_type.inner);
            match ty {
                Some(wasmparser::CompositeInnerType::Func(ty)) => (ty.params().len() + ty.results().len()) as u64,
                _ => 0,
            }
        }
    }
}

fn invalid(error: wasmparser::BinaryReaderError) -> Refusal {
    Refusal::Invalid(format!("failed to parse it: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(module: &str) -> Shape {
        Shape::of(&component(module)).unwrap()
    }

    fn component(module: &str) -> Vec<u8> {
        wat::parse_str(format!("(component (core module {module}))")).unwrap()
    }

    /// A function with so many locals, and a jump table with so many targets.
    fn jumps(locals: usize, targets: usize) -> String {
        let targets = "0 ".repeat(targets);
        format!("(func (local {}) (block (br_table {targets} (i32.const 0))))", "i32 ".repeat(locals))
    }

    #[test]
    fn branches_count_with_all_that_they_may_carry() {
        let one = shape("(func (param i32) (block (br_if 0 (i32.const 1))))");
        assert_eq!((one.functions, one.jump_targets, one.branch_values), (1, 0, 2));
        // A block and a table of three targets, each with five locals.
        let table = shape(&jumps(5, 3));
        assert_eq!((table.jump_targets, table.branch_values), (3, 4 * 5));
        let results = shape("(func (drop (drop (block (result i32 i32) (br 0 (i32.const 1) (i32.const 2))))))");
        assert_eq!(results.branch_values, 2 + 2);
        let two = shape(&format!("{} {}", jumps(5, 3), jumps(1, 2)));
        assert_eq!((two.functions, two.jump_targets, two.branch_values), (2, 5, 20));
    }

    #[test]
    fn a_small_component_that_becomes_large_is_refused() {
        let bomb = component(&jumps(20_000, 3_000));
        match check(&bomb) {
            Err(Refusal::Shape(detail)) => assert!(detail.contains("branches"), "{detail}"),
            other => panic!("{other:?}"),
        }
        assert!(check(&component(&jumps(2_000, 3_000))).is_ok());
    }

    #[test]
    fn a_component_that_is_not_valid_is_refused_with_the_reason() {
        let bytes = component("(func (result i32) (i32.const 1))");
        let position = bytes.windows(2).position(|pair| pair == [0x41, 1]).unwrap();
        let mut mistyped = bytes.clone();
        mistyped[position] = 0x42;
        for invalid in [&bytes[..bytes.len() - 1], &mistyped] {
            assert!(matches!(check(invalid), Err(Refusal::Invalid(_))));
        }
    }
}
