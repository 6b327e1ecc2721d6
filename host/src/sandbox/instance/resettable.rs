//! Makes a component resettable: adds what restores the globals of an instance and finds its memory.
//!
//! # Approach
//!
//! A component hides the state of its instances, and the host cannot restore what is not exported. So one more core module, the
//! restorer, is instantiated after all others. Their modules export their globals and their memory under reserved names, and
//! the restorer imports them. When it starts, it saves the globals. The component exports two of its functions:
//! [`RESTORE_GLOBALS`], and [`MEMORY`], which returns the whole memory as a list, so that the host learns where it is. The host
//! restores the memory (see `reset`).
//!
//! # Guarantees
//!
//! An instance whose globals and memory are restored is as it was when it started, because nothing else can have changed. The
//! component is refused here, or by `wasmtime-wizer` which pre-initialized it, if it could
//!
//! | | refused by |
//! |---|---|
//! | change a table, drop a segment of elements or data, change an object of the collector | wizer |
//! | hold references in mutable globals | wizer, and here |
//! | instantiate a module twice, or a module of a nested component | wizer, and here |
//! | have more than one memory, a 64-bit memory, or a shared memory | here |
//! | run code when it is instantiated, which could differ from start to start | here |
//! | create handles of its own resources, tasks or streams: of the canonical built-ins it may have `lift`, `lower`, and `resource.drop` | here |
//!
//! Two things are left to the caller: a memory that has grown cannot shrink, and handles of WASI that the guest did not drop
//! stay in its table of handles. Such instances must be dropped.

use std::fmt::Display;
use std::ops::Range;

use wasm_encoder as encode;
use wasm_encoder::{CanonicalOption, ComponentExportKind, ExportKind, MemArg, ModuleArg, PrimitiveValType};
use wasmparser::CanonicalFunction::{Lift, Lower, ResourceDrop};
use wasmparser::{Encoding, Instance, Parser, Payload, TypeRef, ValType, ValidPayload, Validator, WasmFeatures};

/// The function that restores the globals. Its name is part of the compiled code that nodes keep on disk.
pub(super) const RESTORE_GLOBALS: &str = "brink-put-back";

/// The function that returns the whole memory.
pub(super) const MEMORY: &str = "brink-memory";

/// The restorer's function that is called after [`MEMORY`]. The component does not export it.
const AFTER_MEMORY: &str = "after";

/// The prefix of reserved names. A component that exports such a name itself gets no restorer.
const RESERVED_PREFIX: &str = "brink-";

/// Adds a restorer to a component. An error says why it can have none.
pub(super) fn resettable(component: &[u8]) -> Result<Vec<u8>, String> {
    let mut parts = Parts::default();
    let mut validator = Validator::new_with_features(WasmFeatures::all());
    let mut depth = 0_usize;
    for payload in Parser::new(0).parse_all(component) {
        let payload = payload.map_err(text)?;
        let validated = validator.payload(&payload).map_err(text)?;
        match (&payload, validated) {
            (Payload::Version { encoding: Encoding::Component, .. }, _) if depth == 0 => continue,
            (Payload::ComponentCanonicalSection(functions), _) => check_built_ins(functions.clone())?,
            (Payload::ComponentExportSection(exports), _) if depth == 0 => {
                for export in exports.clone() {
                    check_name(export.map_err(text)?.name.name)?;
                }
            }
            (Payload::ModuleSection { .. }, _) if depth > 0 => {
                return Err("it has a module in a nested component".to_owned());
            }
            (Payload::End(_), ValidPayload::End(types)) => {
                let Some(outer) = depth.checked_sub(1) else { return parts.finish(types.as_ref()) };
                depth = outer;
                continue;
            }
            _ => {}
        }
        if depth == 0 {
            parts.take(component, &payload)?;
        }
        if matches!(payload, Payload::ModuleSection { .. } | Payload::ComponentSection { .. }) {
            depth += 1;
        }
    }
    Err("it has no end".to_owned())
}

fn text(error: impl Display) -> String {
    error.to_string()
}

fn check_name(name: &str) -> Result<(), String> {
    match name.starts_with(RESERVED_PREFIX) {
        true => Err(format!("it exports `{name}`, and names that begin with `{RESERVED_PREFIX}` are the node's")),
        false => Ok(()),
    }
}

