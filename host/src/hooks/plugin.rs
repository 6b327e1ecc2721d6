//! A compiled plugin: a component that fits one of the worlds of `brink:hooks`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use wasmtime::component::types::{self, ComponentItem};
use wasmtime::component::{Component, InstancePre, Linker};

use super::bindings::exports::brink::hooks::{configuration, transformer, validator};
use super::error::{Error, Mismatch};
use super::guest::{self, Allowance, Call, Guest};
use super::lines::Speaker;
use super::rewind::Rewinder;
use super::runtime::{Core, Runtime};
use super::wasi;
use crate::limits;

/// The version of `brink:hooks` this node serves.
pub const HOOKS_VERSION: &str = "0.1.0";

const HOOKS_PREFIX: &str = "brink:hooks/";

/// A page of linear memory.
const PAGE_BYTES: u64 = 64 * 1024;

/// How every component begins: the magic of WebAssembly, then version 13 of layer 1.
const COMPONENT_PREAMBLE: &[u8] = b"\0asm\x0d\0\x01\0";

/// How every core module begins.
const MODULE_PREAMBLE: &[u8] = b"\0asm\x01\0\0\0";

/// A compiled plugin. Cheap to clone.
#[derive(Clone)]
pub struct Plugin(Arc<Compiled>);

struct Compiled {
    name: String,
    digest: String,
    imports: Vec<String>,
    code: Code,
    start: Start,
}

/// What instances are made of: a compiled component with its imports linked.
pub(super) struct Code {
    pub(super) pre: InstancePre<Call>,
    pub(super) exports: Exports,
    /// What puts its instances back after a call, or why that cannot be done.
    pub(super) rewinder: Result<Rewinder, String>,
}

/// What starting an instance costs.
#[derive(Debug, Clone, Copy, Default)]
struct Start {
    time: Duration,
    memory_bytes: usize,
}

/// Where the exports of a plugin are.
pub(super) struct Exports {
    pub(super) configuration: configuration::GuestIndices,
    pub(super) validator: Option<validator::GuestIndices>,
    pub(super) transformer: Option<transformer::GuestIndices>,
}

impl Plugin {
    /// The name it was compiled under.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// SHA-256 of the component's bytes, in lower-case hexadecimal.
    pub fn digest(&self) -> &str {
        &self.0.digest
    }

    /// Whether it judges writes.
    pub fn is_validator(&self) -> bool {
        self.0.code.exports.validator.is_some()
    }

    /// Whether it may rewrite values. A plugin that is not a transformer cannot.
    pub fn is_transformer(&self) -> bool {
        self.0.code.exports.transformer.is_some()
    }

    /// Its roles: `transformer`, `validator` or both.
    pub fn roles(&self) -> Vec<&'static str> {
        let roles = [(self.is_transformer(), "transformer"), (self.is_validator(), "validator")];
        roles.into_iter().filter_map(|(has, role)| has.then_some(role)).collect()
    }

    /// How long its first instance took to start on this machine, before any configuration.
    pub fn start_time(&self) -> Duration {
        self.0.start.time
    }

    /// The linear memory of an instance that has just started, in bytes.
    pub fn start_memory_bytes(&self) -> usize {
        self.0.start.memory_bytes
    }

    /// The functions of `brink:hooks` it imports, such as `store.get`, sorted. A plugin without one of `store` cannot
    /// read other keys.
    pub fn imports(&self) -> &[String] {
        &self.0.imports
    }

    /// Whether it may read other keys.
    pub(super) fn reads(&self) -> bool {
        self.0.imports.iter().any(|import| import.starts_with("store."))
    }

    pub(super) fn code(&self) -> &Code {
        &self.0.code
    }
}

impl std::fmt::Debug for Plugin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Plugin").field("name", &self.name()).field("digest", &self.digest()).finish_non_exhaustive()
    }
}

