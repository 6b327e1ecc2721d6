//! The compiled versions of plugins on this node: in memory, from the cache on disk, or compiled from the registry.
//!
//! Everything here may compile or run a plugin, which takes up to seconds: call it on blocking threads.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use super::components;
use super::error::Error;
use crate::hooks::{self, Plugin, Runtime};
use crate::storage::Data;

/// The name of a plugin, and the digest of the version.
type Version = (String, String);

pub(super) struct CompiledPlugins {
    pub(super) runtime: Runtime,
    pub(super) data: Data,
    /// Never locked while a plugin compiles: two threads may compile the same version, and the later one replaces it.
    pub(super) by_version: Mutex<HashMap<Version, Arc<Plugin>>>,
}

impl CompiledPlugins {
    /// The compiled form of a version in the registry. [`hooks::Error::PluginMissing`] if the registry does not have all
    /// its bytes.
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
    pub(super) fn compile(&self, name: &str, bytes: &[u8]) -> Result<Arc<Plugin>, Error> {
        let version = (name.to_owned(), hooks::digest(bytes));
        if let Some(plugin) = self.in_memory(&version) {
            return Ok(plugin);
        }
        Ok(self.keep(version, self.runtime.compile(name, bytes)?))
    }

    /// The bytes of a version, checked against its digest.
    pub(super) fn component(&self, name: &str, digest: &str) -> Result<Bytes, Error> {
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