/// Checks that the component cannot create handles: they are state outside of any memory.
fn check_built_ins(functions: wasmparser::ComponentCanonicalSectionReader<'_>) -> Result<(), String> {
    for function in functions {
        if !matches!(function.map_err(text)?, Lift { .. } | Lower { .. } | ResourceDrop { .. }) {
            return Err("it has built-in functions that keep state".to_owned());
        }
    }
    Ok(())
}

fn bytes(from: &[u8], range: Range<usize>) -> Result<&[u8], String> {
    from.get(range).ok_or_else(|| "it ends in a section".to_owned())
}

/// The state that a module defines, under the names it is exported by.
#[derive(Default)]
struct State {
    globals: Vec<(String, encode::GlobalType)>,
    memories: Vec<(String, encode::MemoryType)>,
}

/// The outermost component, as far as it has been read.
#[derive(Default)]
struct Parts {
    component: encode::Component,
    modules: Vec<State>,
    /// The core instances of modules: their index, and the index of their module.
    instances: Vec<(u32, u32)>,
    core_instances: u32,
}

impl Parts {
    /// Copies a section; a module is copied with its state exported.
    fn take(&mut self, component: &[u8], payload: &Payload<'_>) -> Result<(), String> {
        if let Payload::ModuleSection { unchecked_range, .. } = payload {
            let (module, state) = expose(bytes(component, unchecked_range.clone())?)?;
            self.modules.push(state);
            self.component
                .section(&encode::RawSection { id: encode::ComponentSectionId::CoreModule as u8, data: &module });
            return Ok(());
        }
        if let Payload::InstanceSection(instances) = payload {
            for instance in instances.clone() {
                if let Instance::Instantiate { module_index, .. } = instance.map_err(text)? {
                    if self.instances.iter().any(|(_, module)| *module == module_index) {
                        return Err("it instantiates a module twice".to_owned());
                    }
                    self.instances.push((self.core_instances, module_index));
                }
                self.core_instances += 1;
            }
        }
        let (id, range) = payload.as_section().ok_or_else(|| "it has something unknown".to_owned())?;
        self.component.section(&encode::RawSection { id, data: bytes(component, range)? });
        Ok(())
    }

    /// Appends the restorer.
    fn finish(mut self, types: wasmparser::types::TypesRef<'_>) -> Result<Vec<u8>, String> {
        let states = self.instances.iter().map(|(instance, module)| {
            let state = self.modules.get(*module as usize).ok_or("it has a module from elsewhere")?;
            Ok((*instance, state))
        });
        let states: Vec<(u32, &State)> = states.collect::<Result<_, String>>()?;
        let mut memories =
            states.iter().flat_map(|(instance, state)| state.memories.iter().map(move |it| (*instance, it)));
        let (Some((memory_instance, (memory_name, memory_type))), None) = (memories.next(), memories.next()) else {
            return Err("it has no memory, or more than one".to_owned());
        };
        let restorer = restorer(&states, memory_instance, memory_name, *memory_type);

        let mut instances = encode::InstanceSection::new();
        let arguments = states.iter().map(|(instance, _)| (instance.to_string(), ModuleArg::Instance(*instance)));
        instances.instantiate(types.module_count(), arguments.collect::<Vec<_>>());

        let mut aliases = encode::ComponentAliasSection::new();
        let mut alias = |instance, kind, name| {
            aliases.alias(encode::Alias::CoreInstanceExport { instance, kind, name });
        };
        alias(memory_instance, ExportKind::Memory, memory_name);
        for name in [RESTORE_GLOBALS, MEMORY, AFTER_MEMORY] {
            alias(types.core_instance_count(), ExportKind::Func, name);
        }
        let (restore, memory, after) = (types.function_count(), types.function_count() + 1, types.function_count() + 2);

        let mut added_types = encode::ComponentTypeSection::new();
        let nothing = types.component_type_count();
        added_types.function().params([] as [(&str, PrimitiveValType); 0]).result(None);
        added_types.defined_type().list(PrimitiveValType::U8);
        let list = encode::ComponentValType::Type(nothing + 1);
        added_types.function().params([] as [(&str, PrimitiveValType); 0]).result(Some(list));

        let mut lifted = encode::CanonicalFunctionSection::new();
        lifted.lift(restore, nothing, []);
        let options = [CanonicalOption::Memory(types.memory_count()), CanonicalOption::PostReturn(after)];
        lifted.lift(memory, nothing + 2, options);

        let mut exports = encode::ComponentExportSection::new();
        for (name, index) in [(RESTORE_GLOBALS, 0), (MEMORY, 1)] {
            exports.export(name, ComponentExportKind::Func, types.component_function_count() + index, None);
        }
        self.component.section(&encode::ModuleSection(&restorer));
        self.component.section(&instances).section(&aliases).section(&added_types).section(&lifted).section(&exports);
        Ok(self.component.finish())
    }
}

