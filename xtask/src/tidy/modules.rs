//! The modules of one crate. Finds the file that defines the item of a path.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::paths::{self, Contents, Named};

/// Maximum number of imports that a path may lead through. An import that leads to itself stops there.
const IMPORTS_MAX: usize = 32;

/// A crate, read from the files that its root declares.
pub(super) struct Crate {
    pub(super) files: Vec<File>,
    /// The root is the first.
    modules: Vec<Module>,
}

/// One file of a crate.
pub(super) struct File {
    /// The path below the directory of the crate's root, for example `storage/log.rs`.
    pub(super) name: String,
    /// Whether it is compiled for tests only.
    pub(super) in_test: bool,
    pub(super) contents: Contents,
    module: usize,
}

/// One module: a file, or a `mod` with braces.
struct Module {
    file: usize,
    parent: usize,
    children: BTreeMap<String, usize>,
    items: Vec<String>,
    imports: BTreeMap<String, Vec<String>>,
    globs: Vec<Vec<String>>,
}

/// The meaning of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Target {
    /// An item, by the position of its file in [`Crate::files`].
    Item(usize),
    /// A module as a whole.
    Module(usize),
    /// A path outside of the crate, with imports written out, or a local name.
    Outside(Vec<String>),
}

/// A use of a name in a file.
pub(super) struct Use<'a> {
    /// The position of the file.
    pub(super) file: usize,
    pub(super) path: &'a Named,
    pub(super) target: Target,
    /// Whether this is a `pub use`, which is no use by itself.
    pub(super) is_reexport: bool,
    pub(super) in_test: bool,
}

impl Crate {
    /// Reads the crate with this root, such as `src/lib.rs`.
    pub(super) fn read(root: &Path) -> Self {
        let mut this = Self { files: Vec::new(), modules: Vec::new() };
        let dir = root.parent().unwrap();
        this.read_file(root, dir, dir, 0, false);
        this
    }

    /// Every use of a name in this crate.
    pub(super) fn uses(&self) -> Vec<Use<'_>> {
        let mut uses = Vec::new();
        for (file, File { contents, in_test, module, .. }) in self.files.iter().enumerate() {
            let imports = contents.imports.iter().map(|import| (&import.path, import.is_reexport));
            let paths = contents.paths.iter().map(|path| (path, false));
            for (path, is_reexport) in imports.chain(paths) {
                let target = self.resolve(self.within(*module, &path.scope), &path.segments, 0);
                uses.push(Use { file, path, target, is_reexport, in_test: *in_test || path.in_test });
            }
        }
        uses
    }

    /// The file of a module.
    pub(super) fn file_of(&self, module: usize) -> usize {
        self.modules[module].file
    }

    /// Reads a file, which is a module, and the files that it declares; `dir` is where those are.
    fn read_file(&mut self, path: &Path, dir: &Path, src: &Path, parent: usize, in_test: bool) -> usize {
        let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let syntax = syn::parse_file(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let mut contents = paths::read(&syntax);
        let (file, module) = (self.files.len(), self.modules.len());
        let declared = std::mem::take(&mut contents.modules);
        let name = path.strip_prefix(src).unwrap().to_str().unwrap().to_owned();
        self.modules.push(Module::new(file, parent));
        self.files.push(File { name, in_test, contents, module });
        for inner in &declared {
            let parent = self.within(module, &inner.scope);
            let child = if inner.is_file {
                let dir = inner.scope.iter().fold(dir.to_path_buf(), |dir, name| dir.join(name));
                let (path, dir) = locate(&dir, &inner.name);
                self.read_file(&path, &dir, src, parent, in_test || inner.in_test)
            } else {
                self.modules.push(Module::new(file, parent));
                self.modules.len() - 1
            };
            self.modules[parent].children.insert(inner.name.clone(), child);
        }
        self.fill(file);
        module
    }

    /// Enters what a file defines and imports into its modules.
    fn fill(&mut self, file: usize) {
        let File { contents, module, .. } = &self.files[file];
        for (scope, name) in &contents.items {
            let at = self.within(*module, scope);
            self.modules[at].items.push(name.clone());
        }
        for import in &contents.imports {
            let at = self.within(*module, &import.path.scope);
            let segments = import.path.segments.clone();
            match &import.name {
                Some(name) => drop(self.modules[at].imports.insert(name.clone(), segments)),
                None => self.modules[at].globs.push(segments),
            }
        }
    }

    /// The module within braces that a scope leads to.
    fn within(&self, module: usize, scope: &[String]) -> usize {
        scope.iter().fold(module, |module, name| self.modules[module].children[name])
    }

    /// Follows a path from a module. `imports` counts those that led here.
    fn resolve(&self, module: usize, path: &[String], imports: usize) -> Target {
        let outside = || Target::Outside(path.to_vec());
        if imports > IMPORTS_MAX {
            return outside();
        }
        let mut at = module;
        for (position, name) in path.iter().enumerate() {
            match name.as_str() {
                "crate" => at = 0,
                "self" => {}
                "super" => at = self.modules[at].parent,
                "Self" => return outside(),
                name => match self.step(at, name, &path[position + 1..], imports) {
                    Some(Step::Down(child)) => at = child,
                    Some(Step::End(target)) => return target,
                    None if position == 0 => return outside(),
                    // Defined by a macro, which is in the same file.
                    None => return Target::Item(self.modules[at].file),
                },
            }
        }
        Target::Module(at)
    }

    /// The meaning of a name in a module, where `rest` is the path after it.
    fn step(&self, at: usize, name: &str, rest: &[String], imports: usize) -> Option<Step> {
        let module = &self.modules[at];
        let child = module.children.get(name).copied().map(Step::Down);
        if child.is_some() && !rest.is_empty() {
            return child;
        }
        if let Some(import) = module.imports.get(name) {
            let path: Vec<String> = import.iter().chain(rest).cloned().collect();
            return Some(Step::End(self.resolve(at, &path, imports + 1)));
        }
        if module.items.iter().any(|item| item == name) {
            return Some(Step::End(Target::Item(module.file)));
        }
        let exports = |file: &File| file.contents.exported_macros.iter().any(|exported| exported == name);
        if at == 0
            && let Some(file) = self.files.iter().position(exports)
        {
            return Some(Step::End(Target::Item(file)));
        }
        child.or_else(|| module.globs.iter().find_map(|glob| self.step_through(at, glob, name, rest, imports + 1)))
    }

    /// The meaning of a name that may come from a `use …::*` of a module.
    fn step_through(&self, at: usize, glob: &[String], name: &str, rest: &[String], imports: usize) -> Option<Step> {
        match self.resolve(at, glob, imports) {
            Target::Module(from) if from != at && imports <= IMPORTS_MAX => self.step(from, name, rest, imports),
            _ => None,
        }
    }
}

/// One step along a path.
enum Step {
    /// Into a module, from where the path goes on.
    Down(usize),
    /// To where the whole path leads.
    End(Target),
}

impl Module {
    fn new(file: usize, parent: usize) -> Self {
        Self { file, parent, children: BTreeMap::new(), items: Vec::new(), imports: BTreeMap::new(), globs: Vec::new() }
    }
}

/// The file of a module that is declared by a file whose modules are in `dir`, and where the modules of that are.
fn locate(dir: &Path, name: &str) -> (PathBuf, PathBuf) {
    let below = dir.join(name);
    let file = dir.join(format!("{name}.rs"));
    if file.exists() { (file, below) } else { (below.join("mod.rs"), below) }
}
