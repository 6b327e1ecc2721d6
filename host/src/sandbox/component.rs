//! A component that fits one of the worlds of `brink:hooks`: checked, and linked to what the host offers.

use wasmtime::Store;
use wasmtime::component::types::{self, ComponentItem};
use wasmtime::component::{Component, Instance, InstancePre, Linker};

use super::bindings::HOOKS_VERSION;
use super::bindings::exports::brink::hooks::{configuration, transformer, validator};
use super::error::Mismatch;
use super::host_state::{self, HostReads, HostState};
use super::wasi;
use crate::limits;

const HOOKS_PREFIX: &str = "brink:hooks/";

const PAGE_BYTES: u64 = 64 * 1024;

/// A compiled component with its imports linked, ready to be instantiated.
pub(super) struct LinkedComponent<R: 'static> {
    pub(super) pre: InstancePre<HostState<R>>,
    configuration: configuration::GuestIndices,
    pub(super) validator: Option<validator::GuestIndices>,
    pub(super) transformer: Option<transformer::GuestIndices>,
}

/// The exports of one instance, whose types have been checked.
pub(super) struct Exports {
    pub(super) configuration: configuration::Guest,
    pub(super) validator: Option<validator::Guest>,
    pub(super) transformer: Option<transformer::Guest>,
}

/// What a plugin does about writes. It may have both roles.
#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::IntoStaticStr)]
#[strum(serialize_all = "lowercase")]
pub enum Role {
    /// It may rewrite values. A plugin without this role cannot.
    Transformer,
    /// It judges writes.
    Validator,
}

impl<R: HostReads> LinkedComponent<R> {
    /// Finds the exports of a component, and links its imports.
    pub(super) fn new(component: &Component) -> Result<Self, Mismatch> {
        let ty = component.component_type();
        let mut interfaces = Vec::new();
        for (name, _) in ty.exports(component.engine()) {
            interfaces.extend(hooks_interface(name)?);
        }
        let has = |interface| interfaces.contains(&interface);
        if !has("validator") && !has("transformer") {
            return Err(Mismatch::NoRole);
        }
        if !has("configuration") {
            return Err(Mismatch::NoConfiguration);
        }
        let pre = link(component, &ty).map_err(signature)?;
        let configuration = configuration::GuestIndices::new(&pre).map_err(signature)?;
        let validator = has("validator").then(|| validator::GuestIndices::new(&pre));
        let transformer = has("transformer").then(|| transformer::GuestIndices::new(&pre));
        let validator = validator.transpose().map_err(signature)?;
        let transformer = transformer.transpose().map_err(signature)?;
        Ok(Self { configuration, validator, transformer, pre })
    }

    /// Finds the exports of an instance of the component. Fails if one has not the type it should have.
    pub(super) fn exports(&self, store: &mut Store<HostState<R>>, instance: &Instance) -> wasmtime::Result<Exports> {
        let validator = self.validator.as_ref().map(|validator| validator.load(&mut *store, instance));
        let transformer = self.transformer.as_ref().map(|transformer| transformer.load(&mut *store, instance));
        Ok(Exports {
            validator: validator.transpose()?,
            transformer: transformer.transpose()?,
            configuration: self.configuration.load(store, instance)?,
        })
    }
}

/// Checks that bytes begin like a component. An error says what they are instead.
pub(super) fn check_preamble(bytes: &[u8]) -> Result<(), &'static str> {
    Err(match bytes {
        // Version 13 of layer 1.
        [b'\0', b'a', b's', b'm', 13, 0, 1, 0, ..] => return Ok(()),
        [b'\0', b'a', b's', b'm', 1, 0, 0, 0, ..] => {
            "it is a core module; build for `wasm32-wasip2`, or wrap it with `wasm-tools component new`"
        }
        [b'\0', b'a', b's', b'm', ..] => "it is WebAssembly of a version this node does not know",
        [] => "it is empty",
        _ if bytes.trim_ascii_start().starts_with(b"(") => {
            "it looks like WebAssembly text; translate it to binary first"
        }
        _ => "it does not start like WebAssembly",
    })
}