/// SHA-256 of a component's bytes, in lower-case hexadecimal.
pub fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Runtime {
    /// Compiles a component and checks that it is a plugin: its size, its imports and exports with all their types, and
    /// that an instance of it can start within the limits.
    ///
    /// Takes from milliseconds to seconds and all cores: call it on a blocking thread, off the path of requests.
    ///
    /// # Errors
    ///
    /// [`Error::TooLarge`], [`Error::NotAComponent`] and [`Error::WorldMismatch`] say what is wrong with the bytes; if
    /// its start fails, the error of that failure; [`Error::Busy`] if too many are being compiled.
    pub fn compile(&self, name: &str, bytes: &[u8]) -> Result<Plugin, Error> {
        if bytes.len() > limits::PLUGIN_BYTES_MAX {
            let (found_bytes, limit_bytes) = (bytes.len(), limits::PLUGIN_BYTES_MAX);
            return Err(Error::TooLarge { plugin: name.to_owned(), found_bytes, limit_bytes });
        }
        check_preamble(bytes).map_err(|detail| Error::NotAComponent { plugin: name.to_owned(), detail })?;
        let core = self.core();
        let _room = core.side_room()?;
        let digest = digest(bytes);
        let component =
            core.compile(&digest, bytes).map_err(|detail| Error::NotAComponent { plugin: name.to_owned(), detail })?;
        examine(core, name, digest, &component)
    }

    /// A plugin of this version that was compiled here before and is still in the cache; `None` if it is not.
    pub fn compiled_before(&self, name: &str, digest: &str) -> Option<Plugin> {
        let component = self.core().cached(digest)?;
        // What cannot be used in spite of that is compiled again, and then says why.
        examine(self.core(), name, digest.to_owned(), &component).ok()
    }
}

/// Checks that a component is a plugin, and that it starts.
fn examine(core: &Core, name: &str, digest: String, component: &Component) -> Result<Plugin, Error> {
    let mismatched = |mismatch| Error::WorldMismatch { plugin: name.to_owned(), mismatch };
    check_resources(component).map_err(mismatched)?;
    let imports = check_imports(core, &component.component_type()).map_err(mismatched)?;
    let code = Code::new(core, component).map_err(mismatched)?;
    let (name, start) = (name.to_owned(), Start::default());
    let mut plugin = Plugin(Arc::new(Compiled { name, digest, imports, code, start }));
    let start = try_start(core, &plugin)?;
    if let Some(compiled) = Arc::get_mut(&mut plugin.0) {
        compiled.start = start;
    }
    Ok(plugin)
}

impl Code {
    /// Links a component and finds its exports.
    pub(super) fn new(core: &Core, component: &Component) -> Result<Self, Mismatch> {
        let ty = component.component_type();
        let roles = check_exports(core, &ty)?;
        let pre = link(core, component, &ty).map_err(signature)?;
        let exports = roles.locate(&pre).map_err(signature)?;
        Ok(Self { pre, exports, rewinder: Err("it is not configured".to_owned()) })
    }
}

fn check_preamble(bytes: &[u8]) -> Result<(), String> {
    if bytes.starts_with(COMPONENT_PREAMBLE) {
        return Ok(());
    }
    if bytes.starts_with(MODULE_PREAMBLE) {
        let advice = "it is a core module; build for `wasm32-wasip2`, or wrap it with `wasm-tools component new`";
        return Err(advice.to_owned());
    }
    if bytes.starts_with(b"\0asm") {
        return Err("it is WebAssembly of a version this node does not know".to_owned());
    }
    if bytes.trim_ascii_start().starts_with(b"(") {
        return Err("it looks like WebAssembly text; translate it to binary first".to_owned());
    }
    match bytes.is_empty() {
        true => Err("it is empty".to_owned()),
        false => Err("it does not start like WebAssembly".to_owned()),
    }
}