/// Copies a module, and exports its state.
fn expose(module: &[u8]) -> Result<(Vec<u8>, State), String> {
    let mut exposed = encode::Module::new();
    let mut state = State::default();
    let (mut globals, mut memories) = (Vec::new(), Vec::new());
    let mut has_exports = false;
    let (mut global_index, mut memory_index) = (0, 0);
    for payload in Parser::new(0).parse_all(module) {
        let payload = payload.map_err(text)?;
        match &payload {
            Payload::ImportSection(imports) => {
                for import in imports.clone().into_imports() {
                    match import.map_err(text)?.ty {
                        TypeRef::Global(_) => global_index += 1,
                        TypeRef::Memory(_) => memory_index += 1,
                        _ => {}
                    }
                }
            }
            Payload::MemorySection(defined) => {
                for ty in defined.clone() {
                    memories.push((memory_index, memory_type(ty.map_err(text)?)?));
                    memory_index += 1;
                }
            }
            Payload::GlobalSection(defined) => {
                for global in defined.clone() {
                    let ty = global.map_err(text)?.ty;
                    if ty.mutable {
                        globals.push((global_index, global_type(ty)?));
                    }
                    global_index += 1;
                }
            }
            Payload::StartSection { .. } => return Err("it runs code when it is instantiated".to_owned()),
            Payload::ExportSection(exports) => {
                has_exports = true;
                let mut section = encode::ExportSection::new();
                for export in exports.clone() {
                    let export = export.map_err(text)?;
                    check_name(export.name)?;
                    section.export(export.name, export.kind.into(), export.index);
                }
                for (index, ty) in globals.drain(..) {
                    let name = format!("brink-global-{index}");
                    section.export(&name, ExportKind::Global, index);
                    state.globals.push((name, ty));
                }
                for (index, ty) in memories.drain(..) {
                    let name = format!("brink-memory-{index}");
                    section.export(&name, ExportKind::Memory, index);
                    state.memories.push((name, ty));
                }
                exposed.section(&section);
                continue;
            }
            _ => {}
        }
        // Function bodies are part of the code section, which was copied when it began.
        if let Some((id, range)) = payload.as_section() {
            exposed.section(&encode::RawSection { id, data: bytes(module, range)? });
        }
    }
    match has_exports || (globals.is_empty() && memories.is_empty()) {
        true => Ok((exposed.finish(), state)),
        false => Err("it has a module with state and without exports".to_owned()),
    }
}

fn memory_type(ty: wasmparser::MemoryType) -> Result<encode::MemoryType, String> {
    match ty.memory64 || ty.shared || ty.page_size_log2.is_some() {
        true => Err("it has a memory of an unusual kind".to_owned()),
        false => Ok(ty.into()),
    }
}

fn global_type(ty: wasmparser::GlobalType) -> Result<encode::GlobalType, String> {
    match (ty.shared, ty.content_type) {
        (false, ValType::I32 | ValType::I64 | ValType::F32 | ValType::F64) => ty.try_into().map_err(text),
        _ => Err("it has a mutable global of an unusual kind".to_owned()),
    }
}

