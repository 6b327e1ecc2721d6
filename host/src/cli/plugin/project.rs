//! `brink plugin new` and `brink plugin build`: an author's project, from its template to a component.
//!
//! A project is self-contained: it includes the WIT interface and, for Rust, the SDK, in the versions of the `brink` that
//! created it. `build` calls the tools of the project's language.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;

use super::super::{Failure, io};

/// The file that marks the folder of a project.
const MANIFEST: &str = "brink-plugin.toml";

/// Longest name of a project. The plugin, the crate and the package have the same name.
const NAME_BYTES_MAX: usize = 64;

/// The compilation target of Rust components.
const RUST_TARGET: &str = "wasm32-wasip2";

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Deserialize, strum::Display)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub(in crate::cli) enum Language {
    /// Rust, with the SDK
    Rust,
    /// JavaScript, on QuickJS
    Js,
    /// Python, on CPython
    Python,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    name: String,
    language: Language,
    /// The plugin's WIT world, `validator-plugin` if absent; Rust and JavaScript projects name it in their sources.
    world: Option<String>,
}

/// Paths and texts of template files. `{{name}}` and `{{language}}` stand for those of the project.
type Files = &'static [(&'static str, &'static str)];

macro_rules! files {
    ($from:literal: $($path:literal),+ $(,)?) => { &[$(($path, include_str!(concat!($from, $path)))),+] };
}

const EVERY_PROJECT: Files = &[
    (MANIFEST, include_str!("../../../templates/plugin/brink-plugin.toml")),
    ("cases.toml", include_str!("../../../templates/plugin/cases.toml")),
    ("build/.gitignore", include_str!("../../../templates/plugin/build.gitignore")),
    ("wit/hooks.wit", include_str!("../../../../wit/hooks.wit")),
];

/// The SDK. Its `Cargo.toml` needs [`independent`].
const SDK: Files = files!("../../../../guest-sdk/": "Cargo.toml", "README.md", "src/lib.rs", "src/answer.rs",
    "src/bindings.rs", "src/config.rs", "src/fields.rs", "src/glue.rs", "src/json.rs", "src/log.rs", "src/mock.rs",
    "src/store.rs", "src/verdict.rs", "src/write.rs");

impl Language {
    fn files(self) -> Files {
        match self {
            Self::Rust => {
                files!("../../../templates/plugin/rust/": "Cargo.toml", "src/lib.rs", "README.md", ".gitignore")
            }
            Self::Js => files!("../../../templates/plugin/js/": "package.json", "src/plugin.js", "src/brink.js",
                "test/plugin.test.js", "README.md", ".gitignore"),
            Self::Python => files!("../../../templates/plugin/python/": "requirements.txt", "plugin.py", "brink.py",
                "test_plugin.py", "README.md", ".gitignore"),
        }
    }
}

/// Creates a project in a new folder, by default named after it.
pub(super) fn create(name: &str, language: Language, dir: Option<PathBuf>) -> Result<(), Failure> {
    check_name(name)?;
    let dir = dir.unwrap_or_else(|| PathBuf::from(name));
    match fs::read_dir(&dir).map(|mut entries| entries.next()) {
        Ok(None) => {}
        Ok(Some(_)) => {
            return Err(Failure::Usage(format!("{} is not empty; a project needs a new folder", dir.display())));
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(Failure::of_file(&dir)(error)),
    }
    for (path, text) in EVERY_PROJECT.iter().chain(language.files()) {
        let text = text.replace("{{name}}", name).replace("{{language}}", &language.to_string());
        write(&dir.join(path), &text)?;
    }
    if language == Language::Rust {
        for (path, text) in SDK {
            write(&dir.join("brink-guest").join(path), &independent(text))?;
        }
    }
    io::line(&format!("{} made; next: cd {0}, then brink plugin build", dir.display()))
}

/// Checks a project's name, which must be valid for a plugin, a crate and a package.
fn check_name(name: &str) -> Result<(), Failure> {
    let is_allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let begins_well = name.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase());
    match begins_well && name.bytes().all(is_allowed) && name.len() <= NAME_BYTES_MAX {
        true => Ok(()),
        false => Err(Failure::Usage(format!(
            "{name:?} cannot be a plugin's name: it must have 1 to {NAME_BYTES_MAX} of a-z, 0-9 and `-`, and begin with a letter"
        ))),
    }
}

/// Replaces the fields that a `Cargo.toml` inherits from this workspace by their values. Other texts stay the same.
fn independent(text: &str) -> String {
    let inherited = [
        ("version", env!("CARGO_PKG_VERSION")),
        ("edition", "2024"),
        ("rust-version", env!("CARGO_PKG_RUST_VERSION")),
        ("license", env!("CARGO_PKG_LICENSE")),
    ];
    let text = text.replace("\n[lints]\nworkspace = true\n", "");
    inherited.iter().fold(text, |text, (field, value)| {
        text.replace(&format!("\n{field}.workspace = true"), &format!("\n{field} = {value:?}"))
    })
}

fn write(path: &Path, text: &str) -> Result<(), Failure> {
    let written = path.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| fs::write(path, text));
    written.map_err(Failure::of_file(path))
}