pub(super) fn check_resources(component: &Component) -> Result<(), Mismatch> {
    let Some(required) = component.resources_required() else {
        return Err(Mismatch::Signature { detail: "it imports core modules, which plugins cannot".to_owned() });
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

/// Every import must be of `brink:hooks` or WASI. Returns the functions of the former.
fn check_imports(core: &Core, ty: &types::Component) -> Result<Vec<String>, Mismatch> {
    let mut functions = Vec::new();
    for (name, import) in ty.imports(core.engine()) {
        if name.starts_with(wasi::PREFIX) {
            continue;
        }
        let unknown = |import: String| Mismatch::Import { import };
        let Some(interface) = hooks_interface(name)? else { return Err(unknown(name.to_owned())) };
        let ComponentItem::ComponentInstance(instance) = import.ty else { return Err(unknown(name.to_owned())) };
        for (item, export) in instance.exports(core.engine()) {
            if !matches!(export.ty, ComponentItem::ComponentFunc(_)) {
                continue;
            }
            match (interface, item) {
                ("store", "get" | "exists" | "list") | ("log", "write") => {
                    functions.push(format!("{interface}.{item}"));
                }
                _ => return Err(unknown(format!("{name}#{item}"))),
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
        return Err(Mismatch::Version { found: version.to_owned(), supported: HOOKS_VERSION.to_owned() });
    }
    Ok(Some(interface))
}

#[derive(Clone, Copy)]
struct Roles {
    is_validator: bool,
    is_transformer: bool,
}

fn check_exports(core: &Core, ty: &types::Component) -> Result<Roles, Mismatch> {
    let mut roles = Roles { is_validator: false, is_transformer: false };
    let mut is_configurable = false;
    for (name, _) in ty.exports(core.engine()) {
        match hooks_interface(name)? {
            Some("configuration") => is_configurable = true,
            Some("validator") => roles.is_validator = true,
            Some("transformer") => roles.is_transformer = true,
            _ => {}
        }
    }
    if !roles.is_validator && !roles.is_transformer {
        return Err(Mismatch::NoRole);
    }
    if !is_configurable {
        return Err(Mismatch::NoConfiguration);
    }
    Ok(roles)
}

impl Roles {
    fn locate(self, pre: &InstancePre<Call>) -> wasmtime::Result<Exports> {
        Ok(Exports {
            configuration: configuration::GuestIndices::new(pre)?,
            validator: self.is_validator.then(|| validator::GuestIndices::new(pre)).transpose()?,
            transformer: self.is_transformer.then(|| transformer::GuestIndices::new(pre)).transpose()?,
        })
    }
}

fn link(core: &Core, component: &Component, ty: &types::Component) -> wasmtime::Result<InstancePre<Call>> {
    let engine = core.engine();
    let mut linker = Linker::new(engine);
    guest::add_to_linker(&mut linker)?;
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

fn signature(error: wasmtime::Error) -> Mismatch {
    Mismatch::Signature { detail: format!("{error:#}") }
}

/// Starts one instance, so that what cannot start is refused now and not at the first write.
fn try_start(core: &Core, plugin: &Plugin) -> Result<Start, Error> {
    let (plugin_name, digest) = (plugin.name().to_owned(), plugin.digest().to_owned());
    let speaker = Speaker { hook: String::new(), plugin: plugin_name, digest };
    let allowance = Allowance {
        deadline: limits::PLUGIN_CONFIGURE_DEADLINE,
        memory_bytes: limits::PLUGIN_MEMORY_BYTES_MAX,
        output_bytes: limits::PLUGIN_OUTPUT_BYTES_MAX,
        seed: 0,
        is_provisional: false,
    };
    let began = Instant::now();
    Guest::with(core, plugin.code(), &speaker, allowance, |guest| {
        let start = Start { time: began.elapsed(), memory_bytes: guest.memory_bytes() };
        let mismatched = |error| Error::WorldMismatch { plugin: plugin.name().to_owned(), mismatch: signature(error) };
        guest.check_types().map(|()| start).map_err(mismatched)
    })?
}
