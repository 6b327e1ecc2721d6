//! Documents: their links lead to what exists.

use std::path::Path;

use super::source;

/// Describes each link that leads nowhere.
pub(super) fn find(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for (path, text) in source::files(root, &[""], "md") {
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = link.split('#').next().unwrap_or_default();
            if !file.is_empty() && !link.contains("://") && !root.join(&path).parent().unwrap().join(file).exists() {
                found.push(format!("{path} links to {file}, which does not exist"));
            }
        }
    }
    found
}