/// The module that saves and restores the globals of these instances, and returns their memory.
fn restorer(
    states: &[(u32, &State)],
    memory_instance: u32,
    memory_name: &str,
    memory: encode::MemoryType,
) -> encode::Module {
    let mut imports = encode::ImportSection::new();
    let mut saved = encode::GlobalSection::new();
    let (mut save, mut restore) = (encode::Function::new([]), encode::Function::new([]));
    let count: u32 = states.iter().map(|(_, state)| state.globals.len() as u32).sum();
    let mut index = 0;
    for (instance, state) in states {
        for (name, ty) in &state.globals {
            imports.import(&instance.to_string(), name, *ty);
            saved.global(*ty, &zero(ty.val_type));
            save.instructions().global_get(index).global_set(count + index);
            restore.instructions().global_get(count + index).global_set(index);
            index += 1;
        }
    }
    imports.import(&memory_instance.to_string(), memory_name, memory);
    save.instructions().end();
    restore.instructions().end();

    // A list is returned as the address of its address and length. They are written to the begin of the memory, and the bytes
    // that were there are restored when the host has read them.
    let word = encode::GlobalType { val_type: encode::ValType::I64, mutable: true, shared: false };
    saved.global(word, &zero(word.val_type));
    let at = |offset| MemArg { offset, align: 0, memory_index: 0 };
    let mut whole = encode::Function::new([]);
    whole.instructions().i32_const(0).i64_load(at(0)).global_set(count * 2);
    whole.instructions().i32_const(0).i32_const(0).i32_store(at(0));
    whole.instructions().i32_const(0).memory_size(0).i32_const(16).i32_shl().i32_store(at(4));
    whole.instructions().i32_const(0).end();
    let mut after = encode::Function::new([]);
    after.instructions().i32_const(0).global_get(count * 2).i64_store(at(0)).end();

    let mut types = encode::TypeSection::new();
    types.ty().function([], []);
    types.ty().function([], [encode::ValType::I32]);
    types.ty().function([encode::ValType::I32], []);
    let mut functions = encode::FunctionSection::new();
    let mut code = encode::CodeSection::new();
    for (ty, body) in [(0, save), (0, restore), (1, whole), (2, after)] {
        functions.function(ty);
        code.function(&body);
    }
    let mut exports = encode::ExportSection::new();
    for (name, index) in [(RESTORE_GLOBALS, 1), (MEMORY, 2), (AFTER_MEMORY, 3)] {
        exports.export(name, ExportKind::Func, index);
    }
    let mut module = encode::Module::new();
    module.section(&types).section(&imports).section(&functions).section(&saved).section(&exports);
    module.section(&encode::StartSection { function_index: 0 }).section(&code);
    module
}

fn zero(ty: encode::ValType) -> encode::ConstExpr {
    match ty {
        encode::ValType::I64 => encode::ConstExpr::i64_const(0),
        encode::ValType::F32 => encode::ConstExpr::f32_const(0.0.into()),
        encode::ValType::F64 => encode::ConstExpr::f64_const(0.0.into()),
        _ => encode::ConstExpr::i32_const(0),
    }
}

#[cfg(test)]
mod tests {
    use super::resettable;
    use crate::sandbox::tests::suspicious;

    #[test]
    fn a_component_with_state_that_cannot_be_reached_cannot_be_reset() {
        let module = |text: &str| format!("(component (core module $m {text}) (core instance (instantiate $m)))");
        let cases = [
            (module(r#"(memory (export "m") 1) (func $f) (start $f)"#), "runs code"),
            (module("(memory 1)"), "without exports"),
            (module(r#"(memory (export "brink-memory-0") 1)"#), "names that begin with"),
            (module(r#"(global (mut i32) (i32.const 0)) (func (export "f"))"#), "no memory"),
            (module(r#"(memory (export "a") 1) (memory (export "b") 1)"#), "more than one"),
            (module(r#"(memory (export "m") 1 1 shared)"#), "unusual"),
            (module(r#"(memory (export "m") i64 1)"#), "unusual"),
            (module(r#"(memory (export "m") 1) (global (mut funcref) (ref.null func))"#), "unusual"),
            (
                r#"(component (core module $m (memory (export "m") 1)) (core instance (instantiate $m)) (core instance (instantiate $m)))"#
                    .to_owned(),
                "twice",
            ),
            (
                r#"(component (type $r (resource (rep i32))) (core func (canon resource.new $r))
                    (core module $m (memory (export "m") 1)) (core instance (instantiate $m)))"#
                    .to_owned(),
                "built-in",
            ),
            (
                r#"(component (component (type $r (resource (rep i32))) (core func (canon resource.new $r)))
                    (core module $m (memory (export "m") 1)) (core instance (instantiate $m)))"#
                    .to_owned(),
                "built-in",
            ),
            (
                r#"(component (component (core module $n (global (export "g") (mut i32) (i32.const 0))) (core instance (instantiate $n)))
                    (core module $m (memory (export "m") 1)) (core instance (instantiate $m)))"#
                    .to_owned(),
                "nested",
            ),
            (
                r#"(component (import "n" (core module $n)) (core instance (instantiate $n))
                    (core module $m (memory (export "m") 1)) (core instance (instantiate $m)))"#
                    .to_owned(),
                "elsewhere",
            ),
        ];
        for (text, reason) in cases {
            let error = resettable(&wat::parse_str(&text).unwrap()).unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
        // Its parts are no different from these.
        let fine = resettable(&suspicious().bytes()).unwrap();
        assert!(resettable(&fine).is_err(), "two restorers would restore what the other saves");
    }
}