/// Checks that an instance of the component starts within the limits.
pub(super) fn check_resources(component: &Component) -> Result<(), Mismatch> {
    let Some(required) = component.resources_required() else {
        return Err(Mismatch::Signature("it imports core modules, which plugins cannot".to_owned()));
    };
    let memory_bytes = required.max_initial_memory_size.unwrap_or(0).saturating_mul(PAGE_BYTES);
    let elements = required.max_initial_table_size.unwrap_or(0);
    let checks: [(&'static str, u64, usize); 4] = [
        ("linear memories", required.num_memories.into(), limits::PLUGIN_MEMORIES_MAX),
        ("tables", required.num_tables.into(), limits::PLUGIN_TABLES_MAX),
        ("bytes of memory", memory_bytes, limits::PLUGIN_MEMORY_BYTES_MAX),
        ("table elements", elements, limits::PLUGIN_TABLE_ELEMENTS_MAX),
    ];
    for (what, found, limit) in checks {
        let limit = limit as u64;
        if found > limit {
            return Err(Mismatch::Resources { what, found, limit });
        }
    }
    Ok(())
}

/// Checks that every import is of `brink:hooks` or WASI. Returns the functions of `brink:hooks`, sorted.
pub(super) fn check_imports(component: &Component) -> Result<Vec<String>, Mismatch> {
    let engine = component.engine();
    let mut functions = Vec::new();
    for (name, import) in component.component_type().imports(engine) {
        if name.starts_with(wasi::PREFIX) {
            continue;
        }
        let Some(interface) = hooks_interface(name)? else { return Err(Mismatch::Import(name.to_owned())) };
        let ComponentItem::ComponentInstance(instance) = import.ty else {
            return Err(Mismatch::Import(name.to_owned()));
        };
        for (item, export) in instance.exports(engine) {
            if !matches!(export.ty, ComponentItem::ComponentFunc(_)) {
                continue;
            }
            match (interface, item) {
                ("store", "get" | "exists" | "list") | ("log", "write") => {
                    functions.push(format!("{interface}.{item}"));
                }
                _ => return Err(Mismatch::Import(format!("{name}#{item}"))),
            }
        }
    }
    functions.sort_unstable();
    Ok(functions)
}

/// The interface named by an import or export of `brink:hooks`; `None` for other packages.
fn hooks_interface(name: &str) -> Result<Option<&str>, Mismatch> {
    let Some(rest) = name.strip_prefix(HOOKS_PREFIX) else { return Ok(None) };
    let (interface, version) = rest.split_once('@').unwrap_or((rest, "none"));
    if version != HOOKS_VERSION {
        return Err(Mismatch::Version(version.to_owned()));
    }
    Ok(Some(interface))
}

fn link<R: HostReads>(component: &Component, ty: &types::Component) -> wasmtime::Result<InstancePre<HostState<R>>> {
    let engine = component.engine();
    let mut linker = Linker::new(engine);
    host_state::add_to_linker(&mut linker)?;
    for (name, import) in ty.imports(engine) {
        let (true, ComponentItem::ComponentInstance(instance)) = (name.starts_with(wasi::PREFIX), import.ty) else {
            continue;
        };
        let interface = name.split_once('@').map_or(name, |(interface, _)| interface);
        let mut items = linker.instance(name)?;
        for (item, _) in instance.exports(engine) {
            wasi::define(&mut items, interface, item)?;
        }
    }
    linker.define_unknown_imports_as_traps(component)?;
    linker.instantiate_pre(component)
}

/// A mismatch of types that wasmtime found.
pub(super) fn signature(error: wasmtime::Error) -> Mismatch {
    Mismatch::Signature(format!("{error:#}"))
}