/// Builds the component of the project in a folder, with the tools of its language.
pub(super) fn build(dir: &Path) -> Result<(), Failure> {
    let manifest = manifest(dir)?;
    let component = Path::new("build").join(format!("{}.wasm", manifest.name));
    match manifest.language {
        Language::Rust => build_rust(dir, &manifest, &component)?,
        Language::Js => {
            if !dir.join("node_modules").exists() {
                call(dir, "npm", &["install", "--no-fund", "--no-audit"])?;
            }
            call(dir, "npm", &["run", "--silent", "build"])?;
        }
        Language::Python => build_python(dir, &manifest, &component)?,
    }
    let path = dir.join(&component);
    let bytes = fs::metadata(&path).map_err(Failure::of_file(&path))?.len();
    io::line(&format!("{}: {bytes} bytes", path.display()))
}

/// The name of a project and the path of its component, which must have been built.
pub(super) fn built(dir: &Path) -> Result<(String, PathBuf), Failure> {
    let name = manifest(dir)?.name;
    let component = dir.join("build").join(format!("{name}.wasm"));
    match component.exists() {
        true => Ok((name, component)),
        false => Err(Failure::Usage(format!("{} does not exist; run `brink plugin build`", component.display()))),
    }
}

fn build_rust(dir: &Path, manifest: &Manifest, component: &Path) -> Result<(), Failure> {
    call(dir, "cargo", &["build", "--release", "--target", RUST_TARGET])?;
    let file = format!("{}.wasm", manifest.name.replace('-', "_"));
    let built = dir.join("target").join(RUST_TARGET).join("release").join(file);
    let copied = fs::create_dir_all(dir.join("build")).and_then(|()| fs::copy(&built, dir.join(component)));
    copied.map(drop).map_err(Failure::of_file(&built))
}

fn build_python(dir: &Path, manifest: &Manifest, component: &Path) -> Result<(), Failure> {
    let tools = Path::new(".venv").join("bin");
    if !dir.join(&tools).exists() {
        call(dir, "python3", &["-m", "venv", ".venv"])?;
    }
    let (pip, componentize) = (tools.join("pip"), tools.join("componentize-py"));
    if !dir.join(&componentize).exists() {
        call(dir, pip, &["install", "--quiet", "--requirement", "requirements.txt"])?;
    }
    let (world, output) = (manifest.world.as_deref().unwrap_or("validator-plugin"), component.display().to_string());
    call(dir, componentize, &["--wit-path", "wit", "--world", world, "componentize", "plugin", "--output", &output])
}

fn manifest(dir: &Path) -> Result<Manifest, Failure> {
    let path = dir.join(MANIFEST);
    let text = fs::read_to_string(&path).map_err(|source| match source.kind() {
        ErrorKind::NotFound => Failure::Usage(format!(
            "{} is not a plugin project: it has no {MANIFEST}; `brink plugin new` creates one",
            dir.display()
        )),
        _ => Failure::of_file(&path)(source),
    })?;
    let manifest: Manifest =
        toml::from_str(&text).map_err(|error| Failure::Usage(format!("{}: {error}", path.display())))?;
    check_name(&manifest.name)?;
    Ok(manifest)
}

/// Runs a tool in the project's folder. Its output is not captured.
fn call(dir: &Path, tool: impl AsRef<Path>, arguments: &[&str]) -> Result<(), Failure> {
    let tool = tool.as_ref();
    // A relative path, such as `.venv/bin/pip`, is relative to the project's folder.
    let program = if tool.components().count() > 1 { std::path::absolute(dir)?.join(tool) } else { tool.to_owned() };
    let command = format!("{} {}", tool.display(), arguments.join(" "));
    let reason = match Command::new(program).args(arguments).current_dir(dir).status() {
        Ok(status) if status.success() => return Ok(()),
        Ok(status) => status.to_string(),
        Err(error) => error.to_string(),
    };
    Err(Failure::Failed(format!("`{command}` failed: {reason}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sdk_of_a_project_inherits_nothing() {
        let (_, manifest) = SDK.iter().find(|(path, _)| *path == "Cargo.toml").unwrap();
        assert!(manifest.contains("workspace"));
        let text = independent(manifest);
        assert!(!text.contains("workspace"), "{text}");
        let table: toml::Table = toml::from_str(&text).unwrap();
        assert_eq!(table["package"]["version"].as_str(), Some(env!("CARGO_PKG_VERSION")));
        assert_eq!(table["package"]["rust-version"].as_str(), Some(env!("CARGO_PKG_RUST_VERSION")));
    }

    #[test]
    fn a_new_project_has_every_file_of_the_sdk() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../guest-sdk/src");
        for entry in fs::read_dir(folder).unwrap() {
            let path = format!("src/{}", entry.unwrap().file_name().to_str().unwrap());
            assert!(SDK.iter().any(|(embedded, _)| *embedded == path), "{path} is not embedded");
        }
    }

    #[test]
    fn nothing_is_left_of_a_template() {
        let dir = tempfile::tempdir().unwrap();
        for language in [Language::Rust, Language::Js, Language::Python] {
            let project = dir.path().join(language.to_string());
            create("my-rule", language, Some(project.clone())).unwrap();
            let found = manifest(&project).unwrap();
            assert_eq!((found.name.as_str(), found.language), ("my-rule", language));
            for (path, _) in EVERY_PROJECT.iter().chain(language.files()) {
                assert!(!fs::read_to_string(project.join(path)).unwrap().contains("{{"), "{path}");
            }
            // Its folder cannot be used again.
            assert!(matches!(create("my-rule", language, Some(project)), Err(Failure::Usage(_))));
        }
    }

    #[test]
    fn a_name_is_one_of_a_crate_too() {
        for name in ["", "1st", "My-rule", "a.b", "a_b", "ä", &"a".repeat(65)] {
            assert!(check_name(name).is_err(), "{name}");
        }
        check_name("required-fields-2").unwrap();
    }
}
