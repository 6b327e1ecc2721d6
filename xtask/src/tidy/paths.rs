//! The declarations and paths in one Rust file, from its syntax tree.

use proc_macro2::{TokenStream, TokenTree};
use syn::ext::IdentExt as _;
use syn::visit::{self, Visit};
use syn::{Attribute, Ident, Item, ItemMod, ItemUse, Macro, Path, UseTree, Visibility};

/// The contents of a file that the checks need.
#[derive(Default)]
pub(super) struct Contents {
    /// Modules, including those with braces.
    pub(super) modules: Vec<Declared>,
    /// Names of functions, types, constants and macros, with the module with braces that they are in.
    pub(super) items: Vec<(Scope, String)>,
    /// Macros with `#[macro_export]`, which are at the root of the crate.
    pub(super) exported_macros: Vec<String>,
    pub(super) imports: Vec<Import>,
    /// Paths outside of `use` lines.
    pub(super) paths: Vec<Named>,
    /// Those of them that call a macro.
    pub(super) macros: Vec<Named>,
    /// Lines with a `cfg` of tests that is not on a whole module or import.
    pub(super) test_switches: Vec<usize>,
}

/// The names of the modules with braces around an item, from the outside in.
pub(super) type Scope = Vec<String>;

/// A `mod`.
pub(super) struct Declared {
    pub(super) scope: Scope,
    pub(super) name: String,
    /// Whether its contents are in a file of its own.
    pub(super) is_file: bool,
    pub(super) in_test: bool,
}

/// One name that a `use` brings into scope.
pub(super) struct Import {
    pub(super) path: Named,
    /// The name in scope; `None` for all names (`*`).
    pub(super) name: Option<String>,
    /// Whether other modules see it too, as with `pub(super)`.
    pub(super) is_reexport: bool,
}

/// A path as it is written.
#[derive(Clone)]
pub(super) struct Named {
    pub(super) scope: Scope,
    pub(super) segments: Vec<String>,
    pub(super) line: usize,
    pub(super) in_test: bool,
}

/// Reads the contents of a file.
pub(super) fn read(file: &syn::File) -> Contents {
    let mut reader = Reader { found: Contents::default(), scope: Vec::new(), in_test: false };
    file.items.iter().for_each(|item| reader.visit_item(item));
    reader.found
}

struct Reader {
    found: Contents,
    scope: Scope,
    in_test: bool,
}

impl Reader {
    fn named(&self, segments: Vec<String>, line: usize) -> Named {
        Named { scope: self.scope.clone(), segments, line, in_test: self.in_test }
    }

    fn read_mod(&mut self, item: &ItemMod) {
        let (scope, name) = (self.scope.clone(), item.ident.unraw().to_string());
        let is_file = item.content.is_none();
        self.found.modules.push(Declared { scope, name: name.clone(), is_file, in_test: self.in_test });
        if let Some((_, items)) = &item.content {
            self.scope.push(name);
            items.iter().for_each(|item| self.visit_item(item));
            self.scope.pop();
        }
    }

    fn read_use(&mut self, item: &ItemUse) {
        let is_reexport = !matches!(item.vis, Visibility::Inherited);
        let mut leaves = Vec::new();
        flatten(&item.tree, &mut Vec::new(), &mut leaves);
        for (segments, name) in leaves {
            let path = self.named(segments, item.use_token.span.start().line);
            self.found.imports.push(Import { path, name, is_reexport });
        }
    }

    /// Notes what looks like a path in the arguments of a macro.
    fn read_tokens(&mut self, tokens: TokenStream) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let punct = |at: usize| match tokens.get(at) {
            Some(TokenTree::Punct(punct)) => Some(punct.as_char()),
            _ => None,
        };
        let mut at = 0;
        while let Some(token) = tokens.get(at) {
            match token {
                TokenTree::Group(group) => self.read_tokens(group.stream()),
                TokenTree::Ident(first) => {
                    let before = at.checked_sub(1).and_then(punct);
                    let mut segments = vec![first.unraw().to_string()];
                    while punct(at + 1) == Some(':') && punct(at + 2) == Some(':') {
                        let Some(TokenTree::Ident(next)) = tokens.get(at + 3) else { break };
                        segments.push(next.unraw().to_string());
                        at += 3;
                    }
                    // Neither a field or method, nor a variable of `macro_rules!`.
                    if before != Some('.') && (before != Some('$') || first == "crate") {
                        let path = self.named(segments, first.span().start().line);
                        if punct(at + 1) == Some('!') && punct(at + 2) != Some('=') {
                            self.found.macros.push(path.clone());
                        }
                        self.found.paths.push(path);
                    }
                }
                TokenTree::Punct(_) | TokenTree::Literal(_) => {}
            }
            at += 1;
        }
    }
}

