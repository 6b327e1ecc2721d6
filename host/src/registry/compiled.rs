//! The compiled versions of plugins on this node: in memory, from the cache on disk, or compiled from the registry.
//!
//! Everything here may compile or run a plugin, which takes up to seconds: call it on blocking threads.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use super::components;
use super::error::Error;
use crate::hooks::{self, Binding, Hook, Plugin, Runtime};
use crate::storage::Data;

/// A version of a plugin: its name and digest.
type Version = (String, String);

/// The compiled versions of this node.
pub(super) struct CompiledPlugins {
    runtime: Runtime,
    data: Data,
    /// Never locked while a plugin compiles: two threads may compile the same version, and the later one replaces it.
    by_version: Mutex<HashMap<Version, Arc<Plugin>>>,
}

impl CompiledPlugins {
    pub(super) fn new(runtime: Runtime, data: Data) -> Self {
        Self { runtime, data, by_version: Mutex::default() }
    }

    /// The compiled form of a version in the registry.
    ///
    /// # Errors
    ///
    /// [`hooks::Error::PluginMissing`] if the registry does not have all its bytes; else as for
    /// [`CompiledPlugins::compile`].
    pub(super) fn get(&self, name: &str, digest: &str) -> Result<Arc<Plugin>, Error> {
        let version = (name.to_owned(), digest.to_owned());
        if let Some(plugin) = self.in_memory(&version) {
            return Ok(plugin);
        }
        if let Some(plugin) = self.runtime.compiled_before(name, digest) {
            return Ok(self.keep(version, plugin));
        }
        self.compile(name, &self.component(name, digest)?)
    }

    /// Compiles the bytes of a plugin, unless that was done before.
    ///
    /// # Errors
    ///
    /// If the bytes are not a plugin.
    pub(super) fn compile(&self, name: &str, bytes: &[u8]) -> Result<Arc<Plugin>, Error> {
        let version = (name.to_owned(), hooks::digest(bytes));
        if let Some(plugin) = self.in_memory(&version) {
            return Ok(plugin);
        }
        Ok(self.keep(version, self.runtime.compile(name, bytes)?))
    }

    /// Runs the plugin once to check the configuration in a binding.
    ///
    /// # Errors
    ///
    /// If the plugin is missing, refuses the configuration or fails.
    pub(super) fn check(&self, name: &str, binding: Binding) -> Result<(), Error> {
        let plugin = self.get(&binding.plugin, binding.digest())?;
        self.runtime.bind(name, binding, &plugin)?;
        Ok(())
    }

    /// Makes a hook from a binding in the registry.
    ///
    /// # Errors
    ///
    /// If the plugin is missing or does not compile.
    pub(super) fn load(&self, name: &str, binding: Binding) -> Result<Hook, Error> {
        let plugin = self.get(&binding.plugin, binding.digest())?;
        Ok(self.runtime.load(name, binding, &plugin)?)
    }

    /// Pre-initializes the plugin of a hook with the hook's configuration. The hook keeps the result, also if it failed.
    ///
    /// # Errors
    ///
    /// If the bytes of the plugin are missing.
    pub(super) fn pre_initialize(&self, hook: &Hook) -> Result<(), Error> {
        let component = self.component(hook.plugin().name(), hook.plugin().digest())?;
        hook.pre_initialize(&component);
        Ok(())
    }

    /// Drops all other versions from memory.
    pub(super) fn retain(&self, versions: &BTreeSet<Version>) {
        self.by_version.lock().retain(|version, _| versions.contains(version));
    }

    /// Removes compiled code from the disk, except that of these digests and hooks.
    pub(super) fn retain_on_disk(&self, digests: impl Iterator<Item = String>, hooks: &[Hook]) {
        self.runtime.keep_compiled(digests, hooks);
    }

    /// The bytes of a version, checked against its digest.
    fn component(&self, name: &str, digest: &str) -> Result<Bytes, Error> {
        let component = components::read(&self.data, digest)?.filter(|component| hooks::digest(component) == digest);
        let missing = || hooks::Error::PluginMissing { plugin: name.to_owned(), digest: Some(digest.to_owned()) };
        component.ok_or_else(|| missing().into())
    }

    fn in_memory(&self, version: &Version) -> Option<Arc<Plugin>> {
        self.by_version.lock().get(version).cloned()
    }

    fn keep(&self, version: Version, plugin: Plugin) -> Arc<Plugin> {
        let plugin = Arc::new(plugin);
        self.by_version.lock().insert(version, plugin.clone());
        plugin
    }
}