impl<'ast> Visit<'ast> for Reader {
    fn visit_item(&mut self, item: &'ast Item) {
        let (attributes, name) = head(item);
        let was_in_test = self.in_test;
        if let Some(switch) = attributes.iter().find(|attribute| is_test_only(attribute)).filter(|_| !was_in_test) {
            self.in_test = true;
            if !matches!(item, Item::Mod(_) | Item::Use(_)) {
                self.found.test_switches.push(line(switch));
            }
        }
        if let Some(name) = name {
            let name = name.unraw().to_string();
            if attributes.iter().any(|attribute| attribute.path().is_ident("macro_export")) {
                self.found.exported_macros.push(name.clone());
            }
            self.found.items.push((self.scope.clone(), name));
        }
        match item {
            Item::Mod(item) => self.read_mod(item),
            Item::Use(item) => self.read_use(item),
            item => visit::visit_item(self, item),
        }
        self.in_test = was_in_test;
    }

    fn visit_path(&mut self, path: &'ast Path) {
        let segments: Vec<String> = path.segments.iter().map(|segment| segment.ident.unraw().to_string()).collect();
        let line = path.segments.first().map_or(0, |first| first.ident.span().start().line);
        self.found.paths.push(self.named(segments, line));
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, call: &'ast Macro) {
        self.visit_path(&call.path);
        let segments = call.path.segments.iter().map(|segment| segment.ident.unraw().to_string()).collect();
        let line = call.path.segments.first().map_or(0, |first| first.ident.span().start().line);
        self.found.macros.push(self.named(segments, line));
        if let Some(name) = call.path.get_ident().filter(|name| *name == "cfg")
            && mentions_test(call.tokens.clone(), true)
        {
            self.found.test_switches.push(name.span().start().line);
        }
        self.read_tokens(call.tokens.clone());
    }

    fn visit_attribute(&mut self, attribute: &'ast Attribute) {
        if !self.in_test && is_test_switch(attribute) {
            self.found.test_switches.push(line(attribute));
        }
    }

    fn visit_visibility(&mut self, _: &'ast Visibility) {}
}

/// The attributes of an item, and the name that it defines. A `mod` and a `use` define theirs in ways of their own.
fn head(item: &Item) -> (&[Attribute], Option<&Ident>) {
    match item {
        Item::Const(item) => (&item.attrs, Some(&item.ident)),
        Item::Enum(item) => (&item.attrs, Some(&item.ident)),
        Item::Fn(item) => (&item.attrs, Some(&item.sig.ident)),
        Item::Impl(item) => (&item.attrs, None),
        Item::Macro(item) => (&item.attrs, item.ident.as_ref()),
        Item::Mod(item) => (&item.attrs, None),
        Item::Static(item) => (&item.attrs, Some(&item.ident)),
        Item::Struct(item) => (&item.attrs, Some(&item.ident)),
        Item::Trait(item) => (&item.attrs, Some(&item.ident)),
        Item::Type(item) => (&item.attrs, Some(&item.ident)),
        Item::Union(item) => (&item.attrs, Some(&item.ident)),
        Item::Use(item) => (&item.attrs, None),
        _ => (&[], None),
    }
}

/// The paths that a `use` imports and the names they get.
fn flatten(tree: &UseTree, before: &mut Vec<String>, leaves: &mut Vec<(Vec<String>, Option<String>)>) {
    match tree {
        UseTree::Path(path) => {
            before.push(path.ident.unraw().to_string());
            flatten(&path.tree, before, leaves);
            before.pop();
        }
        UseTree::Group(group) => group.items.iter().for_each(|tree| flatten(tree, before, leaves)),
        UseTree::Glob(_) => leaves.push((before.clone(), None)),
        UseTree::Name(name) => leaves.push(leaf(before, &name.ident, &name.ident)),
        UseTree::Rename(rename) => leaves.push(leaf(before, &rename.ident, &rename.rename)),
    }
}

fn leaf(before: &[String], ident: &Ident, name: &Ident) -> (Vec<String>, Option<String>) {
    let mut segments = before.to_vec();
    // `use a::{self}` imports `a`.
    if ident != "self" || segments.is_empty() {
        segments.push(ident.unraw().to_string());
    }
    let name = if name == "self" { segments.last().cloned().unwrap_or_default() } else { name.unraw().to_string() };
    (segments, Some(name))
}

/// Whether an attribute compiles something for tests only.
fn is_test_only(attribute: &Attribute) -> bool {
    attribute.path().is_ident("cfg") && condition(attribute).is_some_and(|tokens| mentions_test(tokens, false))
}

/// Whether an attribute makes a difference between tests and production.
fn is_test_switch(attribute: &Attribute) -> bool {
    let is_cfg = attribute.path().is_ident("cfg") || attribute.path().is_ident("cfg_attr");
    is_cfg && condition(attribute).is_some_and(|tokens| mentions_test(tokens, true))
}

fn condition(attribute: &Attribute) -> Option<TokenStream> {
    Some(attribute.meta.require_list().ok()?.tokens.clone())
}

/// Whether a condition mentions `test`, within `not(…)` only if that is asked for.
fn mentions_test(tokens: TokenStream, within_not: bool) -> bool {
    let mut is_not = false;
    tokens.into_iter().any(|token| match token {
        TokenTree::Ident(ident) => {
            is_not = ident == "not";
            ident == "test"
        }
        TokenTree::Group(group) => (within_not || !is_not) && mentions_test(group.stream(), within_not),
        TokenTree::Punct(_) | TokenTree::Literal(_) => false,
    })
}

fn line(attribute: &Attribute) -> usize {
    attribute.pound_token.span.start().line
}
